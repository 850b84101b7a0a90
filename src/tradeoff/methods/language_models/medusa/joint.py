"""Medusa-2: the backbone, by low-rank adapters, and its heads learn together.

    L = CE(logits_0(h_t), y_{t+1}) + lambda_0 sum_k decay^k CE(logits_k(h_t), y_{t+k+1})

with a small lambda_0 and a higher learning rate of the heads, so that the backbone stays as good as it was
(Cai et al., 2024, section 2.2.2). On text that the backbone wrote itself, the first term is instead
``KL(p_original || p_0)``, where p_original is the network's answer without its adapters (section 2.3.2).
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from tradeoff.core.errors import MissingExtra
from tradeoff.nn.decoder import TORCH, Decoder
from tradeoff.nn.fit import FitConfig, History, fit
from tradeoff.nn.losses import distillation

from .distillation import IGNORED, Distilled
from .heads import MedusaHeads, backbone_digest
from .training import HEAD_DECAY, head_labels, medusa_loss

LINEAR_LAYERS = ("query", "key", "value", "output", "gate", "up", "down")


class Adapters(BaseModel):
    """Low-rank adapters of all linear layers in the blocks (Hu et al., "LoRA", 2022).

    Attributes:
        rank: of the update of a matrix.
        alpha: the update is multiplied by alpha / rank.
        dropout: of an adapter's input, in training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=32, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)


def train_jointly(
    model: Decoder,
    heads: MedusaHeads,
    texts: TensorDataset,
    config: FitConfig,
    *,
    head_weight: float = 0.2,
    head_rate: float = 4.0,
    decay: float = HEAD_DECAY,
    self_distilled: bool = False,
    adapters: Adapters | None = None,
) -> History:
    """Train backbone and heads in place; best after a warm-up of the heads by :func:`train_heads`.

    Args:
        model: the backbone. Its adapters are merged into its weights in the end.
        heads: of this backbone; afterwards they belong to the new one.
        texts: token ids ``(n, length)`` and targets of the same shape, see :func:`padded_texts`.
        config: how; its learning rate is that of the adapters.
        head_weight: lambda_0.
        head_rate: learning rate of the heads over that of the adapters.
        decay: see :func:`medusa_loss`.
        self_distilled: whether the backbone wrote the texts itself.
        adapters: of the backbone; the paper's when not given.

    Raises:
        MissingExtra: peft is absent.
        TrainingDiverged: the loss is no finite number.
    """
    trained = [p for p in heads.parameters() if p.requires_grad]
    model.kernels = heads.kernels = TORCH  # which have gradients
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        add_adapters(model, adapters or Adapters())

    def loss(pair: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
        own, extra = pair(ids, targets)
        total: Tensor = own + head_weight * extra
        return total

    groups = [{"params": trained, "learning_rate": head_rate * config.learning_rate}]
    try:
        history = fit(
            _Pair(model, heads, decay, self_distilled),
            texts,
            None,
            config,
            loss=loss,
            parameter_groups=groups,
        )
    finally:
        merge_adapters(model)
    heads.config = dataclasses.replace(heads.config, backbone=backbone_digest(model))
    return history


def padded_texts(data: Distilled) -> TensorDataset:
    """Prompts with their replies: ids and targets, of which prompts and padding are :data:`IGNORED`."""
    rows = [(prompt, reply) for prompt, reply in zip(data.prompts, data.replies, strict=True)]
    length = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    targets = torch.full_like(ids, IGNORED)
    for row, (prompt, reply) in enumerate(rows):
        end = len(prompt) + len(reply)
        ids[row, :end] = torch.tensor([*prompt, *reply])
        targets[row, len(prompt) : end] = torch.tensor(reply)
    return TensorDataset(ids, targets)


class _Pair(nn.Module):
    """Backbone and heads as one module, for the training loop; gives the two terms of the loss."""

    def __init__(self, model: Decoder, heads: MedusaHeads, decay: float, self_distilled: bool) -> None:
        super().__init__()
        self.model, self.heads = model, heads
        self.decay, self.self_distilled = decay, self_distilled

    def forward(
        self, ids: Int[Tensor, "batch length"], targets: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        hidden = self.model.hidden(ids)
        labels = self.heads.draft_ids(head_labels(targets, self.heads.num_heads), outside=IGNORED)
        extra = medusa_loss(self.heads(hidden), labels, self.decay)
        counted = targets[:, 1:] != IGNORED
        logits = self.model.logits(hidden[:, :-1][counted])
        if self.self_distilled:
            return distillation(logits, original_logits(self.model, ids)[:, :-1][counted], 1.0), extra
        return functional.cross_entropy(logits, targets[:, 1:][counted]), extra


def add_adapters(model: Decoder, settings: Adapters) -> None:
    """Give every linear layer in the blocks an adapter that is zero at first; nothing else of it is trained.

    Raises:
        MissingExtra: peft is absent.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtra("peft", "llm") from error
    model.requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(
            r=settings.rank,
            lora_alpha=cast(int, settings.alpha),
            lora_dropout=settings.dropout,
            target_modules=list(LINEAR_LAYERS),
        ),
        model,
    )


@torch.no_grad()
def original_logits(model: Decoder, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocab"]:
    """Logits without the adapters: of the backbone as it was."""
    with _without_adapters(model):
        out: Tensor = model(ids)
    return out


def merge_adapters(model: Decoder) -> None:
    """Add the adapters to the weights and take them away; all weights can be trained again."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "lora_A"):
                layer: Any = child
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
    model.requires_grad_(True)


@contextmanager
def _without_adapters(model: Decoder) -> Iterator[None]:
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
