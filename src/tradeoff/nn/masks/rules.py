"""How masks move while a network trains: which weights are dropped, which are grown, and when.

One update of a layer with ``A`` of ``n`` weights active, after optimizer step ``t`` of those before
``T_end``:

    zeta = drop / 2 * (1 + cos(pi t / T_end))        k = min(floor(zeta A), n - A)
    drop the k active weights of smallest magnitude
    grow the k candidates of largest score

Rules differ in the score (RigL: Evci et al., ICML 2020; SET: Mocanu et al., 2018; sparse momentum: Dettmers
and Zettlemoyer, 2019; exploration: Liu et al., ICML 2021, and Huang et al., DAC 2023).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import pydantic
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from .densities import Distribution


@dataclass(frozen=True)
class Layer:
    """What a rule may look at to score the positions of one weight, all tensors of the weight's shape.

    Attributes:
        gradient: of the loss, at all positions, before masking; None where the rule asks for none.
        momentum: running mean of that gradient, for rules that keep one.
        visits: mask snapshots in which each position was active, the first included.
        step: optimizer steps done.
        generator: of this layer and update.
    """

    name: str
    weight: Float[Tensor, "*shape"]
    gradient: Float[Tensor, "*shape"] | None
    momentum: Float[Tensor, "*shape"] | None
    visits: Int[Tensor, "*shape"]
    step: int
    generator: torch.Generator


class SparseRule(pydantic.BaseModel):
    """How sparse a network is from its first step on.

    Attributes:
        density: part of the maskable weights that is active, over all layers.
        init: how they are shared out over layers; see :func:`tradeoff.nn.masks.active_counts`.
        rescale: multiply a layer's first weights by ``1 / sqrt(its density)``, so that sums over few inputs
            have the variance of sums over all. Needed at densities of a few percent without normalization.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    density: float = Field(gt=0, le=1)
    init: Distribution = "erk"
    rescale: bool = False


class Static(SparseRule):
    """A random mask that never changes."""


class DropAndGrow(SparseRule):
    """Base of the rules that move their mask.

    Attributes:
        update_every: optimizer steps between two updates.
        drop: part of a layer's active weights that the first update would move; falls to 0 by a cosine.
        end: part of all steps after which the mask stays.
        allow_regrow: whether what an update drops may be grown by the same update; it then keeps its value.
    """

    gradients: ClassVar[Literal["never", "updates", "always"]] = "never"
    """In which steps the rule needs the gradient of inactive weights."""

    update_every: int = Field(default=100, ge=1)
    drop: float = Field(default=0.3, gt=0, le=1)
    end: float = Field(default=0.75, gt=0, le=1)
    allow_regrow: bool = True

    def due(self, step: int, total: int) -> bool:
        """Whether the mask moves after ``step`` of ``total`` optimizer steps."""
        return step % self.update_every == 0 and step < self.end * total

    def moved(self, active: int, size: int, step: int, total: int) -> int:
        """How many of a layer's ``active`` weights an update after ``step`` moves."""
        fraction = self.drop / 2 * (1 + math.cos(math.pi * step / (self.end * total)))
        return min(math.floor(fraction * active), size - active)

    def scores(self, layer: Layer) -> Float[Tensor, "*shape"]:
        """What growth maximizes, at every position."""
        raise NotImplementedError


class SET(DropAndGrow):
    """Sparse evolutionary training: grow at random positions."""

    def scores(self, layer: Layer) -> Float[Tensor, "*shape"]:
        """Uniform random numbers."""
        return torch.rand(layer.weight.shape, generator=layer.generator).to(layer.weight.device)


class RigL(DropAndGrow):
    """Grow where the gradient of the current batch is largest."""

    gradients: ClassVar[Literal["never", "updates", "always"]] = "updates"

    def scores(self, layer: Layer) -> Float[Tensor, "*shape"]:
        """``|dL/dW|``."""
        assert layer.gradient is not None
        return layer.gradient.abs()


class SparseMomentum(DropAndGrow):
    """Grow where a running mean of the gradient is largest; needs the gradient of all weights in every step.

    Attributes:
        decay: of the running mean ``m = decay m + dL/dW``.
    """

    gradients: ClassVar[Literal["never", "updates", "always"]] = "always"

    decay: float = Field(default=0.9, ge=0, lt=1)

    def scores(self, layer: Layer) -> Float[Tensor, "*shape"]:
        """``|m|``."""
        assert layer.momentum is not None
        return layer.momentum.abs()


class Explore(DropAndGrow):
    """RigL with a bonus for positions that were seldom active: ``|dL/dW| + bonus ln(t) / (visits + eps)``.

    Attributes:
        bonus: weight of the second term; 0 is RigL.
        eps: keeps the bonus of positions that were never active finite.
        decay: factor of the bonus after each ``update_every`` steps.
    """

    gradients: ClassVar[Literal["never", "updates", "always"]] = "updates"

    bonus: float = Field(default=1e-3, ge=0)
    eps: float = Field(default=1.0, gt=0)
    decay: float = Field(default=1.0, gt=0, le=1)

    def scores(self, layer: Layer) -> Float[Tensor, "*shape"]:
        """The sum of the class's docstring."""
        assert layer.gradient is not None
        bonus = self.bonus * self.decay ** (layer.step // self.update_every - 1)
        return layer.gradient.abs() + bonus * math.log(max(layer.step, 2)) / (layer.visits + self.eps)


def drop_and_grow(
    weight: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    scores: Float[Tensor, "*shape"],
    count: int,
    rank: Int[Tensor, "*shape"],
    allow_regrow: bool,
) -> Bool[Tensor, "*shape"]:
    """The mask after ``count`` weights were dropped and as many grown.

    Args:
        weight: its magnitudes decide what is dropped.
        scores: the largest are grown.
        rank: a permutation; where values are equal, the position of lower rank is taken.
        allow_regrow: whether dropped positions are candidates.
    """
    lowest = torch.full_like(weight, -torch.inf)
    kept = mask & ~_largest(torch.where(mask, -weight.abs(), lowest), count, rank)
    candidates = ~kept if allow_regrow else ~mask
    return kept | _largest(torch.where(candidates, scores, lowest), count, rank)


def _largest(
    values: Float[Tensor, "*shape"], count: int, rank: Int[Tensor, "*shape"]
) -> Bool[Tensor, "*shape"]:
    """Exactly ``count`` positions of largest value, by rank where they tie; without sorting everything."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = torch.topk(values.flatten(), count).values[-1]
    chosen = values > threshold
    ties = torch.nonzero((values == threshold).flatten()).flatten()
    missing = count - int(chosen.sum())
    chosen.view(-1)[ties[rank.flatten()[ties].argsort()[:missing]]] = True
    return chosen
