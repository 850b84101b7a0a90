"""Heads for a model of one's own: trained by one call, kept in a folder with their tree, and used."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tradeoff.core.errors import StoreError
from tradeoff.core.files import read_json, write_json
from tradeoff.engines.decoding import (
    Acceptance,
    Generation,
    Greedy,
    NativeKernels,
    Rejection,
    Sample,
    Typical,
    generate,
    stream,
)
from tradeoff.nn.decoder import TORCH
from tradeoff.nn.decoder.loading import save_pretrained

from .backbone import Backbone, load_backbone
from .cost import measure_cost
from .decoding import MedusaDecoder
from .distillation import Distilled, self_distill
from .errors import HeadsMismatch, InvalidSetting
from .heads import MedusaHeads, frequent_tokens
from .joint import padded_texts, train_jointly
from .layouts import Layout, export_heads
from .prompts import KINDS, encode_prompts, make_prompts
from .training import guess_ranks, head_accuracy, head_training, train_heads
from .tree import Calibration, calibrate_tree

TREE_FILE = "tree.json"
BACKBONE_FOLDER = "backbone"
HELD_OUT_SHARE = 8
"""One in so many of a user's own prompts chooses the tree."""


def train_for(
    source: str,
    out: Path,
    *,
    prompts: Path | None = None,
    per_kind: int = 200,
    new_tokens: int = 96,
    num_heads: int = 3,
    num_blocks: int = 1,
    share_lm_head: bool = True,
    draft_vocab: int | None = 4096,
    stage: int = 1,
    epochs: int = 4,
    learning_rate: float = 1e-3,
    max_nodes: int = 32,
    export: Path | None = None,
    layout: Layout = "vllm",
    device: str = "cpu",
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Self-distill, train, calibrate and keep the result in a folder; the arguments are those of ``train``.

    Raises:
        InvalidSetting: too few prompts, a number out of range, or nothing can be written to a folder.
        CheckpointError: no such model.
        DeviceError: no such device.
    """
    own = None if prompts is None else _own_prompts(prompts)
    for folder in (out, export):
        if folder is not None:
            _make_folder(folder)
    backbone = load_backbone(source, device)
    model = backbone.model
    vocab = model.config.vocab
    cut = draft_vocab is not None and draft_vocab < vocab
    if export is not None and layout == "public" and cut:
        raise InvalidSetting(
            f"the published layout has the whole vocabulary, not {draft_vocab} tokens; use vllm, or train "
            "with --draft-vocab 0"
        )
    train, held_out = _texts(backbone, own, per_kind, new_tokens, seed, say)
    say(f"{train.num_tokens:,} tokens to learn from, {held_out.num_tokens:,} held out")
    tokens = frequent_tokens(train.tokens, vocab, draft_vocab or vocab) if cut else None
    heads = MedusaHeads.from_backbone(model, num_heads, num_blocks, share_lm_head, tokens)
    config = head_training(epochs, learning_rate=learning_rate, seed=seed)
    history = train_heads(heads, train, config)
    say(f"heads trained in {sum(history.column('seconds')):.0f} s, loss {history.column('loss')[-1]:.3f}")
    if stage == 2:
        joint = config.model_copy(update={"batch_size": 16, "learning_rate": learning_rate / 4})
        train_jointly(model, heads, padded_texts(train), joint, self_distilled=True)
        model.eval()
        save_pretrained(model, out / BACKBONE_FOLDER)
        held_out = self_distill(model, held_out.prompts, new_tokens, end_tokens=backbone.end_tokens)
        say(f"the model learned, too; use {out / BACKBONE_FOLDER} with these heads")
    right = head_accuracy(guess_ranks(heads, held_out), held_out)
    say("first guesses right on held-out text: " + ", ".join(f"{x:.1%}" for x in right))
    model.kernels = heads.kernels = NativeKernels() if device == "cpu" else TORCH
    cost = measure_cost(model, heads, max_nodes=max_nodes)
    found = calibrate_tree(heads, held_out, cost, max_nodes=max_nodes)
    heads.save(out)
    write_json(out / TREE_FILE, {"paths": [list(path) for path in found.paths]})
    if export is not None:
        export_heads(heads, export, layout, base=source)
    return found


@dataclass(frozen=True)
class Served:
    """A model that writes, with or without heads."""

    backbone: Backbone
    decoder: MedusaDecoder | None
    acceptance: Acceptance

    def encode(self, prompt: str, in_template: bool = False) -> list[int]:
        """Token ids of a text, or of a question in the chat template."""
        if in_template:
            return self.encode_turns([{"role": "user", "content": prompt}])
        return [int(token) for token in self.backbone.tokenizer.encode(prompt)]

    def encode_turns(self, turns: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation up to where the model answers.

        Raises:
            InvalidSetting: the tokenizer has no chat template.
        """
        tokenizer = self.backbone.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise InvalidSetting("this model's tokenizer has no chat template; use generate")
        found: list[int] = list(
            tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, return_dict=False)
        )
        return found

    def decode(self, ids: Sequence[int], max_new_tokens: int, seed: int = 0) -> Generation:
        """All at once."""
        return generate(self.backbone.model, list(ids), max_new_tokens, **self._how(seed))

    def stream(self, ids: Sequence[int], max_new_tokens: int, seed: int = 0) -> Iterator[tuple[int, str]]:
        """Number of new tokens and new text of every pass, without the end token.

        Where the text ends within a character, what there is of it comes at last, without a pass.
        """
        tokenizer, written, shown = self.backbone.tokenizer, [], ""
        for new in stream(self.backbone.model, list(ids), max_new_tokens, **self._how(seed)):
            written += [token for token in new if token not in self.backbone.end_tokens]
            text = tokenizer.decode(written)
            if text.endswith("\ufffd"):  # a character whose bytes are not all there yet
                yield len(new), ""
                continue
            yield len(new), text[len(shown) :]
            shown = text
        rest = tokenizer.decode(written)[len(shown) :]
        if rest:
            yield 0, rest

    def _how(self, seed: int) -> dict[str, Any]:
        return {
            "proposer": self.decoder.proposer if self.decoder is not None else None,
            "acceptance": self.acceptance,
            "eos": self.backbone.end_tokens,
            "seed": seed,
        }


