"""Medusa-2 and typical acceptance on a small decoder over bytes, which is trained here, too."""

import dataclasses
from copy import deepcopy
from pathlib import Path

import pydantic
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from tradeoff.core.context import Context
from tradeoff.data import text
from tradeoff.engines.decoding import Acceptance, Greedy, NativeKernels, Sample, Typical, generate
from tradeoff.nn.decoder import TORCH, Decoder, DecoderConfig
from tradeoff.nn.fit import FitConfig, fit

from .decoding import MedusaProposer
from .distillation import Distilled, self_distill
from .heads import MedusaHeads
from .joint import Adapters, padded_texts, train_jointly
from .training import guess_ranks, train_heads
from .tree import grow, joint_score

Rows = dict[str, dict[str, float]]


class BytesSettings(pydantic.BaseModel):
    """A decoder over bytes, its heads and how it is decoded.

    Attributes:
        dim, layers, heads: of the decoder.
        length: bytes of a window of the corpus.
        backbone: training of the decoder.
        stage: training of the heads alone; Medusa-1 has two of them, Medusa-2 one before the joint training.
        joint: joint training.
        adapters: of the decoder in joint training.
        texts: continuations that the decoder writes itself.
        text_tokens: bytes of each.
        nodes: of the tree.
        prompts: held-out beginnings that are continued.
        new_tokens: bytes of each continuation.
        temperature: of sampling and of typical acceptance.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    length: int = Field(default=96, ge=8)
    backbone: FitConfig
    stage: FitConfig
    joint: FitConfig
    adapters: Adapters = Adapters()
    texts: int = Field(default=128, ge=2)
    text_tokens: int = Field(default=96, ge=4)
    nodes: int = Field(default=8, ge=1)
    prompts: int = Field(default=16, ge=1)
    new_tokens: int = Field(default=64, ge=2)
    temperature: float = Field(default=0.7, gt=0)
    corpus: str = "foldoc"


def run_bytes(settings: BytesSettings, seed: int, context: Context) -> Rows:
    """Heads that are trained alone, with the decoder on the corpus, and with it on its own text.

    All begin with the same decoder. The loss is that of its own output layer on held-out text of the corpus.
    """
    model = _backbone(settings, seed, context)
    data = text.load(settings.corpus, "train").windows(settings.length)
    held_out = text.load(settings.corpus, "validation").windows(settings.length)
    own = _own_text(model, settings, data, seed)
    corpus = _texts(data, min(len(data), settings.texts * 8))
    prompts = [ids.tolist()[:32] for ids in held_out[torch.arange(settings.prompts)][0]]
    validation = held_out[torch.arange(min(len(held_out), 64))]

    heads = MedusaHeads.from_backbone(model)
    stage = settings.stage.model_copy(update={"seed": seed})
    joint = settings.joint.model_copy(update={"seed": seed})
    train_heads(heads, own, stage)
    rows: Rows = {"backbone|bytes|1.0": {"loss": _loss(model, validation), "tokens_per_step": 1.0}}
    for name, texts, self_distilled in (
        ("medusa-2", corpus, False),
        ("self-distilled medusa-2", padded_texts(own), True),
    ):
        tuned, more = deepcopy(model), deepcopy(heads)
        train_jointly(tuned, more, texts, joint, self_distilled=self_distilled, adapters=settings.adapters)
        tuned.eval()
        rows[f"{name}|bytes|1.0"] = {
            "loss": _loss(tuned, validation),
            "tokens_per_step": _decode(
                tuned, more, _tree(tuned, more, settings, data, seed), prompts, settings
            ),
        }
    train_heads(heads, own, stage)
    tree = _tree(model, heads, settings, data, seed)
    rows["medusa-1|bytes|1.0"] = {
        "loss": _loss(model, validation),
        "tokens_per_step": _decode(model, heads, tree, prompts, settings),
    }
    for name, acceptance, drafts in (
        ("sampling", Sample(temperature=settings.temperature), False),
        ("typical", Typical(temperature=settings.temperature), True),
    ):
        steps, surprise = _write(model, heads if drafts else None, tree, prompts, settings, acceptance)
        rows[f"{name}|bytes|1.0"] = {"tokens_per_step": steps, "text_loss": surprise}
    return rows


def _backbone(settings: BytesSettings, seed: int, context: Context) -> Decoder:
    config = DecoderConfig(
        vocab=256, dim=settings.dim, layers=settings.layers, heads=settings.heads, max_len=512
    )
    model = Decoder(config, torch.Generator().manual_seed(seed))
    training = settings.backbone.model_copy(update={"seed": seed})
    data = text.load(settings.corpus, "train")

    def loss(network: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(network(inputs).flatten(0, 1), targets.flatten())

    def build(folder: Path) -> None:
        with context.progress(None, "training a decoder over bytes"):
            fit(model, data.windows(settings.length), None, training, loss=loss)
        save_file(model.state_dict(), folder / "model.safetensors")

    key = {
        "bytes": dataclasses.asdict(config),
        "corpus": data.digest,
        "length": settings.length,
        "training": training.model_dump(mode="json"),
    }
    model.load_state_dict(load_file(context.cache(key, build) / "model.safetensors"))
    return model.eval()


def _own_text(model: Decoder, settings: BytesSettings, data: text.Windows, seed: int) -> Distilled:
    """Greedy continuations of beginnings from the corpus."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data), generator=generator)[: settings.texts]
    prompts = [ids.tolist()[:32] for ids in data[chosen][0]]
    return self_distill(model, prompts, settings.text_tokens)


def _texts(data: text.Windows, count: int) -> TensorDataset:
    inputs, targets = data[torch.arange(count) * (len(data) // count)]
    ids = torch.cat((inputs[:, :1], targets), 1)
    return TensorDataset(ids, ids)


def _tree(
    model: Decoder, heads: MedusaHeads, settings: BytesSettings, data: text.Windows, seed: int
) -> list[tuple[int, ...]]:
    """Of fixed size, by text that this decoder writes behind other beginnings than those of training."""
    found = _own_text(model, settings.model_copy(update={"texts": 16}), data, seed + 1000)
    return grow(joint_score(guess_ranks(heads, found)), settings.nodes, heads.num_heads)


def _decode(
    model: Decoder,
    heads: MedusaHeads,
    tree: list[tuple[int, ...]],
    prompts: list[list[int]],
    settings: BytesSettings,
) -> float:
    return _write(model, heads, tree, prompts, settings, Greedy())[0]


def _write(
    model: Decoder,
    heads: MedusaHeads | None,
    tree: list[tuple[int, ...]],
    prompts: list[list[int]],
    settings: BytesSettings,
    acceptance: Acceptance,
) -> tuple[float, float]:
    """Tokens per step, and nats per byte of what was written under the decoder itself."""
    model.kernels = NativeKernels()
    proposer = MedusaProposer(heads, tree) if heads is not None else None
    tokens = steps = 0
    losses = []
    for seed, prompt in enumerate(prompts):
        out = generate(
            model, prompt, settings.new_tokens, proposer=proposer, acceptance=acceptance, seed=seed
        )
        tokens, steps = tokens + len(out.ids) - 1, steps + out.steps
        with torch.inference_mode():
            scores = model(torch.tensor([prompt + out.ids[:-1]]))[0, len(prompt) - 1 :]
        losses.append(functional.cross_entropy(scores, torch.tensor(out.ids)).item())
    model.kernels = TORCH
    return tokens / max(steps, 1), sum(losses) / len(losses)


@torch.no_grad()
def _loss(model: Decoder, validation: tuple[Tensor, Tensor]) -> float:
    inputs, targets = validation
    return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
