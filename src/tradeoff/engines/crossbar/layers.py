"""Layers whose weights lie in crossbars."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Int8, Int32, Shaped
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.engines.crossbar.cells import RowBlock, fault_map, program
from tradeoff.engines.crossbar.config import CrossbarConfig
from tradeoff.engines.crossbar.errors import InvalidOperand
from tradeoff.engines.crossbar.faults import FaultModel
from tradeoff.engines.crossbar.placement import Placement
from tradeoff.engines.crossbar.products import EXACT_DOUBLE, FastProduct, sliced_product
from tradeoff.engines.crossbar.quantization import InputRange, quantize_weights

Path = Literal["auto", "slow"]


class CrossbarLinear(nn.Module):
    """y = s_w s_x (Q x) + b, with the integer weights Q in crossbars and integer inputs x.

    Shape: ``(*, in_features)`` to ``(*, out_features)``. Inference only: nothing here has gradients.

    Args:
        weight: float ``(out_features, in_features)``.
        bias: digital, never faulty.
        config: of the crossbars.
        inputs: the range of the inputs.
        faults: of the chip.
        first_crossbar: number of the first crossbar on the chip.
        name: of the layer, for errors and reports.
        path: ``auto`` takes one matrix product where that gives the same numbers; ``slow`` never does.

    Attributes:
        placement: where its cells lie.
        products: vectors that it has multiplied since it was made or :meth:`CrossbarModel.reset` was called.
        stuck: cells of its weights that are stuck.

    Raises:
        InvalidOperand: weights are NaN or infinite, or sums could leave the 53 bits in which they are exact.
    """

    codes: Int32[Tensor, "outputs inputs"]
    weight_scale: Float[Tensor, " outputs"]
    bias: Float[Tensor, " outputs"] | None

    def __init__(
        self,
        weight: Float[Tensor, "outputs inputs"],
        bias: Float[Tensor, " outputs"] | None,
        config: CrossbarConfig,
        inputs: InputRange,
        faults: FaultModel | None = None,
        *,
        first_crossbar: int = 0,
        name: str = "layer",
        path: Path = "auto",
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.config, self.inputs, self.name, self.path = config, inputs, name, path
        self.placement = Placement(config, self.out_features, self.in_features, first_crossbar)
        if inputs.bits != config.act_bits:
            raise InvalidOperand(f"{name}: inputs have {inputs.bits} bits, crossbars take {config.act_bits}")
        largest = self.in_features << (config.act_bits + config.code.slices * config.cell_bits)
        if largest >= EXACT_DOUBLE:
            raise InvalidOperand(f"{name}: sums could reach {largest:.3g}, beyond 2^53; use fewer bits")
        codes, scale = quantize_weights(weight, config.weight_bits, config.per_channel, name)
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.products = 0
        self.program(faults or FaultModel())

    def program(self, faults: FaultModel) -> None:
        """Write the same integer weights into another chip."""
        self.faults = faults
        self._blocks: list[RowBlock] | None = None
        self._generator = torch.Generator().manual_seed(_noise_seed(faults.seed, self.placement.first))
        code, config = self.config.code, self.config
        effective = torch.empty(self.out_features, self.in_features, dtype=torch.float64)
        peak, self.stuck, integral = 0.0, 0, True
        for block in program(self.codes, self.placement, faults):
            part = code.decode(block.digits(config.levels)).double()
            if block.bias is not None:
                part += code.offset * (1 - block.bias.double())
                peak = max(peak, float(block.bias.double().sum()))
            effective[:, block.inputs] = part
            exact = torch.float64 if block.values.is_floating_point() else torch.int32
            peak = max(peak, float(block.values.sum(-1, dtype=exact).max()))
            integral = integral and not block.values.is_floating_point()
            self.stuck += block.stuck
        device = self.codes.device
        self._effective = effective.to(device)
        self._fast = self._fast_product(integral, peak).to(device) if self._affine(integral, peak) else None

    def _affine(self, integral: bool, peak: float) -> bool:
        """Whether converters and cells neither round, clip nor fluctuate, so that one product is exact."""
        config = self.config
        if self.faults.sigma_read:
            return False
        if config.adc_bits is None:
            return True
        largest = peak * ((1 << config.dac_bits) - 1)
        steps = {config.adc_step(_rows(self.placement, r)) for r in range(self.placement.row_blocks)}
        return integral and steps == {1} and largest <= (1 << config.adc_bits) - 1

    def _fast_product(self, integral: bool, peak: float) -> FastProduct:
        constant = None
        if self.inputs.signed and self.config.dac_bits > 1:
            # What signed inputs are raised by no longer cancels where cells are wrong.
            difference = (self._effective - self.codes.double()).sum(1)
            constant = (self.inputs.largest + 1) * difference if difference.any() else None
        return FastProduct.of(self._effective, constant, integral, self.inputs.largest)

    @property
    def digits(self) -> Int8[Tensor, "slices polarities outputs inputs"]:
        """What the cells should hold."""
        return self.config.code.encode(self.codes)

    def quantized_weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight without defects, s_w Q."""
        return self.codes * self.weight_scale[:, None]

    def effective_weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight that the chip's cells amount to, s_w W_eff; it may leave the range of the codes."""
        return self.effective_codes().to(self.weight_scale.dtype) * self.weight_scale[:, None]

    def effective_codes(self) -> Float[Tensor, "outputs inputs"]:
        """W_eff in float64: integers unless cells deviate."""
        return self._effective

    def fault_map(self) -> Int8[np.ndarray, "slices polarities outputs inputs"]:
        """Of each cell, whether it is stuck and how; see :meth:`FaultModel.stuck`."""
        maps = [fault_map(self.placement, self.faults, r) for r in range(self.placement.row_blocks)]
        return np.concatenate(maps, axis=-1)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if x.shape[-1:] != (self.in_features,):
            raise InvalidOperand(f"{self.name}: takes {self.in_features} inputs, not {tuple(x.shape)}")
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            codes = self._quantize(x).reshape(-1, self.in_features)
            return self._scale(self.multiply(codes), x.dtype).view(*x.shape[:-1], self.out_features)

    def multiply(self, codes: Shaped[Tensor, "vectors inputs"]) -> Shaped[Tensor, "vectors outputs"]:
        """The product of integer inputs with the cells: integers unless cells deviate or fluctuate."""
        self.products += len(codes)
        if self._fast is not None and self.path == "auto":
            return self._fast(codes)
        if self._blocks is None:
            device = self.codes.device
            self._blocks = [
                _moved(block, device) for block in program(self.codes, self.placement, self.faults)
            ]
        sums = self.codes.double().sum(1)
        return sliced_product(
            codes, self._blocks, self.config, self.inputs, sums, self.faults.sigma_read, self._generator
        )

    def _quantize(self, x: Tensor) -> Tensor:
        # A sum shows most often in one pass that all is finite; one that overflows is looked at closely.
        if not math.isfinite(float(x.sum())) and not torch.isfinite(x).all():
            raise InvalidOperand(f"{self.name}: inputs hold NaN or infinity")
        return self.inputs.quantize(x)

    def _scale(self, sums: Shaped[Tensor, "vectors outputs"], dtype: torch.dtype) -> Tensor:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        result = sums.to(wide)
        result = result.mul_(self.weight_scale.to(wide) * self.inputs.scale)
        return (result if self.bias is None else result.add_(self.bias.to(wide))).to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = self.codes.device
        if self._effective.device != device:
            self._effective, self._blocks = self._effective.to(device), None
            self._fast = None if self._fast is None else self._fast.to(device)
        return self

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, crossbars={self.placement.crossbars}, "
            f"encoding={self.config.encoding}, path={'fast' if self.fast else 'sliced'}"
        )

    @property
    def fast(self) -> bool:
        """Whether the next product is one of matrices."""
        return self._fast is not None and self.path == "auto"


