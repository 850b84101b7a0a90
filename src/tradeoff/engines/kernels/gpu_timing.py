"""Times of calls on a GPU, by its own clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch

_FLUSHED_BYTES = 256 * 2**20  # more than the L2 cache of any GPU


def median_seconds(
    candidates: Mapping[str, Callable[[], object]],
    *,
    warmups: int = 20,
    runs: int = 100,
    flush: bool = False,
) -> dict[str, float]:
    """The median time of each call between two CUDA events; candidates take turns.

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
    return {
        name: statistics.median(start.elapsed_time(end) for start, end in pairs) / 1000
        for name, pairs in events.items()
    }
