"""Products of integer inputs with programmed crossbars: cycle by cycle, and as one exact matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor
from torch.nn import functional

from tradeoff.engines.crossbar.cells import RowBlock
from tradeoff.engines.crossbar.config import CrossbarConfig
from tradeoff.engines.crossbar.quantization import InputRange

EXACT_SINGLE, EXACT_DOUBLE = 1 << 24, 1 << 53
"""Integers up to these are exact in float32 and float64."""
MAX_SLICED_ELEMENTS = 1 << 24
"""Column readings that the sliced product keeps at a time."""


def sliced_product(
    codes: Shaped[Tensor, "vectors inputs"],
    blocks: Sequence[RowBlock],
    config: CrossbarConfig,
    inputs: InputRange,
    code_sums: Float64[Tensor, " outputs"],
    sigma_read: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float64[Tensor, "vectors outputs"]:
    """What converters read for every cycle, row block, slice and polarity, shifted and added.

    This is the definition of the engine's product; its results are integers, exact in float64, unless cells
    deviate.

    Args:
        codes: integer inputs.
        blocks: the programmed cells.
        inputs: how codes go through the converters.
        code_sums: of each output's integer weights; with ``dac_bits`` above 1 they take off what signed
            inputs were raised by.
        sigma_read: relative spread of each conductance at each access. A column's noise is drawn as one
            normal number of the variance that its cells' independent ones add up to.
        generator: of the read noise.
    """
    width = config.cycles * config.code.place_values.numel() * len(code_sums)
    parts = torch.split(codes, max(1, MAX_SLICED_ELEMENTS // width))
    return torch.cat(
        [_sliced(part, blocks, config, inputs, code_sums, sigma_read, generator) for part in parts]
    )


def _sliced(
    codes: Tensor,
    blocks: Sequence[RowBlock],
    config: CrossbarConfig,
    inputs: InputRange,
    code_sums: Tensor,
    sigma_read: float,
    generator: torch.Generator | None,
) -> Tensor:
    planes, cycle_places, added = inputs.planes(codes, config.dac_bits)
    places = config.code.place_values.to(codes.device).double()
    result = torch.zeros(len(codes), len(code_sums), dtype=torch.float64, device=codes.device)
    for block in blocks:
        x = planes[..., block.inputs]
        values = block.values.double()
        rows = x.shape[-1]

        def read(cells: Tensor, x: Tensor = x, rows: int = rows) -> Tensor:
            """Readings ``(cycles, vectors, ...)`` of columns ``(..., inputs)``."""
            currents = torch.tensordot(x, cells, dims=([-1], [-1]))
            if sigma_read:
                power = torch.tensordot(
                    x**2, (cells + config.pedestal * config.reference_column) ** 2, dims=([-1], [-1])
                )
                noise = torch.randn(currents.shape, dtype=torch.float64, generator=generator)
                currents += sigma_read * power.sqrt() * noise.to(currents.device)
            return _convert(currents, config, rows)

        readings = read(values)
        totals = x.sum(-1)
        if block.inverted is not None:
            full = ((config.levels - 1) * totals)[..., None, None, None]
            readings = torch.where(block.inverted.to(codes.device), full - readings, readings)
        result += torch.einsum("tncpo,t,cp->no", readings, cycle_places, places)
        if config.code.offset:
            sums = totals if block.bias is None else read(block.bias.double())
            result -= config.code.offset * torch.einsum("tn,t->n", sums, cycle_places)[:, None]
    return result - added * code_sums


def _convert(currents: Tensor, config: CrossbarConfig, rows: int) -> Tensor:
    """Readings of an analog-to-digital converter, halves to even."""
    if config.adc_bits is None:
        return currents
    step = config.adc_step(rows)
    return currents.div_(step).round_().clamp_(0, (1 << config.adc_bits) - 1).mul_(step)


@dataclass(frozen=True)
class FastProduct:
    """The same product as one of matrices: exact where converters neither round nor clip.

    Attributes:
        weights: effective weights ``(outputs, inputs)`` in chunks of inputs: float32 where they are integers
            so small that no partial sum rounds, else float64 in one chunk.
        constant: of each output, to add; None where it is 0.
    """

    weights: tuple[Tensor, ...]
    constant: Float64[Tensor, " outputs"] | None

    @classmethod
    def of(
        cls,
        effective: Float64[Tensor, "outputs inputs"],
        constant: Float64[Tensor, " outputs"] | None,
        integral: bool,
        largest_input: int,
    ) -> FastProduct:
        """Choose the fewest chunks that are exact; sums of several are added in float64."""
        if not integral:
            return cls((effective,), constant)
        bounds = effective.abs().cumsum(1) * largest_input
        extra = float(constant.abs().max()) if constant is not None else 0.0
        if float(bounds[:, -1].max()) + extra <= EXACT_SINGLE:
            return cls((effective.float(),), constant)
        chunks, start = [], 0
        while start < effective.shape[1]:
            before = bounds[:, start - 1 : start] if start else 0.0
            fits = ((bounds[:, start:] - before) <= EXACT_SINGLE).all(0)
            count = int(fits.long().cumprod(0).sum())
            if not count:
                return cls((effective,), constant)
            chunks.append(effective[:, start : start + count].float().contiguous())
            start += count
        return cls(tuple(chunks), constant)

    def to(self, device: torch.device) -> FastProduct:
        """On another device."""
        constant = None if self.constant is None else self.constant.to(device)
        return FastProduct(tuple(weight.to(device) for weight in self.weights), constant)

    def __call__(self, codes: Shaped[Tensor, "vectors inputs"]) -> Shaped[Tensor, "vectors outputs"]:
        """The product: float32 where that is exact, else float64."""
        first, *others = self.weights
        if not others and first.dtype == torch.float32 and _single_is_exact(codes.device):
            result = functional.linear(codes.float(), first)
            return result if self.constant is None else result.add_(self.constant.float())
        total = torch.zeros(len(codes), len(first), dtype=torch.float64, device=codes.device)
        start = 0
        for weight in self.weights:
            part = codes[:, start : start + weight.shape[1]]
            dtype = weight.dtype if _single_is_exact(codes.device) else torch.float64
            total += functional.linear(part.to(dtype), weight.to(dtype))
            start += weight.shape[1]
        return total if self.constant is None else total.add_(self.constant)


def _single_is_exact(device: torch.device) -> bool:
    """Whether float32 products keep 24 bits: not where the user lets them use TF32 or bfloat16."""
    if torch.get_float32_matmul_precision() != "highest":
        return False
    return device.type != "cuda" or not torch.backends.cuda.matmul.allow_tf32
