"""Structural linearization: which activations stay, joint by joint, so that all joints keep equally many.

A layer has two activation positions and a score for each position and joint. Whether a layer keeps two, one
or no activation is decided by sums over all joints, so it is the same for every joint and a multiplication
level really goes; at which of the two positions a joint has its single one is its own choice. From LinGCN
(Peng et al., NeurIPS 2023).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tradeoff.nn.selection import softplus_slope, straight_through

Rule = Literal["structural", "layer-wise", "unstructured"]
RULES = ("structural", "layer-wise", "unstructured")
FIRST_SCORES = (0.0005, 0.001)


def structural(scores: Float[Tensor, "2 joints"]) -> Bool[Tensor, "2 joints"]:
    """LinGCN's choice: all joints' larger scores decide together, and so do their smaller ones.

    Of equal scores the first position's counts as the smaller one.
    """
    scores = scores.detach()
    smaller, larger = scores.amin(0), scores.amax(0)
    keep_larger, keep_smaller = larger.sum() > 0, smaller.sum() > 0
    second_is_larger = scores[1] >= scores[0]
    second = torch.where(second_is_larger, keep_larger, keep_smaller)
    first = torch.where(second_is_larger, keep_smaller, keep_larger)
    return torch.stack([first, second])


def layer_wise(scores: Float[Tensor, "2 joints"]) -> Bool[Tensor, "2 joints"]:
    """Each position stays or goes for all joints together, as in CryptoGCN."""
    return (scores.detach().sum(1, keepdim=True) > 0).expand_as(scores)


def unstructured(scores: Float[Tensor, "2 joints"]) -> Bool[Tensor, "2 joints"]:
    """Each joint and position by itself: sparse to look at, but no level is saved while one joint uses it."""
    return scores.detach() > 0


_CHOICES = {"structural": structural, "layer-wise": layer_wise, "unstructured": unstructured}


class Gates(nn.Module):
    """The gates of one layer, (2, joints) zeros and ones, trained through their scores or fixed.

    The gradient of a gate reaches its score multiplied by ``softplus(score)``.
    """

    fixed: Tensor

    def __init__(self, joints: int, rule: Rule = "structural") -> None:
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"a rule is one of {', '.join(RULES)}, not {rule!r}")
        self.rule = rule
        low, high = FIRST_SCORES
        self.scores = nn.Parameter(low + (high - low) * torch.rand(2, joints), requires_grad=False)
        self.register_buffer("fixed", torch.ones(2, joints))

    def choice(self) -> Bool[Tensor, "2 joints"]:
        """What the scores say now."""
        return _CHOICES[self.rule](self.scores)

    def forward(self) -> Float[Tensor, "2 joints"]:
        if self.scores.requires_grad:
            return straight_through(self.scores, self.choice(), softplus_slope)
        return self.fixed

    def learn(self) -> None:
        """Begin to train the scores."""
        self.scores.requires_grad_(True)

    @torch.no_grad()
    def freeze(self) -> None:
        """Keep the choice as it is."""
        if self.scores.requires_grad:
            self.fixed.copy_(self.choice())
            self.scores.requires_grad_(False)


def effective(gates: Float[Tensor, "layers 2 joints"]) -> int:
    """Activation levels that gates cost: by layer, the most that any joint has."""
    return int(gates.sum(1).amax(1).sum())
