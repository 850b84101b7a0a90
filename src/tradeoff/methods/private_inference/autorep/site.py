"""The activation that AutoReP puts in place of a ReLU while positions and polynomials are being learned."""

import warnings
from typing import Literal

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tradeoff.nn.polynomial import (
    ChannelStatistics,
    PolynomialDivergence,
    check_site_shape,
    distribution_aware,
    gated_relu,
)
from tradeoff.nn.selection import HysteresisGate

SMALLEST_STD = 1e-2
"""Standard deviations are raised to this before they divide: a constant channel has none."""

RELEASED_SMALLEST_VARIANCE = 0.5
RELEASED_SCALE = (1 / 5, 1.0, 1 / 10)
RELEASED_SQUARE_SCALE = 0.1


class ReplacementConfig(pydantic.BaseModel):
    """How ReLUs are replaced.

    Attributes:
        polynomial: what a dropped ReLU becomes. ``dapa``: the least-squares polynomial for the measured
            input distribution, then trained. Two fixed ones serve as baselines: ``identity`` (p(x) = x) and
            ``square`` (p(x) = x^2 + x).
        degree: of the DaPa polynomial, 1 to 4.
        hysteresis: half the width of the band within which a ReLU keeps its state. It acts when it is not
            far below the scores' learning rate.
        calib_iters: training steps during which the input distribution is measured.
        refresh: steps between two refits of the polynomial within that time; afterwards it is trained only.
        quad_scale: factor of the quadratic coefficient at the start, in (0, 1]; damps deep networks.
        ramp_iters: steps over which that factor grows to 1; with 0 it stays.
        clip_c2: largest magnitude of the quadratic coefficient in use.
        compat: ``released`` reproduces the published code's start: the running variance, at least 0.5, in
            place of the standard deviation, c0 / 5, c2 / 10, and a further factor 0.1 on x^2.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    polynomial: Literal["dapa", "identity", "square"] = "dapa"
    degree: int = pydantic.Field(default=2, ge=1, le=4)
    hysteresis: float = pydantic.Field(default=0.003, ge=0)
    calib_iters: int = pydantic.Field(default=500, ge=1)
    refresh: int = pydantic.Field(default=10, ge=1)
    quad_scale: float = pydantic.Field(default=1.0, gt=0, le=1)
    ramp_iters: int = pydantic.Field(default=0, ge=0)
    clip_c2: float | None = pydantic.Field(default=None, gt=0)
    compat: Literal["released"] | None = None

    @pydantic.model_validator(mode="after")
    def _released_is_quadratic(self) -> "ReplacementConfig":
        if self.compat and (self.degree != 2 or self.polynomial != "dapa" or self.quad_scale != 1):
            raise ValueError("compat='released' needs polynomial='dapa', degree=2 and quad_scale=1")
        return self

    def start(self, channels: int) -> Float[Tensor, "terms channels"]:
        """Return the coefficients before anything was measured (identity for ``dapa``)."""
        rows = {
            "identity": [0.0, 1.0],
            "square": [0.0, 1.0, 1.0],
            "dapa": [0.0, 1.0] + [0.0] * (self.degree - 1),
        }
        return torch.tensor(rows[self.polynomial]).unsqueeze(1).repeat(1, channels)


class ReplaceableReLU(nn.Module):
    """``y = h ReLU(x) + (1 - h) p(x)`` with a learned choice ``h`` per position.

    In training mode each forward pass first moves the choice by hysteresis, and during calibration measures
    its input and refits the polynomial. In evaluation mode nothing changes.

    Args:
        shape: of one image at this site, (channels, height, width) or (features,).
        config: see :class:`ReplacementConfig`.
        site: name for error messages and tables.
    """

    iteration: Tensor
    flips: Tensor

    def __init__(self, shape: tuple[int, ...], config: ReplacementConfig, site: str = "") -> None:
        super().__init__()
        self.config = config
        self.site = site
        self.gate = HysteresisGate(shape, config.hysteresis)
        trainable = config.polynomial == "dapa"
        self.coefficients = nn.Parameter(config.start(shape[0]), requires_grad=trainable)
        self.statistics = ChannelStatistics(shape[0])
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.register_buffer("flips", torch.zeros((), dtype=torch.int64))
        self._warned = False

    @property
    def mask(self) -> Tensor:
        """True where the ReLU is kept."""
        return self.gate.mask

    @property
    def selecting(self) -> bool:
        """Whether the choice still moves."""
        return self.gate.scores.requires_grad

    def freeze(self) -> None:
        """Keep the choice as it is; scores get no more gradients."""
        self.gate.scores.requires_grad_(False)
        self.gate.scores.grad = None

    def forward(self, x: Float[Tensor, "batch channels ..."]) -> Float[Tensor, "batch channels ..."]:
        check_site_shape(self.site, self.mask, x)
        if self.training:
            self._advance(x)
        gate = self.gate() if self.selecting else self.mask
        return gated_relu(x, gate, self.effective_coefficients())

    def effective_coefficients(self) -> Float[Tensor, "terms channels"]:
        """Return the coefficients in use: the trained ones with the stabilizers applied."""
        scale, clip = self._square_scale(), self.config.clip_c2
        if len(self.coefficients) < 3 or (scale == 1 and clip is None):
            return self.coefficients
        low, square, high = self.coefficients[:2], self.coefficients[2:3] * scale, self.coefficients[3:]
        if clip is not None:
            square = square.clamp(-clip, clip)
        return torch.cat([low, square, high])

    def _square_scale(self) -> float:
        if self.config.compat:
            return RELEASED_SQUARE_SCALE
        start, ramp = self.config.quad_scale, self.config.ramp_iters
        if start == 1 or not ramp:
            return start
        return start + (1 - start) * min(1.0, int(self.iteration) / ramp)

    @torch.no_grad()
    def _advance(self, x: Tensor) -> None:
        if self.selecting:
            self.flips += self.gate.update()
        if self.config.polynomial == "dapa" and int(self.iteration) < self.config.calib_iters:
            self.statistics.update(x)
            if int(self.iteration) % self.config.refresh == 0:
                self.coefficients.copy_(self._fit())
        self.iteration += 1

    def _fit(self) -> Tensor:
        mean, variance = self.statistics.mean, self.statistics.variance
        broken = ~(torch.isfinite(mean) & torch.isfinite(variance))
        if bool(broken.any()):
            channel = int(torch.nonzero(broken)[0])
            raise PolynomialDivergence(self.site, channel, float(variance[channel].sqrt()), float("nan"))
        if self.config.compat:
            spread = variance.clamp(min=RELEASED_SMALLEST_VARIANCE)
            return distribution_aware(mean, spread, 2) * mean.new_tensor(RELEASED_SCALE).unsqueeze(1)
        std = variance.sqrt()
        if not self._warned and bool((std < SMALLEST_STD).any()):
            self._warned = True
            constant = torch.nonzero(std < SMALLEST_STD).flatten().tolist()
            warnings.warn(
                f"{self.site}: channels {constant} are (nearly) constant; their standard deviation is taken "
                f"as {SMALLEST_STD}",
                stacklevel=2,
            )
        return distribution_aware(mean, std.clamp(min=SMALLEST_STD), self.config.degree)

    def extra_repr(self) -> str:
        return (
            f"{int(self.mask.sum())} of {self.mask.numel()} ReLUs kept, polynomial={self.config.polynomial}"
        )
