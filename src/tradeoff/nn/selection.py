"""Straight-through selection: discrete choices in the forward pass, a real-valued score behind each.

A selection has two halves. The *rule* turns scores into a boolean choice: :func:`above` a threshold,
:func:`top_k`, or :func:`hysteresis`, which remembers its last choice. The *gradient* lets the scores be
trained although the rule is a step: :func:`straight_through` returns the choice and sends the gradient
back to the scores, weighted by a slope of the caller's taste.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

Slope = Callable[[Tensor], Tensor]
"""Maps scores to the factor that their gradient is multiplied by, elementwise."""


def softplus_slope(scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``log(1 + exp(score))``: a score far below zero stops moving (AutoReP, ICCV 2023)."""
    return functional.softplus(scores)


def hard_tanh_slope(scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """One within [-1, 1] and zero outside: the window of binarized networks (Hubara et al., 2016)."""
    return (scores.abs() <= 1).to(scores.dtype)


def sigmoid_slope(temperature: float = 1.0) -> Slope:
    """Return the slope of ``sigmoid(score / temperature)``.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")

    def slope(scores: Tensor) -> Tensor:
        probability = torch.sigmoid(scores / temperature)
        return probability * (1 - probability) / temperature

    return slope


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, choice: Tensor, slope: Slope) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.slope = slope
        return choice.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (scores,) = ctx.saved_tensors
        return gradients[0] * ctx.slope(scores), None, None


def straight_through(
    scores: Float[Tensor, "*shape"], choice: Tensor, slope: Slope = softplus_slope
) -> Float[Tensor, "*shape"]:
    """Return ``choice`` as numbers; its gradient reaches ``scores`` multiplied by ``slope(scores)``.

    Args:
        scores: what is trained.
        choice: what the forward pass uses, of the same shape: booleans, or values such as -1 and +1.
        slope: the stand-in for the derivative of the choice.

    Example:
        >>> scores = torch.tensor([-1.0, 2.0], requires_grad=True)
        >>> straight_through(scores, above(scores)).detach()
        tensor([0., 1.])
    """
    if choice.shape != scores.shape:
        raise ValueError(f"choice has shape {tuple(choice.shape)}, scores have {tuple(scores.shape)}")
    result: Tensor = _StraightThrough.apply(scores, choice, slope)  # type: ignore[no-untyped-call]
    return result


def above(scores: Float[Tensor, "*shape"], threshold: float = 0.0) -> Bool[Tensor, "*shape"]:
    """Select the scores strictly above ``threshold``."""
    return scores.detach() > threshold


def top_k(scores: Float[Tensor, "*shape"], count: int) -> Bool[Tensor, "*shape"]:
    """Select exactly the ``count`` largest scores; of equal scores the earlier one in memory order wins.

    Raises:
        ValueError: if ``count`` is negative or larger than the number of scores.
    """
    if not 0 <= count <= scores.numel():
        raise ValueError(f"cannot select {count} of {scores.numel()} scores")
    flat = scores.detach().reshape(-1)
    order = torch.sort(flat, descending=True, stable=True).indices
    chosen = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    chosen[order[:count]] = True
    return chosen.reshape(scores.shape)


def hysteresis(
    scores: Float[Tensor, "*shape"], selected: Bool[Tensor, "*shape"], threshold: float
) -> Bool[Tensor, "*shape"]:
    """Return the next selection: a selected score leaves at ``-threshold``, others enter above ``threshold``.

    ``m <- m [s > -t] + (1 - m) [s > t]`` (AutoReP, ICCV 2023). With ``threshold=0`` this is :func:`above`.
    """
    scores = scores.detach()
    return torch.where(selected, scores > -threshold, scores > threshold)


class HysteresisGate(nn.Module):
    """A trainable selection with memory: scores, and the mask that follows them with hysteresis.

    The forward pass returns the mask as numbers, with the straight-through gradient; it does not change
    the mask. Call :meth:`update` once per training step.

    Args:
        shape: shape of the scores. They start uniform in (0, 1), with everything selected.
        threshold: half the width of the hysteresis band.
        slope: see :func:`straight_through`.

    Raises:
        ValueError: if the threshold is negative.
    """

    mask: Tensor

    def __init__(self, shape: tuple[int, ...], threshold: float, slope: Slope = softplus_slope) -> None:
        super().__init__()
        if threshold < 0:
            raise ValueError(f"hysteresis threshold must not be negative, got {threshold}")
        self.scores = nn.Parameter(torch.rand(shape))
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool))
        self.threshold = threshold
        self.slope = slope

    def forward(self) -> Tensor:
        return straight_through(self.scores, self.mask, self.slope)

    @torch.no_grad()
    def update(self) -> int:
        """Move the mask to where the scores say; return how many positions changed."""
        selected = hysteresis(self.scores, self.mask, self.threshold)
        flips = int((selected != self.mask).sum())
        self.mask.copy_(selected)
        return flips
