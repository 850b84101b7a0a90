"""Medusa-1: heads learn from the hidden states of a backbone that stays as it is."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from tradeoff.nn.decoder import TORCH
from tradeoff.nn.decoder.kernels import at_least_float32
from tradeoff.nn.fit import FitConfig, History, fit

from .distillation import IGNORED, Distilled
from .errors import InvalidSetting
from .heads import MedusaHeads

HEAD_DECAY = 0.8
"""Weight of head k's loss is this to the k (section 2.2.1)."""


def head_training(epochs: int = 4, **changes: object) -> FitConfig:
    """AdamW at 1e-3, one cycle, 256 positions a step; ``changes`` replace values."""
    values: dict[str, object] = {
        "epochs": epochs,
        "batch_size": 256,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "schedule": "one_cycle",
        "warmup_fraction": 0.1,
    }
    return FitConfig.model_validate(values | changes)


def medusa_loss(
    logits: Float[Tensor, "heads *rows drafts"], labels: Int[Tensor, "*rows heads"], decay: float = HEAD_DECAY
) -> Float[Tensor, ""]:
    """``sum_k decay^k CE_k``, each the mean over the positions whose label counts.

    Labels are rows of the heads' table; negative ones do not count.
    """
    total = logits.new_zeros((), dtype=at_least_float32(logits).dtype)
    for k, (guess, label) in enumerate(zip(logits, labels.unbind(-1), strict=True), start=1):
        label = label.flatten()
        summed = functional.cross_entropy(
            at_least_float32(guess.flatten(0, -2)), label, ignore_index=IGNORED, reduction="sum"
        )
        total = total + decay**k * summed / (label != IGNORED).sum().clamp(min=1)
    return total


def head_labels(targets: Int[Tensor, "batch length"], num_heads: int) -> Int[Tensor, "batch length heads"]:
    """Labels of all heads at every position of texts: head k at t predicts token t+k+1.

    Args:
        targets: token ids; :data:`IGNORED` where a token is prompt or padding, which is no label.
        num_heads: K.
    """
    length = targets.shape[1]
    found = targets.new_full((*targets.shape, num_heads), IGNORED)
    for k in range(1, num_heads + 1):
        found[:, : max(0, length - k - 1), k - 1] = targets[:, k + 1 :]
    return found


def train_heads(
    heads: MedusaHeads, data: Distilled, config: FitConfig | None = None, *, decay: float = HEAD_DECAY
) -> History:
    """Train heads in place on continuations of their backbone.

    Args:
        heads: to train.
        data: continuations and their states; see :func:`self_distill`.
        config: how; :func:`head_training` when not given.
        decay: see :func:`medusa_loss`.

    Raises:
        InvalidSetting: no reply is long enough to hold a label.
        TrainingDiverged: the loss is no finite number.
    """
    heads.kernels = TORCH  # which has gradients
    labels = heads.draft_ids(data.labels(heads.num_heads), outside=IGNORED)
    useful = (labels != IGNORED).any(1)
    if not useful.any():
        raise InvalidSetting(f"none of {data.num_tokens} tokens is a label of a head")

    def loss(model: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
        return medusa_loss(model(hidden), labels, decay)

    train = TensorDataset(data.hidden[useful].to(heads.table.dtype), labels[useful])
    return fit(heads, train, None, config or head_training(), loss=loss)


@torch.inference_mode()
def guess_ranks(
    heads: MedusaHeads, data: Distilled, top: int = 10, batch_size: int = 1024
) -> Int[Tensor, "tokens heads"]:
    """Place of the backbone's own token among each head's ``top`` guesses, from 0; -1 where it is not there.

    A token outside the draft vocabulary is not there, nor is one behind the end of a reply.
    """
    labels = data.labels(heads.num_heads)
    device = heads.table.device
    found = torch.full_like(labels, -1)
    for first in range(0, data.num_tokens, batch_size):
        rows = slice(first, first + batch_size)
        guesses = heads.guesses(data.hidden[rows].to(heads.table), min(top, heads.table.shape[-2]))
        for k, ids in enumerate(guesses):
            hits = ids == labels[rows, k, None].to(device)
            found[rows, k] = torch.where(hits.any(-1), hits.int().argmax(-1), -1).cpu()
    return found


def head_accuracy(ranks: Int[Tensor, "tokens heads"], data: Distilled, top: int = 1) -> list[float]:
    """Part of the labels of each head that is among its first ``top`` guesses."""
    counted = (data.labels(ranks.shape[1]) != IGNORED).sum(0).clamp(min=1)
    hits = ((ranks >= 0) & (ranks < top)).sum(0)
    return (hits / counted).tolist()
