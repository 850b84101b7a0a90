"""Programming a chip: from the digits that cells should hold to the values that are read from them.

A cell of conductance G reads g = (G - G_min) / (G_max - G_min) (L - 1): its digit, where nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Int8, Shaped
from torch import Tensor

from tradeoff.engines.crossbar.config import CrossbarConfig
from tradeoff.engines.crossbar.faults import FREE, STUCK_ON, FaultModel
from tradeoff.engines.crossbar.placement import Placement


@dataclass(frozen=True)
class RowBlock:
    """The programmed cells of one row block.

    Attributes:
        inputs: of the layer that its word lines take.
        values: what is read, ``(slices, polarities, outputs, inputs)``: int8 digits, or float64 where cells
            deviate.
        inverted: columns that hold the complement of their digits, or None.
        bias: what the column of ones reads, or None where the sum of the inputs is exact.
        stuck: cells of weights that are stuck.
    """

    inputs: slice
    values: Shaped[Tensor, "slices polarities outputs inputs"]
    inverted: Bool[Tensor, "slices polarities outputs"] | None
    bias: Shaped[Tensor, " inputs"] | None
    stuck: int

    def digits(self, levels: int) -> Tensor:
        """What the columns stand for: values, those of inverted columns turned back."""
        if self.inverted is None:
            return self.values
        return torch.where(self.inverted[..., None], levels - 1 - self.values, self.values)


def program(
    codes: Int[Tensor, "outputs inputs"], placement: Placement, faults: FaultModel
) -> Iterator[RowBlock]:
    """Write integer weights into a chip, row block by row block, and read what its cells hold."""
    config = placement.config
    levels = config.levels
    for index in range(placement.row_blocks):
        inputs = placement.inputs_of(index)
        digits = config.code.encode(codes[:, inputs].cpu())
        inverted = None
        if config.flip_columns:
            inverted = digits.long().sum(-1) > digits.shape[-1] * (levels - 1) / 2
            digits = torch.where(inverted[..., None], levels - 1 - digits, digits)
        stuck = torch.from_numpy(fault_map(placement, faults, index))
        deviations = _deviations(placement, faults, index) if faults.sigma_program else None
        values = _read(digits, stuck, deviations, config, faults)
        bias = _bias_column(placement, faults, index) if config.faulty_bias_column else None
        yield RowBlock(inputs, values, inverted, bias, int((stuck != FREE).sum()))


def fault_map(
    placement: Placement, faults: FaultModel, row_block: int
) -> Int8[np.ndarray, "slices polarities outputs inputs"]:
    """Which cells of a row block's weights are stuck, and how."""
    config = placement.config
    crossbars = placement.crossbars_of(row_block)
    maps = np.empty((len(crossbars), config.rows, config.cols), np.int8)
    for crossbar, place in zip(crossbars, maps, strict=True):
        place[:] = faults.stuck(crossbar, config.rows, config.cols)
    return np.ascontiguousarray(placement.to_logical(maps, row_block))


def _deviations(placement: Placement, faults: FaultModel, row_block: int) -> Tensor:
    config = placement.config
    crossbars = placement.crossbars_of(row_block)
    draws = np.stack([faults.deviations(c, config.rows, config.cols) for c in crossbars])
    return torch.from_numpy(np.ascontiguousarray(placement.to_logical(draws, row_block)))


def _read(
    digits: Tensor,
    stuck: Tensor,
    deviations: Tensor | None,
    config: CrossbarConfig,
    faults: FaultModel,
) -> Tensor:
    """What cells read: with variation first, then stuck cells, whatever was programmed."""
    top = config.levels - 1
    values = digits if deviations is None else _vary(digits.double(), deviations.double(), config, faults)
    values = torch.where(stuck == FREE, values, top * (stuck == STUCK_ON).to(values.dtype))
    return values if config.reference_column else values.double() + config.pedestal


def _vary(digits: Tensor, z: Tensor, config: CrossbarConfig, faults: FaultModel) -> Tensor:
    if faults.variation == "gaussian":
        return digits + faults.sigma_program * z * (config.levels - 1)
    pedestal = config.pedestal
    conductance = (digits + pedestal) * torch.exp(faults.sigma_program * z)
    return conductance.clamp(0, 2 * (config.levels - 1 + pedestal)) - pedestal


def _bias_column(placement: Placement, faults: FaultModel, row_block: int) -> Tensor:
    """What the cells of a row block's column of ones read."""
    config = placement.config
    crossbar = placement.crossbars_of(row_block)[0]
    used = placement.inputs_of(row_block)
    count = used.stop - used.start
    # Drawn as a crossbar of its own, so that the column moves no fault of the others.
    own = (1 << 63) + crossbar
    stuck = torch.from_numpy(faults.stuck(own, config.rows, 1)[:count, 0])
    deviations = None
    if faults.sigma_program:
        deviations = torch.from_numpy(faults.deviations(own, config.rows, 1)[:count, 0])
    return _read(torch.ones(count, dtype=torch.int8), stuck, deviations, config, faults)
