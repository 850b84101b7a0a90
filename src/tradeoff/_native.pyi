"""Types of the compiled kernels; their callers check shapes and dtypes and give what each function does.

Arrays are contiguous and on the CPU. Written are ``out``, ``masked``, ``linear``, of leaves and evaluate
``g`` and ``p``, and of the sparse kernels the last arrays: see :mod:`tradeoff.engines.kernels.native_ops`.
"""

from collections.abc import Sequence

from numpy import float32, float64, int16, int32, int64, uint8, uint32, uint64
from numpy.typing import NDArray

_Ring = NDArray[uint64] | NDArray[uint32]
_Floats = NDArray[float32] | NDArray[float64]
_Offsets = NDArray[int64]
_Columns = NDArray[int32] | NDArray[int64]
_Places = NDArray[uint8] | NDArray[int16]
_Counts = NDArray[int32] | None
_Words = NDArray[uint64]
_Order = NDArray[int32]

def instruction_set() -> str: ...
def relay_packets(links: Sequence[tuple[int, int, float, float]], stop: int) -> None: ...
def ring_matmul(a: _Ring, b: _Ring, out: _Ring, threads: int) -> None: ...
def ring_conv2d(
    x: _Ring,
    weight: _Ring,
    out: _Ring,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    threads: int,
) -> None: ...
def bits_leaves(c: _Words, r: _Words, top: int, party: int, g: _Words, p: _Words, threads: int) -> None: ...
def bits_top(x: _Ring, out: _Words, threads: int) -> None: ...
def bits_mask(
    radix: int, last: bool, g: _Words, p: _Words, masks: _Words, masked: _Words, linear: _Words, threads: int
) -> None: ...
def bits_evaluate(
    radix: int,
    last: bool,
    opened: _Words,
    linear: _Words,
    masks: _Words,
    products: _Words,
    party: int,
    g: _Words,
    p: _Words | None,
    threads: int,
) -> None: ...
def bits_corrections(
    radix: int, last: bool, masks0: _Words, masks1: _Words, products0: _Words, out: _Words, threads: int
) -> None: ...
def step_truncation(
    c: _Ring, rho: _Ring, m: _Ring, shift: int, party: int, out: _Ring, threads: int
) -> None: ...
def step_relu(c: _Ring, x: _Ring, t: _Words, s: _Ring, r_s: _Ring, out: _Ring, threads: int) -> None: ...
def step_truncated_relu(
    c: _Ring,
    t: _Words,
    rho: _Ring,
    m: _Ring,
    s: _Ring,
    rho_s: _Ring,
    m_s: _Ring,
    shift: int,
    party: int,
    out: _Ring,
    threads: int,
) -> None: ...
def deal_truncation(r: _Ring, rho0: _Ring, m0: _Ring, shift: int, out: _Ring, threads: int) -> None: ...
def deal_relu(
    r: _Ring, s: _Words, bits0: _Ring, s0: _Ring, r_s0: _Ring, out: _Ring, threads: int
) -> None: ...
def deal_truncated_relu(
    r: _Ring,
    s: _Words,
    bits0: _Ring,
    rho0: _Ring,
    m0: _Ring,
    s0: _Ring,
    rho_s0: _Ring,
    m_s0: _Ring,
    shift: int,
    out: _Ring,
    threads: int,
) -> None: ...
def cbsr_linear(
    values: _Floats, index: _Places, weight: _Floats, add: _Floats, out: _Floats, threads: int
) -> None: ...
def cbsr_linear_values(
    grad: _Floats, weight: _Floats, index: _Places, out: _Floats, threads: int
) -> None: ...
def cbsr_linear_weight(
    grad: _Floats, values: _Floats, index: _Places, out: _Floats, threads: int
) -> None: ...
def sort_by_degree(indptr: _Offsets, order: _Order) -> None: ...
def count_blocks(indptr: _Offsets, limit: int, rows_per_block: _Offsets) -> int: ...
def cut_blocks(
    indptr: _Offsets,
    order: _Order,
    limit: int,
    rows_per_block: _Offsets,
    width: _Offsets,
    blocks: _Order | _Offsets,
) -> None: ...
def huge_empty(bytes: int) -> NDArray[uint8]: ...
def address(array: object) -> int: ...
def sparse_spmm(
    indptr: _Offsets,
    indices: NDArray[int32],
    values: _Floats | None,
    x: _Floats,
    y: _Floats,
    order: _Order | None,
    threads: int,
) -> None: ...
def sparse_sddmm(
    indptr: _Offsets, indices: NDArray[int32], y: _Floats, x: _Floats, dots: _Floats, threads: int
) -> None: ...
def sparse_transpose(
    indptr: _Offsets, indices: _Columns, indptr_t: _Offsets, indices_t: _Columns, perm: _Offsets
) -> None: ...
def sparse_order(row: _Offsets, column: _Offsets, rows: int, columns: int, order: _Offsets) -> None: ...
def maxk_select(x: _Floats, k: int, count: _Counts, values: _Floats, index: _Places, threads: int) -> int: ...
def cbsr_spmm(
    indptr: _Offsets,
    indices: NDArray[int32],
    weights: _Floats | None,
    values: _Floats,
    index: _Places,
    count: _Counts,
    y: _Floats,
    threads: int,
) -> None: ...
def cbsr_sddmm(
    indptr: _Offsets,
    indices: NDArray[int32],
    weights: _Floats | None,
    grad: _Floats,
    index: _Places,
    count: _Counts,
    column_offsets: _Offsets,
    result: _Floats,
    threads: int,
) -> None: ...
def cbsr_edge_dots(
    indptr: _Offsets,
    indices: NDArray[int32],
    grad: _Floats,
    values: _Floats,
    index: _Places,
    count: _Counts,
    dots: _Floats,
    threads: int,
) -> None: ...
def cbsr_dense(values: _Floats, index: _Places, count: _Counts, dense: _Floats, threads: int) -> None: ...
def cbsr_gather(dense: _Floats, index: _Places, count: _Counts, values: _Floats, threads: int) -> None: ...

# decoding.cpp
def skinny_linear(
    weight: NDArray[float32], x: NDArray[float32], out: NDArray[float32], threads: int
) -> None: ...
def swiglu(gate: NDArray[float32], up: NDArray[float32], out: NDArray[float32], threads: int) -> None: ...
def tree_attention(
    query: NDArray[float32],
    keys: NDArray[float32],
    values: NDArray[float32],
    rope_query: NDArray[float32] | None,
    rope_keys: NDArray[float32] | None,
    offsets: _Offsets,
    starts: _Offsets | None,
    paths: _Order | None,
    out: NDArray[float32],
    scale: float,
    threads: int,
) -> None: ...
