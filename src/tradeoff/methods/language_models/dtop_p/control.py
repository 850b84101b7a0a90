"""The control law: a proportional-integral controller that moves the threshold of top-p routing."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .errors import ControlError, ControlWarning

ErrorScale = Literal["experts", "target"]
GAINS: dict[ErrorScale, tuple[float, float]] = {"experts": (0.5, 0.2), "target": (0.05, 0.05)}
"""Default proportional and integral gain for each scale of the error."""
HIGHEST = 0.999
"""Highest threshold: sums of probabilities round to less than one, and all experts would be active."""
FROZEN_OVER = 100
"""Steps over which the threshold of evaluation is averaged."""


@dataclass(frozen=True)
class ControlConfig:
    """How the threshold is controlled.

    Attributes:
        control: ``global`` holds the mean over all layers by one threshold; ``layer`` holds every layer by
            its own, which costs some quality and makes the work of each layer predictable.
        proportional: gain K_p; None for the default of the error's scale.
        integral: gain K_i; likewise.
        error_scale: what the error is divided by: the number of experts, or the target, which is faster where
            the target is a small part of the experts. None for ``target`` below an eighth.
        first_threshold: p_0; None for max(target / experts, 0.1), what a flat router needs.
        beta: of the exponential mean of the active count that the controller reads; 0 for the last step's.

    Raises:
        ControlError: a value is out of range.
    """

    control: Literal["global", "layer"] = "global"
    proportional: float | None = None
    integral: float | None = None
    error_scale: ErrorScale | None = None
    first_threshold: float | None = None
    beta: float = 0.0

    def __post_init__(self) -> None:
        if self.control not in ("global", "layer") or self.error_scale not in (None, "experts", "target"):
            raise ControlError(f"control {self.control!r} with errors in units of {self.error_scale!r}")
        for name in ("proportional", "integral"):
            gain = getattr(self, name)
            if gain is not None and not 0 <= gain < math.inf:
                raise ControlError(f"the {name} gain is {gain}; it must be finite and not negative")
        if self.first_threshold is not None and not 0 < self.first_threshold <= 1:
            raise ControlError(f"the first threshold is {self.first_threshold}; it lies in (0, 1]")
        if not 0 <= self.beta < 1:
            raise ControlError(f"beta is {self.beta}; it lies in [0, 1)")


class ThresholdControl(nn.Module):
    """``p = clip(p_0 + K_p e + K_i I)`` with ``I`` the sum of the errors ``e = (T - active) / scale``.

    Too few active experts raise the threshold. Where the clip is active, errors that would push further do
    not enter the sum (anti-windup). Its state is in buffers, and so in every checkpoint of the model.

    Args:
        target: experts a token shall pass on average, T.
        experts: of a layer, E.
        config: gains and scales.
        loops: thresholds that are controlled, each by its own count.

    Attributes:
        threshold: p of every loop.
        error_sum: I of every loop.
        average: the active count as the law reads it; NaN before the first step.
        recent: the last thresholds, a ring.
        steps: updates so far.

    Raises:
        ControlError: the target is not within 1 to E.
    """

    threshold: Tensor
    error_sum: Tensor
    average: Tensor
    recent: Tensor
    steps: Tensor

    def __init__(self, target: float, experts: int, config: ControlConfig, loops: int = 1) -> None:
        super().__init__()
        self.experts = experts
        self.target = target
        scale = config.error_scale or ("experts" if 8 * target >= experts else "target")
        proportional, integral = GAINS[scale]
        self.error_scale: ErrorScale = scale
        self.proportional = proportional if config.proportional is None else config.proportional
        self.integral = integral if config.integral is None else config.integral
        self.beta = config.beta
        self.lowest = 1 / (2 * experts)
        self.first = config.first_threshold or max(target / experts, 0.1)
        self.register_buffer("threshold", torch.empty(loops))
        self.register_buffer("error_sum", torch.empty(loops))
        self.register_buffer("average", torch.empty(loops))
        self.register_buffer("recent", torch.empty(FROZEN_OVER, loops))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.reset()

    @property
    def target(self) -> float:
        """Experts a token shall pass on average; it may be changed at any time."""
        return self._target

    @target.setter
    def target(self, target: float) -> None:
        if not 1 <= target <= self.experts:
            raise ControlError(
                f"a target of {target} active of {self.experts} experts; expected 1 to {self.experts}"
            )
        self._target = target

    @torch.no_grad()
    def reset(self) -> None:
        """Start anew at p_0."""
        self.threshold.fill_(min(max(self.first, self.lowest), HIGHEST))
        self.error_sum.zero_()
        self.average.fill_(float("nan"))
        self.recent.zero_()
        self.steps.zero_()

    @torch.no_grad()
    def update(self, active: Float[Tensor, " loops"]) -> Float[Tensor, " loops"]:
        """One step of the law; returns the thresholds. NaN where nothing was counted: that loop rests."""
        active = active.to(self.threshold)
        mean = torch.where(self.average.isnan(), active, self.average.lerp(active, 1 - self.beta))
        error = (self.target - mean) / (self.experts if self.error_scale == "experts" else self.target)
        wanted = self.first + self.proportional * error + self.integral * (self.error_sum + error)
        pushes = ((wanted > HIGHEST) & (error > 0)) | ((wanted < self.lowest) & (error < 0))
        total = torch.where(pushes, self.error_sum, self.error_sum + error)
        threshold = wanted.clamp(self.lowest, HIGHEST)
        rests = active.isnan()
        self.average.copy_(torch.where(rests, self.average, mean))
        self.error_sum.copy_(torch.where(rests, self.error_sum, total))
        self.threshold.copy_(torch.where(rests, self.threshold, threshold))
        self.recent[self.steps % FROZEN_OVER] = self.threshold
        self.steps += 1
        return self.threshold

    @property
    def frozen(self) -> Float[Tensor, " loops"]:
        """Thresholds of evaluation: the mean of the last 100 steps; p_0 before the first."""
        known = min(int(self.steps), FROZEN_OVER)
        return self.recent[:known].mean(0) if known else self.threshold

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ThresholdControl":
        """Move with the model, but stay in float32: half types would round the threshold."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        own = {f"{prefix}{name}": buffer for name, buffer in self._buffers.items()}
        if not own.keys() <= state_dict.keys():
            warnings.warn(
                f"the checkpoint has no state of the controller ({prefix}*); "
                f"it starts at its first threshold, {self.first:.4g}",
                ControlWarning,
                stacklevel=2,
            )
            self.reset()
            state_dict = {**state_dict, **own}
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """Target and gains."""
        return (
            f"target={self.target}, experts={self.experts}, proportional={self.proportional}, "
            f"integral={self.integral}, error_scale={self.error_scale!r}"
        )
