"""FPGA boards on which the latency of two-party operators is modelled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tradeoff.core.errors import UnknownName
from tradeoff.core.suggest import did_you_mean
from tradeoff.nn.latency import FPGALatency, LatencyModel, ReleasedProxy

DSPS_PER_PRODUCT = 3
"""DSP48E2 blocks of a 32-bit ring multiply-accumulate, as Yosys (``synth_xilinx -family xcup``) maps it."""


@dataclass(frozen=True)
class Board:
    """Resources of a board, and the rates of the accelerator that the papers put on it.

    Attributes:
        part: the FPGA.
        dsps, brams, urams, luts: blocks of the FPGA (data sheet).
        word_rate: word operations a second; see :class:`tradeoff.nn.latency.FPGALatency`.
        bit_rate: bit operations a second of the comparison unit.
        source: of the resources.
    """

    part: str
    dsps: int
    brams: int
    urams: int
    luts: int
    word_rate: float
    bit_rate: float
    source: str


BOARDS: Mapping[str, Board] = MappingProxyType(
    {
        "zcu104": Board(
            part="XCZU7EV",
            dsps=1728,
            brams=312,
            urams=96,
            luts=230_400,
            word_rate=195e9,
            bit_rate=25.6e9,
            source="AMD Zynq UltraScale+ MPSoC product tables (XMP104)",
        )
    }
)
"""``zcu104``: the board of PASNet and RRNet."""


def latency_model(name: str, *, batch: int = 1) -> LatencyModel:
    """The latency model of a name: a board of :data:`BOARDS`, or ``pasnet-proxy``.

    Raises:
        UnknownName: there is none.
    """
    if name == ReleasedProxy().name:
        return ReleasedProxy()
    return fpga_latency(name, batch=batch)


def fpga_latency(
    board: str = "zcu104",
    *,
    bandwidth: float = 8e9,
    base_latency: float = 0.0,
    batch: int = 1,
    words_per_cycle: float | None = None,
    clock: float | None = None,
) -> FPGALatency:
    """The latency model of two boards of a kind and the network between them.

    Args:
        board: a key of :data:`BOARDS`.
        bandwidth: of the network, bit/s.
        base_latency: of a message, seconds.
        batch: images.
        words_per_cycle, clock: another accelerator on the board: word operations a cycle, and hertz.

    Raises:
        UnknownName: no such board.
        ValueError: a value is out of range, or one of ``words_per_cycle`` and ``clock`` is missing.
    """
    if board not in BOARDS:
        raise UnknownName(f"unknown board {board!r}{did_you_mean(board, BOARDS)}")
    if (words_per_cycle is None) != (clock is None):
        raise ValueError("words_per_cycle and clock go together")
    found, rate = BOARDS[board], BOARDS[board].word_rate
    if words_per_cycle is not None and clock is not None:
        rate = words_per_cycle * clock
        most = found.dsps // DSPS_PER_PRODUCT
        if words_per_cycle > most:
            warnings.warn(
                f"{words_per_cycle:g} products a cycle do not fit the {found.dsps} DSP blocks of a {board}: "
                f"{most} 32-bit ones do",
                stacklevel=2,
            )
    return FPGALatency(rate, found.bit_rate, bandwidth, base_latency, batch, board)
