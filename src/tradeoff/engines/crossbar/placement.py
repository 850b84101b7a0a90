"""Where the cells of a layer lie: logical weights to crossbars, rows and columns, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from tradeoff.engines.crossbar.config import CrossbarConfig


@dataclass(frozen=True)
class Placement:
    """The crossbars of one layer, numbered row block by row block.

    A row block takes ``config.rows`` inputs. A crossbar takes as many outputs as it has columns for all
    slices and polarities of a weight, which lie side by side: output, then slice, then polarity.

    Attributes:
        config: of the crossbars.
        outputs, inputs: of the layer's weight.
        first: number of its first crossbar on the chip.
    """

    config: CrossbarConfig
    outputs: int
    inputs: int
    first: int = 0

    @property
    def columns_per_output(self) -> int:
        """Bit lines that one output takes."""
        return self.config.code.slices * self.config.code.polarities

    @property
    def outputs_per_crossbar(self) -> int:
        """Outputs whose columns fit side by side."""
        return self.config.cols // self.columns_per_output

    @property
    def row_blocks(self) -> int:
        return -(-self.inputs // self.config.rows)

    @property
    def column_blocks(self) -> int:
        return -(-self.outputs // self.outputs_per_crossbar)

    @property
    def crossbars(self) -> int:
        """How many there are."""
        return self.row_blocks * self.column_blocks

    @property
    def cells(self) -> int:
        """Cells that hold digits of weights."""
        return self.inputs * self.outputs * self.columns_per_output

    def inputs_of(self, row_block: int) -> slice:
        """The inputs that a row block takes."""
        start = row_block * self.config.rows
        return slice(start, min(start + self.config.rows, self.inputs))

    def crossbars_of(self, row_block: int) -> range:
        """Numbers of the crossbars of a row block."""
        start = self.first + row_block * self.column_blocks
        return range(start, start + self.column_blocks)

    def address(self, output: int, place: int, polarity: int, input_: int) -> tuple[int, int, int]:
        """Crossbar, row and column of the cell of one slice (``place``) of one weight."""
        row_block, row = divmod(input_, self.config.rows)
        column_block, position = divmod(output, self.outputs_per_crossbar)
        column = (position * self.config.code.slices + place) * self.config.code.polarities + polarity
        return self.first + row_block * self.column_blocks + column_block, row, column

    def to_logical(
        self, block: Shaped[np.ndarray, "column_blocks rows cols"], row_block: int
    ) -> Shaped[np.ndarray, "slices polarities outputs inputs"]:
        """What lies at the cells of a row block's weights (a view where that is possible)."""
        code, count = self.config.code, self.outputs_per_crossbar
        used = self.inputs_of(row_block)
        cells = block[:, : used.stop - used.start, : count * self.columns_per_output]
        shape = (self.column_blocks, cells.shape[1], count, code.slices, code.polarities)
        logical = cells.reshape(shape).transpose(3, 4, 0, 2, 1)
        merged = logical.reshape(code.slices, code.polarities, self.column_blocks * count, cells.shape[1])
        return merged[:, :, : self.outputs]