class CrossbarConv2d(CrossbarLinear):
    """A convolution as products of its windows with weights in crossbars.

    Shape: ``(batch, channels, height, width)`` or without the batch, as :class:`torch.nn.Conv2d`.

    Args:
        conv: whose weights, bias, stride, padding and dilation are taken.
        others: as for :class:`CrossbarLinear`.
    """

    def __init__(
        self, conv: nn.Conv2d, config: CrossbarConfig, inputs: InputRange, *args: Any, **others: Any
    ) -> None:
        super().__init__(conv.weight.detach().flatten(1), conv.bias, config, inputs, *args, **others)
        self.in_channels = conv.in_channels
        self.kernel, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding_mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        self.padding = list(conv._reversed_padding_repeated_twice)

    def forward(self, x: Float[Tensor, "*batch channels height width"]) -> Tensor:
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise InvalidOperand(
                f"{self.name}: takes images of {self.in_channels} channels, not {tuple(x.shape)}"
            )
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            codes = self._quantize(x if x.ndim == 4 else x[None])
            codes = functional.pad(codes, self.padding, mode=self.padding_mode)
            height, width = (
                (size - d * (k - 1) - 1) // s + 1
                for size, d, k, s in zip(
                    codes.shape[-2:], self.dilation, self.kernel, self.stride, strict=True
                )
            )
            windows = functional.unfold(codes, self.kernel, dilation=self.dilation, stride=self.stride)
            rows = windows.transpose(1, 2).reshape(-1, self.in_features)
            out = self._scale(self.multiply(rows), x.dtype)
            out = out.view(len(codes), height, width, self.out_features).permute(0, 3, 1, 2).contiguous()
            return out if x.ndim == 4 else out[0]


def _rows(placement: Placement, row_block: int) -> int:
    used = placement.inputs_of(row_block)
    return int(used.stop - used.start)


def _moved(block: RowBlock, device: torch.device) -> RowBlock:
    inverted = None if block.inverted is None else block.inverted.to(device)
    bias = None if block.bias is None else block.bias.to(device)
    return RowBlock(block.inputs, block.values.to(device), inverted, bias, block.stuck)


def _noise_seed(seed: int, crossbar: int) -> int:
    """Of the read noise of a layer: one of the chip's streams."""
    words: np.ndarray = np.random.SeedSequence([seed, crossbar]).generate_state(1, np.uint64)
    return int(words[0]) >> 1
