"""Integer weights and inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int32, Shaped
from torch import Tensor, nn

from tradeoff.engines.crossbar.errors import InvalidOperand, NotCalibrated

MAX_RANKED = 1 << 20
"""Values of one batch among which a percentile is looked for; of more, every n-th."""


def quantize_weights(
    weight: Float[Tensor, "outputs inputs"], bits: int, per_channel: bool, name: str = "weight"
) -> tuple[Int32[Tensor, "outputs inputs"], Float[Tensor, " outputs"]]:
    """Codes Q = round(W / s), halves to even, and scales s = max \\|W\\| / (2^(b-1) - 1) of the outputs.

    An output without a weight other than 0 has scale 1.

    Raises:
        InvalidOperand: a weight is NaN or infinite.
    """
    if not torch.isfinite(weight).all():
        raise InvalidOperand(f"{name}: weights hold NaN or infinity")
    largest = (1 << (bits - 1)) - 1
    weight = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    peak = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().max().expand(len(weight), 1)
    scale = torch.where(peak > 0, peak / largest, torch.ones_like(peak))
    codes = (weight / scale).round().clamp(-largest, largest)
    return codes.to(torch.int32), scale[:, 0].clone()


@dataclass(frozen=True)
class InputRange:
    """How the inputs of a layer become integers.

    Attributes:
        scale: s, the step; an input x is round(x / s), clipped.
        signed: integers are -(2^(b-1) - 1) to 2^(b-1) - 1, else 0 to 2^b - 1.
        bits: b.
    """

    scale: float
    signed: bool
    bits: int

    @classmethod
    def covering(cls, low: float, peak: float, bits: int) -> InputRange:
        """The range of inputs of magnitude ``peak``, none of which is below ``low``."""
        signed = low < 0
        largest = (1 << (bits - signed)) - 1
        return cls(peak / largest if peak > 0 else 1.0, signed, bits)

    @property
    def largest(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def smallest(self) -> int:
        return -self.largest if self.signed else 0

    def quantize(self, x: Tensor) -> Tensor:
        """Integers, as float32, or as float64 of float64."""
        x = x if x.dtype == torch.float64 else x.to(torch.float32)
        return torch.div(x, self.scale).round_().clamp_(self.smallest, self.largest)

    def planes(self, codes: Shaped[Tensor, "vectors inputs"], dac_bits: int) -> tuple[Tensor, Tensor, int]:
        """What word lines take, cycle by cycle.

        Returns:
            digits ``(cycles, vectors, inputs)`` of 0 to 2^v - 1 as float64, the place values of the cycles,
            and what was added to each code before, to be taken off again.
        """
        codes = codes.long()
        added = (self.largest + 1) if self.signed and dac_bits > 1 else 0
        cycles = -(-self.bits // dac_bits)
        shifts = torch.arange(cycles, device=codes.device) * dac_bits
        digits = ((codes + added) >> shifts.view(-1, 1, 1)) & ((1 << dac_bits) - 1)
        places = (1 << shifts).double()
        if self.signed and dac_bits == 1:
            places[-1] = -places[-1]
        return digits.double(), places, added


class _Observer:
    """The least input of a layer, and how large inputs get."""

    def __init__(self, percentile: float) -> None:
        self.percentile = percentile
        self.low, self.peak = math.inf, -math.inf

    def __call__(self, name: str, x: Tensor) -> None:
        x = x.detach().float().flatten()
        if not x.numel():
            return
        if not torch.isfinite(x).all():
            raise InvalidOperand(f"{name}: inputs hold NaN or infinity in calibration")
        self.low = min(self.low, float(x.min()))
        magnitude = x.abs()
        if self.percentile < 100:
            magnitude = magnitude[:: -(-len(magnitude) // MAX_RANKED)]
            rank = max(1, math.ceil(self.percentile / 100 * len(magnitude)))
            self.peak = max(self.peak, float(magnitude.kthvalue(rank).values))
        else:
            self.peak = max(self.peak, float(magnitude.max()))


Calibration = Iterable[Any] | Callable[[nn.Module], Any]


@torch.no_grad()
def calibrate(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    data: Calibration,
    bits: Mapping[str, int],
    percentile: float,
) -> dict[str, InputRange]:
    """The ranges of the inputs that layers get when the model, in evaluation mode, reads ``data``.

    Args:
        model: it is left as it was.
        data: batches, each a tensor, a mapping of keyword arguments, or a sequence of which the first is the
            input; or a function that calls the model.
        bits: of the inputs of each layer.
        percentile: of the magnitudes of one batch that the range covers, the largest over all batches.

    Raises:
        NotCalibrated: a layer got nothing.
        InvalidOperand: inputs are NaN or infinite, or the percentile is none.
    """
    if not 0 < percentile <= 100:
        raise InvalidOperand(f"a percentile is above 0 and at most 100, not {percentile}")
    observers = {name: _Observer(percentile) for name in layers}

    def watch(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        observers[name](name, args[0] if args else kwargs["input"])

    hooks = [
        layer.register_forward_pre_hook(partial(watch, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        if callable(data):
            data(model)
        else:
            for batch in data:
                _call(model, batch)
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    for name, observer in observers.items():
        if observer.peak < 0:
            raise NotCalibrated(f"{name}: no calibration data reached this layer; leave it out or give some")
    return {name: InputRange.covering(o.low, o.peak, bits[name]) for name, o in observers.items()}


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, Tensor):
        model(batch)
    else:
        model(batch[0])
