"""Every Triton kernel compiled ahead of time, without a GPU; run by test_triton.py in its own process."""

import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tradeoff.engines.kernels import triton_cbsr, triton_launch, triton_maxk, triton_sddmm, triton_spmm

# Types of the arguments by name; numbers are int32, sums and weights float32.
TYPES = {
    **dict.fromkeys(("indptr", "offsets", "bounds"), "*i64"),
    **dict.fromkeys(("indices", "blocks", "order", "count", "words"), "*i32"),
    **dict.fromkeys(("values", "x", "y", "out", "features", "grad", "parts"), "*fp32"),
    **dict.fromkeys(("index", "before"), "*u8"),
    **dict.fromkeys(("columns", "entries", "k", "num_words", "first_block"), "i32"),
}
SPMM: dict[str, Any] = {"WEIGHTED": True, "SUM": tl.float32, "COLUMNS": 64}
CBSR: dict[str, Any] = {"WEIGHTED": True, "COUNTED": True, "SUM": tl.float32, "EDGES": 16, "KEPT": 32}
HALF = {"x": "*fp16", "out": "*fp16"}
DOUBLE = dict.fromkeys(("values", "x", "out", "parts", "features", "grad"), "*fp64")
KEYS = {"KEY": tl.int32, "BITS": 32, "CLIP": True, "ROWS": 8, "COLUMNS": 256, "KEPT": 32}

# Kernel, its constants, and types that differ from those above.
CASES: list[tuple[Any, dict[str, Any], dict[str, str]]] = [
    (triton_spmm.rows_kernel, {**SPMM, "EDGES": 16}, {}),
    (triton_spmm.rows_kernel, {**SPMM, "EDGES": 16, "SUM": tl.float64}, DOUBLE),
    *[
        (triton_spmm.blocks_kernel, {**SPMM, "ROWS": rows, "EDGES": 32, "WIDTH": 64}, {})
        for rows in (1, 4, 16)
    ],
    (triton_spmm.blocks_kernel, {**SPMM, "ROWS": 16, "EDGES": 32, "WIDTH": 64, "WEIGHTED": False}, HALF),
    (triton_spmm.blocks_kernel, {**SPMM, "ROWS": 4, "EDGES": 32, "WIDTH": 64}, {"blocks": "*i64"}),
    *[(triton_spmm.segments_kernel, {**SPMM, "EDGES": 32, "ATOMIC": atomic}, {}) for atomic in (False, True)],
    (triton_spmm.join_kernel, {"SUM": tl.float32, "COLUMNS": 64}, {"rows": "*i64"}),
    (triton_maxk.maxk_kernel, KEYS, {"values": "*fp32", "rows": "i32"}),
    (triton_maxk.maxk_kernel, {**KEYS, "CLIP": False}, {"rows": "i32", "x": "*bf16", "values": "*bf16"}),
    (triton_maxk.maxk_kernel, {**KEYS, "KEY": tl.int64, "BITS": 64, "ROWS": 4}, {"rows": "i32", **DOUBLE}),
    (triton_sddmm.sddmm_kernel, {"SUM": tl.float32, "EDGES": 32, "COLUMNS": 64}, {"rows": "*i64"}),
    (triton_sddmm.edge_dots_kernel, {**CBSR, "EDGES": 32}, {"rows": "*i64"}),
    (triton_cbsr.scatter_kernel, CBSR, {"rows": "*i64"}),
    (triton_cbsr.scatter_kernel, CBSR, {"rows": "*i64", "index": "*i16"}),
    (triton_cbsr.bitmap_kernel, {"COUNTED": True, "ROWS": 32, "WORDS": 8}, {"rows": "i32"}),
    (triton_cbsr.bitmap_spmm_kernel, {**SPMM, "EDGES": 16}, {}),
    (triton_cbsr.push_kernel, {**CBSR, "COLUMNS": 256}, {}),
    (triton_cbsr.pull_kernel, {**CBSR, "COLUMNS": 256}, {"rows": "*i32"}),
]
# One case of each kernel.
FIRST = list({case[0].__name__: case for case in reversed(CASES)}.values())


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


