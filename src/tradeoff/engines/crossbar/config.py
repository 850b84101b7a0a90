"""Arrays, cells and converters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tradeoff.engines.crossbar.encodings import Encoding, EncodingName, PairMapping, two_column
from tradeoff.engines.crossbar.errors import InvalidConfig

MAX_SIDE = 1 << 14


@dataclass(frozen=True)
class CrossbarConfig:
    """How weights lie in crossbars and how products are read from them.

    Attributes:
        rows, cols: word lines and bit lines of a crossbar.
        cell_bits: k; a cell has 2^k levels.
        weight_bits, act_bits: of integer weights and inputs.
        dac_bits: v, bits of an input that a word line takes in one cycle.
        adc_bits: A, or None for converters without rounding or limit.
        adc_range: what A bits cover. ``saturate``: steps of one digit product, larger sums are clipped.
            ``scaled``: the largest sum that a column can have, in coarser steps.
        encoding: of weights in cells; see :class:`tradeoff.engines.crossbar.Encoding`.
        pair: writes signed digits into pairs of cells (``differential``).
        per_channel: one scale of the weights for each output, else one for all.
        g_min, g_max: conductances [S] of the high- and the low-resistance state.
        reference_column: a column at ``g_min`` is taken off each column, so that a finite ratio of the two
            costs nothing.
        faulty_bias_column: the sum of the inputs that ``offset`` needs comes from cells with defects, too;
            else it is exact.
        flip_columns: a column whose digits add up to more than half of the most they could is stored
            inverted (ISAAC, section V): converters need one bit less.
    """

    rows: int = 128
    cols: int = 128
    cell_bits: int = 1
    weight_bits: int = 8
    act_bits: int = 8
    dac_bits: int = 1
    adc_bits: int | None = 8
    adc_range: Literal["saturate", "scaled"] = "saturate"
    encoding: EncodingName = "offset"
    pair: PairMapping = two_column
    per_channel: bool = True
    g_min: float = 1e-6 / 3
    g_max: float = 1e-3 / 3
    reference_column: bool = True
    faulty_bias_column: bool = False
    flip_columns: bool = False

    def __post_init__(self) -> None:
        code = self.code
        for name, low, high in (
            ("rows", 1, MAX_SIDE),
            ("cols", 1, MAX_SIDE),
            ("act_bits", 1, 16),
            ("dac_bits", 1, self.act_bits),
            ("adc_bits", 1, 32),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidConfig(f"{name} is {value}; it must be {low} to {high}")
        if self.adc_range not in ("saturate", "scaled"):
            raise InvalidConfig(f"adc_range is saturate or scaled, not {self.adc_range!r}")
        cells = code.slices * code.polarities
        if self.cols < cells:
            raise InvalidConfig(
                f"a weight takes {cells} columns and never lies in two crossbars: {self.cols} are too few"
            )
        if not 0 < self.g_min < self.g_max:
            raise InvalidConfig(f"conductances need 0 < g_min < g_max, not {self.g_min} and {self.g_max}")
        if self.faulty_bias_column and not code.offset:
            raise InvalidConfig(f"{self.encoding} has no bias column that could be faulty")

    @cached_property
    def code(self) -> Encoding:
        """The encoding, ready to use."""
        return Encoding(self.encoding, self.weight_bits, self.cell_bits, self.pair)

    @property
    def levels(self) -> int:
        """Levels of a cell."""
        return 1 << self.cell_bits

    @property
    def cycles(self) -> int:
        """Cycles in which an input goes through the converters."""
        return -(-self.act_bits // self.dac_bits)

    @property
    def pedestal(self) -> float:
        """What a cell at ``g_min`` reads, in digits."""
        return self.g_min / (self.g_max - self.g_min) * (self.levels - 1)

    def largest_sum(self, rows: int) -> int:
        """The most that a column can read in one cycle over ``rows`` word lines, in digit products."""
        return rows * ((1 << self.dac_bits) - 1) * (self.levels - 1)

    def lossless_adc_bits(self, rows: int | None = None) -> int:
        """Converter bits that represent every sum of a column of ``rows`` (all, if None) without defects."""
        largest = self.largest_sum(rows or self.rows)
        return max(1, (largest // 2 if self.flip_columns else largest).bit_length())

    def adc_step(self, rows: int) -> int:
        """Digit products that one step of a converter stands for, with ``rows`` word lines in use."""
        if self.adc_bits is None or self.adc_range == "saturate":
            return 1
        return max(1, -(-self.largest_sum(rows) // ((1 << self.adc_bits) - 1)))
