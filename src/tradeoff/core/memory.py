"""How much memory some work takes, and how much there is."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    import psutil

    total: int = psutil.virtual_memory().total
    return total


class PeakMemory:
    """Largest resident memory of this process, in bytes.

    Attributes:
        bytes: of what ran inside the block; set when it ends.
    """

    bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the largest resident memory inside a block: ``with peak_memory() as peak: ...``.

    Linux forgets earlier peaks at the start of the block. Elsewhere, or where it may not be told to, the peak
    is that of the process so far.
    """
    peak = PeakMemory()
    try:
        _RESET.write_text("5")
        resettable = True
    except OSError:
        resettable = False
    try:
        yield peak
    finally:
        peak.bytes = _high_water_mark() if resettable else _since_start()


def peak_memory_of(pid: int) -> int | None:
    """Largest resident memory of a running process so far, in bytes; None where the system does not tell."""
    try:
        return _high_water_mark(Path(f"/proc/{pid}/status"))
    except (OSError, StopIteration):
        return None


def _high_water_mark(status: Path = _STATUS) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _since_start() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
