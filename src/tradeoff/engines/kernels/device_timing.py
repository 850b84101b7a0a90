"""Times of work on a device: a GPU's by its own clock, a CPU's in processor seconds of one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from tradeoff.core.timing import SideBySide, SystemClock, Timing

_FLUSHED_BYTES = 256 * 2**20  # more than the L2 cache of any GPU


class DeviceClock(SystemClock):
    """Seconds that work on a device takes.

    On a CPU processor seconds, which other programs do not disturb; of one thread (:func:`threads`), since
    they add up those of all. On a GPU, which works on when a call has returned, seconds of the clock once it
    has nothing left to do.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def wall(self) -> float:
        """Seconds until all that was started has ended."""
        if self.device.type == "cpu":
            return self.cpu()
        torch.cuda.synchronize(self.device)
        return super().wall()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch and the kernels of this engine use so many threads within."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side_on_gpu(
    candidates: Mapping[str, Callable[[], object]],
    *,
    warmups: int = 20,
    runs: int = 100,
    flush: bool = False,
) -> SideBySide:
    """The time of each call between two CUDA events; candidates take turns.

    Args:
        candidates: name -> what to time, without arguments, its inputs ready on the GPU.
        warmups: calls of each that are not counted.
        runs: calls of each that are.
        flush: overwrite the L2 cache before each counted call.

    Raises:
        RuntimeError: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("timing by CUDA events needs a CUDA device")
    for call in candidates.values():
        for _ in range(warmups):
            call()
    scratch = torch.empty(_FLUSHED_BYTES if flush else 0, dtype=torch.int8, device="cuda")
    events: dict[str, list[tuple[torch.Event, torch.Event]]] = {name: [] for name in candidates}
    for _ in range(runs):
        for name, call in candidates.items():
            scratch.zero_()
            start, end = (torch.Event(device="cuda", enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return SideBySide(
        {
            name: Timing(tuple(start.elapsed_time(end) / 1000 for start, end in pairs), contention=None)
            for name, pairs in events.items()
        }
    )
