"""How Triton kernels are launched: tiles, the type of sums, tuning on a GPU."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tiles(NamedTuple):
    """What a program works on at once.

    Attributes:
        edges: entries of A a step.
        columns: of the result.
        warps: of the program.
    """

    edges: int
    columns: int
    warps: int


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def accumulator(x: Tensor) -> tl.dtype:
    """The type of sums: float64 for float64 features, else float32."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def column_tile(columns: int, most: int = 64) -> int:
    """Columns of a program: a power of two between 16 and ``most``."""
    width: int = triton.next_power_of_2(columns)
    return max(16, min(most, width))


def launch_tuned(
    kernel: Any,
    tiles: Sequence[Tiles],
    programs: int,
    columns: int,
    rows: int,
    arguments: Sequence[Any],
    constants: Mapping[str, Any],
) -> None:
    """Launch a kernel that has the constants ROWS, EDGES, COLUMNS and WIDTH with the fastest of some tiles.

    On a GPU Triton times those that make sense once for each class of columns and rows, in each process; the
    interpreter takes a fixed one. The kernel must give the same when it is run again.
    """
    width = triton.next_power_of_2(columns)
    constants = {**constants, "ROWS": rows, "WIDTH": width}
    if interpreted():
        tile = column_tile(columns)
        grid = (programs, triton.cdiv(columns, tile))
        kernel[grid](*arguments, EDGES=max(64, rows), COLUMNS=tile, **constants)
        return

    def grid_of(chosen: Mapping[str, Any]) -> tuple[int, int]:
        return programs, triton.cdiv(columns, chosen["COLUMNS"])

    _tuner(kernel, tuple(tiles))[grid_of](*arguments, **constants)


@functools.cache
def _tuner(kernel: Any, tiles: tuple[Tiles, ...]) -> Any:
    configurations = [
        triton.Config({"EDGES": tile.edges, "COLUMNS": tile.columns}, num_warps=tile.warps) for tile in tiles
    ]
    tune: Callable[[Any], Any] = triton.autotune(
        configurations, key=["ROWS", "WIDTH"], prune_configs_by={"early_config_prune": sensible}
    )
    return tune(kernel)


def sensible(configurations: Sequence[Any], arguments: Mapping[str, Any], **constants: Any) -> list[Any]:
    """Those whose tile is no wider than the result, holds all rows of a block, and fits the registers."""
    known = {**arguments, **constants}
    narrow = max(32, known["WIDTH"])
    kept = []
    for configuration in configurations:
        edges, columns = configuration.kwargs["EDGES"], configuration.kwargs["COLUMNS"]
        elements = edges * columns / (32 * configuration.num_warps)  # of a thread, twice: features and sums
        if columns <= narrow and edges >= known["ROWS"] and 8 <= elements <= 16:
            kept.append(configuration)
    return kept
