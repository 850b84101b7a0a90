"""Chips: which cells are stuck, and how far the others are from what was programmed.

Everything is drawn for a physical cell, from a counter-based generator (Philox) keyed by the chip's seed and
the number of the crossbar. So a chip can be programmed with several mappings, a sweep over a rate moves no
fault that was there at a lower one, and crossbars that are added change nothing in the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, Self

import numpy as np
from jaxtyping import Float32, Int8, Int64

from tradeoff.core.errors import UnknownName
from tradeoff.core.suggest import did_you_mean
from tradeoff.engines.crossbar.errors import InvalidConfig

FREE, STUCK_OFF, STUCK_ON = -1, 0, 1
"""What a map of faults holds: a cell that can be programmed, one at high and one at low resistance."""

PRESETS: dict[str, tuple[float, float]] = {
    "none": (0.0, 0.0),
    "hfo2": (0.0904, 0.0175),
}
"""Name -> probability of stuck on and stuck off. ``hfo2``: measured on a 4 Mb HfO2 array (C.-Y. Chen et al.,
"RRAM defect modeling and failure analysis based on march test and a novel squeeze-search scheme", IEEE
Transactions on Computers 64(1), 2015)."""


class _Stream(IntEnum):
    """Independent streams of one crossbar: what is drawn from one never moves another."""

    CELLS, PROGRAM, ROWS, COLUMNS = range(4)


@dataclass(frozen=True)
class FaultModel:
    """The statistics of a chip's defects, and the seed that makes it one chip.

    Attributes:
        p_stuck_on: probability that a cell is stuck at low resistance (SA1).
        p_stuck_off: probability that a cell is stuck at high resistance (SA0).
        p_line: probability that a whole word line, and that a whole bit line, of a crossbar is stuck; kinds
            are as likely as for cells.
        sigma_program: spread of programming; see ``variation``.
        variation: ``lognormal``: conductance times exp(sigma z), at most 2 g_max. ``gaussian``: plus sigma z
            (g_max - g_min).
        sigma_read: relative spread of a conductance at each access.
        seed: of the chip.
    """

    p_stuck_on: float = 0.0
    p_stuck_off: float = 0.0
    p_line: float = 0.0
    sigma_program: float = 0.0
    variation: Literal["lognormal", "gaussian"] = "lognormal"
    sigma_read: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("p_stuck_on", "p_stuck_off", "p_line"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidConfig(f"{name} is {getattr(self, name)}; a probability is 0 to 1")
        if self.p_stuck_on + self.p_stuck_off > 1 + 1e-12:
            raise InvalidConfig(
                f"p_stuck_on and p_stuck_off add up to {self.p_stuck_on + self.p_stuck_off:g}, more than 1"
            )
        for name in ("sigma_program", "sigma_read"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidConfig(f"{name} is {getattr(self, name)}; a spread is 0 or more, and finite")
        if self.variation not in ("lognormal", "gaussian"):
            raise InvalidConfig(f"variation is lognormal or gaussian, not {self.variation!r}")
        if not 0 <= self.seed < 1 << 64:
            raise InvalidConfig(f"seed is {self.seed}; it must be 0 to 2^64 - 1")

    @classmethod
    def preset(cls, name: str, seed: int = 0) -> Self:
        """The rates of :data:`PRESETS`.

        Raises:
            UnknownName: there is no such preset.
        """
        if name not in PRESETS:
            raise UnknownName(f"no fault preset {name!r}{did_you_mean(name, PRESETS)}")
        on, off = PRESETS[name]
        return cls(on, off, seed=seed)

    @classmethod
    def at_rate(cls, rate: float, on_share: float, seed: int = 0) -> Self:
        """A part ``rate`` of the cells is stuck, of which a part ``on_share`` at low resistance.

        Chips of one seed and share are nested: a higher rate keeps every fault of a lower one.
        """
        if not 0 <= on_share <= 1:
            raise InvalidConfig(f"on_share is {on_share}; it must be 0 to 1")
        return cls(rate * on_share, rate - rate * on_share, seed=seed)

    @property
    def rate(self) -> float:
        """Probability that a cell is stuck by itself."""
        return self.p_stuck_on + self.p_stuck_off

    @property
    def on_share(self) -> float:
        """Part of the stuck cells that are at low resistance; one half where none is stuck."""
        return self.p_stuck_on / self.rate if self.rate else 0.5

    def chip(self, seed: int) -> Self:
        """Another chip of the same statistics."""
        return replace(self, seed=seed)

    def stuck(self, crossbar: int, rows: int, cols: int) -> Int8[np.ndarray, "rows cols"]:
        """The stuck cells of one crossbar: :data:`FREE`, :data:`STUCK_OFF` or :data:`STUCK_ON`.

        One uniform of 32 bits decides whether a cell is stuck and another how, so that faults keep their kind
        when the rate grows.
        """
        stuck = np.full((rows, cols), FREE, np.int8)
        if self.rate:
            hit, kinds = self._strike(crossbar, _Stream.CELLS, rows * cols, self.rate)
            stuck.reshape(-1)[hit] = kinds
        if self.p_line:
            for stream, lines in ((_Stream.ROWS, stuck), (_Stream.COLUMNS, stuck.T)):
                hit, kinds = self._strike(crossbar, stream, len(lines), self.p_line)
                lines[hit] = kinds[:, None]
        return stuck

    def deviations(self, crossbar: int, rows: int, cols: int) -> Float32[np.ndarray, "rows cols"]:
        """Standard normal deviation of each cell of one crossbar from what is programmed."""
        generator = np.random.Generator(self._philox(crossbar, _Stream.PROGRAM))
        return generator.standard_normal((rows, cols), dtype=np.float32)

    def _strike(
        self, crossbar: int, stream: _Stream, count: int, rate: float
    ) -> tuple[Int64[np.ndarray, " struck"], Int8[np.ndarray, " struck"]]:
        """Which of ``count`` things are stuck, and how."""
        draws = self._philox(crossbar, stream).random_raw(count)
        hit = np.flatnonzero((draws >> np.uint64(32)) < round(rate * 2**32))
        on = (draws[hit] & np.uint64(2**32 - 1)) < round(self.on_share * 2**32)
        return hit, np.where(on, STUCK_ON, STUCK_OFF).astype(np.int8)

    def _philox(self, crossbar: int, stream: _Stream) -> np.random.Philox:
        key = np.array([self.seed, crossbar], np.uint64)
        return np.random.Philox(key=key, counter=[0, 0, 0, int(stream)])
