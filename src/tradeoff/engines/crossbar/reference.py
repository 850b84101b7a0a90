"""The product walked cell by cell in plain Python: the oracle of the tests, for layers of a few weights."""

from __future__ import annotations

from collections.abc import Sequence

from tradeoff.engines.crossbar.config import CrossbarConfig
from tradeoff.engines.crossbar.faults import STUCK_OFF, STUCK_ON, FaultModel
from tradeoff.engines.crossbar.placement import Placement


def product_by_cells(
    codes: Sequence[Sequence[int]],
    x: Sequence[int],
    config: CrossbarConfig,
    faults: FaultModel,
    signed: bool,
    first: int = 0,
) -> list[int]:
    """Integer sums of one vector of inputs, for cells that are stuck or as programmed.

    Args:
        codes: integer weights, ``outputs`` lists of ``inputs``.
        x: integer inputs.
        config: ``offset``, ``twos_complement`` or ``differential`` in two columns, saturating or ideal
            converters, inputs bit by bit.
        faults: stuck cells only.
        signed: whether inputs are two's complement.
        first: number of the first crossbar.
    """
    placement = Placement(config, len(codes), len(x), first)
    cells = _program(codes, placement, faults)
    bits, k, levels = config.weight_bits, config.cell_bits, 1 << config.cell_bits
    code = config.code
    sums = []
    for output in range(len(codes)):
        total = 0
        for start in range(0, len(x), config.rows):
            rows = range(start, min(start + config.rows, len(x)))
            for cycle in range(config.act_bits):
                weight_of_cycle = 1 << cycle
                if signed and cycle == config.act_bits - 1:
                    weight_of_cycle = -weight_of_cycle
                taken = {i: ((x[i] + (1 << config.act_bits)) >> cycle) & 1 for i in rows}
                for place in range(code.slices):
                    weight_of_slice = levels**place
                    if config.encoding == "twos_complement" and place == bits // k - 1:
                        weight_of_slice = -weight_of_slice
                    for polarity in range(code.polarities):
                        read = sum(
                            taken[i] * cells[placement.address(output, place, polarity, i)] for i in rows
                        )
                        if config.adc_bits is not None:
                            read = min(read, 2**config.adc_bits - 1)
                        sign = -1 if polarity else 1
                        total += weight_of_cycle * weight_of_slice * sign * read
                if config.encoding == "offset":
                    total -= weight_of_cycle * 2 ** (bits - 1) * sum(taken.values())
        sums.append(total)
    return sums


def _program(
    codes: Sequence[Sequence[int]], placement: Placement, faults: FaultModel
) -> dict[tuple[int, int, int], int]:
    """What each addressed cell holds."""
    config = placement.config
    levels = 1 << config.cell_bits
    maps = {
        crossbar: faults.stuck(crossbar, config.rows, config.cols)
        for crossbar in range(placement.first, placement.first + placement.crossbars)
    }
    cells = {}
    for output, row in enumerate(codes):
        for input_, weight in enumerate(row):
            for place in range(config.code.slices):
                for polarity in range(config.code.polarities):
                    if config.encoding == "differential":
                        part = max(weight, 0) if polarity == 0 else max(-weight, 0)
                    elif config.encoding == "offset":
                        part = weight + 2 ** (config.weight_bits - 1)
                    else:
                        part = weight % 2**config.weight_bits
                    digit = part // levels**place % levels
                    crossbar, line, column = placement.address(output, place, polarity, input_)
                    stuck = maps[crossbar][line, column]
                    digit = 0 if stuck == STUCK_OFF else levels - 1 if stuck == STUCK_ON else digit
                    assert (crossbar, line, column) not in cells, "two digits in one cell"
                    cells[crossbar, line, column] = digit
    return cells
