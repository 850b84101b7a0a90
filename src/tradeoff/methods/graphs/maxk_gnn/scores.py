"""Scores of node classifiers: one class a node, or several labels."""

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Scoring = Literal["accuracy", "micro_f1", "roc_auc"]


def score(logits: Float[Tensor, "n classes"], y: Shaped[Tensor, "n ..."], scoring: Scoring) -> float:
    """``accuracy``; ``micro_f1`` of labels whose logit is above 0 (Yelp); ``roc_auc``, the mean over labels
    that occur with both values (ogbn-proteins)."""
    if scoring == "accuracy":
        return float((logits.argmax(1) == y).double().mean())
    if scoring == "micro_f1":
        predicted, true = logits > 0, y > 0.5
        hits = int((predicted & true).sum())
        return 2 * hits / max(1, int(predicted.sum()) + int(true.sum()))
    from sklearn.metrics import roc_auc_score

    both = ((y > 0.5).any(0) & (y < 0.5).any(0)).nonzero()[:, 0]
    areas = [roc_auc_score(y[:, label].cpu() > 0.5, logits[:, label].cpu()) for label in both.tolist()]
    return float(torch.tensor(areas).mean()) if areas else 0.0
