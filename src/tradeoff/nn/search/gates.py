"""Sites that are a mixture of what they may become: ``y = sum_k softmax(alpha)_k branch_k(x)``."""

from __future__ import annotations

from typing import Literal

import pydantic
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn.polynomial import StraightThroughQuadratic, evaluate
from tradeoff.nn.surgery import PoolingSite, Site


class GateConfig(pydantic.BaseModel):
    """What sites may become, and how the quadratics start.

    Attributes:
        identity: whether an activation may also pass unchanged.
        groups: of neighboring channels that choose for themselves; 1 lets a site choose as a whole.
        scale, constant, start, clip, ramp_steps, per_channel: of
            :class:`tradeoff.nn.polynomial.StraightThroughQuadratic`.
        learning_rate_multiplier: of the quadratics' numbers. They start as the identity, and in a short
            training at the rate of the weights a deep network of them stays linear.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    identity: bool = False
    groups: int = pydantic.Field(default=1, ge=1)
    scale: pydantic.PositiveFloat | Literal["sqrt_n"] = 1.0
    constant: float = pydantic.Field(default=10.0, gt=0)
    start: tuple[float, float, float] = (0.005, 1.0, 0.0)
    clip: float | None = pydantic.Field(default=None, gt=0)
    ramp_steps: int = pydantic.Field(default=0, ge=0)
    per_channel: bool = False
    learning_rate_multiplier: float = pydantic.Field(default=1.0, gt=0)

    def quadratic(self, shape: tuple[int, ...], site: str) -> StraightThroughQuadratic:
        """The quadratic of a site."""
        return StraightThroughQuadratic(
            shape,
            site,
            scale=self.scale,
            constant=self.constant,
            start=self.start,
            clip=self.clip,
            ramp_steps=self.ramp_steps,
            per_channel=self.per_channel,
        )


class Gate(nn.Module):
    """A site that chooses, for each group of its channels, one of its branches.

    ``alpha`` gets no gradient in the training of weights: who searches asks for it
    (:class:`tradeoff.nn.search.ArchitectureStep`).

    Attributes:
        site: its name.
        choices: names of the branches.
        alpha: (groups, choices), zero at the start: all branches have equal parts.
        temperature: of the softmax.
    """

    def __init__(self, site: str, choices: tuple[str, ...], groups: int = 1) -> None:
        super().__init__()
        self.site, self.choices = site, choices
        self.alpha = nn.Parameter(torch.zeros(groups, len(choices)), requires_grad=False)
        self.temperature = 1.0

    def parts(self) -> Float[Tensor, "groups choices"]:
        """The part that each branch has in the mixture."""
        return functional.softmax(self.alpha / self.temperature, dim=1)

    def choice(self) -> tuple[str, ...]:
        """The branch of largest ``alpha`` of each group; of equal ones the first."""
        return tuple(self.choices[index] for index in self.alpha.argmax(dim=1).tolist())

    def extra_repr(self) -> str:
        return f"{self.site}: {', '.join(self.choice())}"


class GatedActivation(Gate):
    """ReLU, a quadratic and, if asked for, the identity.

    Args:
        site: where it stands.
        config: see :class:`GateConfig`; a site with fewer channels than groups has a group for each.
    """

    group: Int64[Tensor, " channels"]

    def __init__(self, site: Site, config: GateConfig) -> None:
        channels = site.shape[0]
        choices = ("relu", "poly", "identity") if config.identity else ("relu", "poly")
        super().__init__(site.name, choices, min(config.groups, channels))
        self.shape = site.shape
        self.quadratic = config.quadratic(site.shape, site.name)
        self.register_buffer("group", channel_groups(channels, len(self.alpha)), persistent=False)

    def forward(self, x: Float[Tensor, "batch channels *rest"]) -> Float[Tensor, "batch channels *rest"]:
        part = self.parts()[self.group].T.reshape(len(self.choices), -1, *([1] * (x.dim() - 2)))
        mixed: Tensor = part[0] * functional.relu(x) + part[1] * self.quadratic(x)
        return mixed + part[2] * x if len(self.choices) == 3 else mixed


class GatedPooling(Gate):
    """Max or average pooling of one window."""

    def __init__(self, site: PoolingSite) -> None:
        super().__init__(site.name, ("max", "average"))
        self.shape = site.shape
        self.maximum = nn.MaxPool2d(site.kernel, site.stride, site.padding)
        self.average = nn.AvgPool2d(site.kernel, site.stride, site.padding)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Tensor:
        part = self.parts()[0]
        mixed: Tensor = part[0] * self.maximum(x) + part[1] * self.average(x)
        return mixed


class GroupedActivation(nn.Module):
    """The hard choice of a site whose channel groups chose differently: ReLU, quadratic or identity.

    Args:
        kinds: the choice of each channel, an index into ``("relu", "poly", "identity")``.
        quadratic: of the channels that chose it.
    """

    kinds: Int64[Tensor, " channels"]

    def __init__(self, kinds: Int64[Tensor, " channels"], quadratic: StraightThroughQuadratic) -> None:
        super().__init__()
        self.site = quadratic.site
        self.quadratic = quadratic
        self.register_buffer("kinds", kinds)

    def effective_coefficients(self) -> Float[Tensor, "3 channels"]:
        """Of the channels without ReLU: the quadratic's, or those of the identity."""
        identity = self.quadratic.weights.new_tensor([[0.0], [1.0], [0.0]])
        return torch.where(self.kinds == 2, identity, self.quadratic.effective_coefficients())

    def forward(self, x: Float[Tensor, "batch channels *rest"]) -> Float[Tensor, "batch channels *rest"]:
        rectified = (self.kinds == 0).reshape(-1, *([1] * (x.dim() - 2)))
        return torch.where(rectified, functional.relu(x), evaluate(x, self.effective_coefficients()))


def channel_groups(channels: int, groups: int) -> Int64[Tensor, " channels"]:
    """The group of each channel: neighbors, in groups of equal size as far as that goes."""
    sizes = [len(part) for part in torch.arange(channels).tensor_split(groups)]
    return torch.repeat_interleave(torch.arange(groups), torch.tensor(sizes))