def serve(
    source: str,
    heads: Path | None,
    acceptance: Literal["greedy", "typical", "sample", "rejection"] = "greedy",
    temperature: float = 0.7,
    device: str = "cpu",
    backbone: Backbone | None = None,
) -> Served:
    """A model with the heads and the tree of a folder that :func:`train_for` wrote.

    Raises:
        HeadsMismatch: the folder holds no heads of this model.
        CheckpointError: no such model.
    """
    backbone = backbone or load_backbone(source, device)
    backbone.model.kernels = NativeKernels() if device == "cpu" else TORCH
    rules: dict[str, Callable[[], Acceptance]] = {
        "greedy": Greedy,
        "typical": lambda: Typical(temperature=temperature),
        "sample": lambda: Sample(temperature=temperature),
        "rejection": lambda: Rejection(temperature=temperature),
    }
    rule = rules[acceptance]()
    if heads is None:
        return Served(backbone, None, rule)
    loaded = MedusaHeads.load(heads, backbone.model).to(device)
    return Served(backbone, MedusaDecoder(backbone.model, loaded, _read_tree(heads), rule), rule)


def _read_tree(folder: Path) -> list[tuple[int, ...]]:
    try:
        given = read_json(folder / TREE_FILE)
        return [tuple(int(rank) for rank in path) for path in given["paths"]]
    except (StoreError, KeyError, TypeError, ValueError) as error:
        raise HeadsMismatch(f"{folder / TREE_FILE} holds no tree: {error}") from None


def _make_folder(folder: Path) -> None:
    """Before hours of training, not behind them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"cannot write to {folder}: {error.strerror}") from None


def _own_prompts(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"cannot read prompts from {file}: {error}") from None
    prompts = [line for line in lines if line.strip()]
    if len(prompts) < HELD_OUT_SHARE:
        raise InvalidSetting(f"{file} has {len(prompts)} prompts; give at least {HELD_OUT_SHARE}")
    return prompts


def _texts(
    backbone: Backbone,
    prompts: list[str] | None,
    per_kind: int,
    new_tokens: int,
    seed: int,
    say: Callable[[str], None],
) -> tuple[Distilled, Distilled]:
    if prompts is None:
        held = max(1, min(50, per_kind // HELD_OUT_SHARE))
        train = [
            ids
            for kind in KINDS
            for ids in encode_prompts(
                make_prompts(kind, per_kind, "train", seed=seed), kind, backbone.tokenizer
            )
        ]
        held_out = [
            ids
            for kind in KINDS
            for ids in encode_prompts(
                make_prompts(kind, held, "held-out", seed=seed), kind, backbone.tokenizer
            )
        ]
    else:
        every = encode_prompts(prompts, "chat", backbone.tokenizer)
        held_out = every[::HELD_OUT_SHARE]
        train = [ids for i, ids in enumerate(every) if i % HELD_OUT_SHARE]
    say(f"the model continues {len(train) + len(held_out)} prompts")
    return tuple(  # type: ignore[return-value]
        self_distill(backbone.model, chosen, new_tokens, end_tokens=backbone.end_tokens)
        for chosen in (train, held_out)
    )
