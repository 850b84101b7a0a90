"""What kernels were asked to do: counted from shapes at each call, forward and backward."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Call:
    """One execution of a kernel.

    Attributes:
        operator: ``spmm``, ``maxk_select``, ``cbsr_spmm``, ``cbsr_sddmm``, ``sddmm``, ``cbsr_edge_dots``,
            ``cbsr_dense`` or ``cbsr_gather``.
        kernel: what ran: backend, strategy and, for C++, the instruction set, such as ``cpp-avx512-rows``.
        flops: multiplications and additions; of a selection, which has none, 0.
        bytes_read: what the kernel asks of memory: a row of features for each entry of the graph.
        bytes_written: of the result.
        compulsory_bytes: every operand read once and the result written once: the least that any kernel
            moves.
    """

    operator: str
    kernel: str
    flops: int
    bytes_read: int
    bytes_written: int
    compulsory_bytes: int


@dataclass
class Meter:
    """The calls within a :func:`cost_meter`, and their sums."""

    calls: list[Call] = field(default_factory=list)

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return sum(call.flops for call in self.calls)

    @property
    def bytes_read(self) -> int:
        """Bytes that the kernels asked of memory."""
        return sum(call.bytes_read for call in self.calls)

    @property
    def bytes_written(self) -> int:
        """Bytes of the results."""
        return sum(call.bytes_written for call in self.calls)

    @property
    def compulsory_bytes(self) -> int:
        """Bytes if every operand were read once and every result written once."""
        return sum(call.compulsory_bytes for call in self.calls)

    @property
    def kernel(self) -> str:
        """What the last call ran; empty before any."""
        return self.calls[-1].kernel if self.calls else ""


_lock = threading.Lock()
_active: list[Meter] = []
_last: list[Call] = []


@contextmanager
def cost_meter() -> Iterator[Meter]:
    """Count the kernels that run within, in whichever thread (backward passes on a GPU have their own).

    Example::

        with cost_meter() as meter:
            spmm(graph, x)
        print(meter.flops, meter.bytes_read, meter.kernel)
    """
    meter = Meter()
    with _lock:
        _active.append(meter)
    try:
        yield meter
    finally:
        with _lock:
            _active[:] = [each for each in _active if each is not meter]


def record(call: Call) -> None:
    """Add a call to the meters that are running."""
    with _lock:
        _last[:] = [call]
        for meter in _active:
            meter.calls.append(call)


def last_call() -> Call | None:
    """The latest kernel of this process."""
    with _lock:
        return _last[0] if _last else None