def compiled(
    kernel: Any, constants: dict[str, Any], types: dict[str, str], capability: int, warps: int = 4
) -> Any:
    names = list(inspect.signature(kernel.fn).parameters)
    known = {name: kind for name, kind in constants.items() if name in names}
    signature = {name: "constexpr" if name in known else {**TYPES, **types}[name] for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=known)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


@pytest.mark.parametrize(
    ("case", "capability"),
    [(case, capability) for case in CASES for capability in (80, 90)],
    ids=lambda value: value[0].__name__ if isinstance(value, tuple) else f"sm_{value}",
)
def test_to_machine_code(
    case: tuple[Any, dict[str, Any], dict[str, str]], capability: int, tmp_path: Path
) -> None:
    binary = compiled(*case, capability)
    assert f".target sm_{capability}" in binary.asm["ptx"]
    (tmp_path / "kernel.cubin").write_bytes(binary.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run(
        [str(tool), "--dump-resource-usage", str(tmp_path / "kernel.cubin")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))
    assert stack == 0, f"{registers} registers do not suffice: {usage}"


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case[0].__name__)
def test_numbers_that_are_one_and_arrays_that_are_absent(
    case: tuple[Any, dict[str, Any], dict[str, str]],
) -> None:
    """At launch Triton makes constants of them, so that other code is compiled."""
    kernel, constants, types = case
    names = inspect.signature(kernel.fn).parameters
    special: dict[str, Any] = {
        name: 1 for name in names if {**TYPES, **types}.get(name) == "i32" and name not in constants
    }
    for flag, array in (("WEIGHTED", "values"), ("COUNTED", "count"), ("CLIP", "count")):
        if flag in names:
            special |= {flag: False, array: None}
    assert compiled(kernel, constants | special, types, 90).asm["cubin"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("width", [32, 128])
def test_sampled_tiles_of_the_tuner(width: int, rows: int, capability: int) -> None:
    """The first and the last of those that it would try for a class of blocks."""
    configurations = [
        triton.Config({"EDGES": tile.edges, "COLUMNS": tile.columns}, num_warps=tile.warps)
        for tile in triton_spmm.TILES
    ]
    kept = triton_launch.sensible(configurations, {"ROWS": rows, "WIDTH": width})
    for configuration in (kept[0], kept[-1]):
        constants = {**SPMM, "ROWS": rows, "WIDTH": width, **configuration.kwargs}
        binary = compiled(triton_spmm.blocks_kernel, constants, {}, capability, configuration.num_warps)
        assert f".target sm_{capability}" in binary.asm["ptx"]
        assert binary.asm["cubin"]


def test_the_tuner_prunes_with_what_a_launch_gives_it() -> None:
    tuner = triton_launch._tuner(triton_spmm.blocks_kernel, tuple(triton_spmm.TILES))
    tuner.nargs = {"columns": 33}
    kept = tuner.prune_configs({"ROWS": 16, "WIDTH": 64, "WEIGHTED": True, "SUM": tl.float32})
    assert kept == triton_launch.sensible(tuner.configs, {"ROWS": 16, "WIDTH": 64})


def test_every_kernel_is_among_the_cases() -> None:
    modules = (triton_cbsr, triton_maxk, triton_sddmm, triton_spmm)
    kernels = {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel")
    }
    assert {case[0].__name__ for case in CASES} == kernels


@pytest.mark.parametrize("width", [1, 16, 64, 128, 1024])
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 32])
def test_some_tiles_are_left_to_be_tuned(width: int, rows: int) -> None:
    configurations = [
        triton.Config({"EDGES": tile.edges, "COLUMNS": tile.columns}, num_warps=tile.warps)
        for tile in triton_spmm.TILES
    ]
    kept = triton_launch.sensible(configurations, {"ROWS": rows, "WIDTH": width})
    assert kept
    assert all(configuration.kwargs["EDGES"] >= rows for configuration in kept)
