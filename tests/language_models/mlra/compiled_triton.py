"""The Triton kernels compiled ahead of time for GPUs that are not here; run by test_triton.py in its own
process."""

import inspect
from typing import Any

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tradeoff.methods.language_models.mlra.triton_decode import (
    STAGES,
    WARPS,
    block_of,
    merge_kernel,
    split_kernel,
)

SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a block may have, by compute capability."""
PARTS = ("sums", "maxima", "totals")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


def compiled(kernel: Any, constants: dict[str, Any], kind: str, capability: int) -> Any:
    def type_of(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in ("query", "latents", "rope_query", "rope_key", "out"):
            return f"*{kind}"
        if name in PARTS:
            return "*fp32"
        return {"lengths": "*i32", "scale": "fp32"}.get(name, "i32")

    names = list(inspect.signature(kernel.fn).parameters)
    known = {name: value for name, value in constants.items() if name in names}
    source = ASTSource(fn=kernel, signature={name: type_of(name) for name in names}, constexprs=known)
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS, "num_stages": STAGES}
    )


@pytest.mark.parametrize(("rank", "rows", "capability"), [(512, 16, 90), (128, 64, 80)])
def test_split_kernel(rank: int, rows: int, capability: int) -> None:
    """MLA and MLRA-4 with 64 heads on four ranks."""
    constants = {
        "RANK": rank,
        "ROPE": 64,
        "PADDED_RANK": rank,
        "PADDED_ROPE": 64,
        "ROWS": rows,
        "BLOCK": block_of(rank),
        "KIND": tl.float32,
    }
    made = compiled(split_kernel, constants, "bf16", capability)
    assert "cubin" in made.asm
    assert made.metadata.shared <= SHARED[capability]


def test_merge_kernel() -> None:
    constants = {"RANK": 128, "PADDED_RANK": 128, "KIND": tl.float32}
    assert "cubin" in compiled(merge_kernel, constants, "bf16", 90).asm
