"""Degree-bucketed blocks: the published partition's rules, coverage, and NumPy beside C++."""

import hashlib
from collections import Counter

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from tradeoff.core import native
from tradeoff.engines.kernels import partition as module
from tradeoff.engines.kernels.partition import (
    BlockPartition,
    BlockShape,
    PartitionMismatch,
    checksum,
    reference_partition,
)
from tradeoff.nn.graphs import PUBLISHED, published_degrees

BORDERS = [0, 1, 31, 32, 33, 64, 65, 96, 97, 128, 129, 191, 192, 193, 383, 384, 385, 768, 769, 2000]

# The partitions that the authors of Accel-GCN published: records, and how the SHA-256 of their bytes starts.
PUBLISHED_PARTITIONS = {
    "am": (79178, "2aa3e1f980ab9f7e"),
    "amazon0601": (38682, "ad29422b9eb888c0"),
    "artist": (7485, "1a6cd9d3f0d4a333"),
    "arxiv": (10782, "b9494c2fc483bae9"),
    "citation": (251693, "a97a9a9a8f67f22b"),
    "collab": (21741, "4261e3e29d050cac"),
    "com-amazon": (28183, "ba9827e26f66372a"),
    "ovcar-8h": (157464, "b1fb6574d90630ce"),
    "ppa": (154341, "ac1dbe8971887213"),
    "pubmed": (1716, "79854e1c4510f4da"),
    "sw-620h": (157385, "37480ca1a419251e"),
    "twitter-partial": (48402, "d8a4da5673c9933d"),
    "wikikg2": (208513, "9c1c1229d5bef646"),
    "yeast": (142578, "c2b1e00c18cc0fe4"),
    "yelp": (83558, "4adc032115f4cd63"),
    "youtube": (102118, "c6ef2a214d83b415"),
}
# Records of those that differ where degree 192 shares its block, as the rule has it.
WITH_192 = {"amazon0601": 38672, "artist": 7477, "arxiv": 10780, "citation": 251687, "collab": 21740}
WITH_192 |= {"ppa": 154137, "yelp": 83528, "youtube": 102111}


def pointers(degrees: list[int] | NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(np.asarray(degrees, np.int64))]))


def degree_lists() -> st.SearchStrategy[list[int]]:
    degree = st.one_of(st.integers(0, 6), st.sampled_from(BORDERS))
    mixed = st.lists(degree, max_size=60)
    runs = st.builds(lambda g, count, more: [g] * count + more, degree, st.integers(0, 40), mixed)
    star = st.builds(lambda leaves: [leaves] + [1] * min(leaves, 30), st.integers(0, 3000))
    return st.one_of(mixed, runs, star)


def table_row(degree: int) -> tuple[int, int, int]:
    """Warps a row, rows a block and non-zeros a warp, as the paper's table has them for 12 warps of 32."""
    for last, factor in ((32, 1), (64, 2), (96, 3), (128, 4), (192, 6), (384, 12)):
        if degree <= last:
            return factor, 12 // factor, -(-degree // factor)
    raise AssertionError(degree)


def test_table_of_degrees() -> None:
    shape = BlockShape()
    assert shape.limit == 384
    for degree in range(1, 385):
        factor, rows, width = table_row(degree)
        assert shape.warps_per_row[degree] == factor
        assert shape.rows_per_block[degree] == rows
        assert shape.width[degree] == width
        assert width * factor >= degree
        assert rows * factor <= 12


def test_compatible_table_ends_at_191_and_does_not_balance() -> None:
    shape, balanced = BlockShape(compat=True), BlockShape()
    assert (shape.rows_per_block[191], shape.width[191]) == (2, 32)
    assert (shape.rows_per_block[192], shape.width[192]) == (1, 32)
    assert (balanced.rows_per_block[192], balanced.width[192]) == (2, 32)
    assert (shape.width[193:] == 32).all()
    assert balanced.width[193] == 17
    np.testing.assert_array_equal(shape.rows_per_block[:192], balanced.rows_per_block[:192])
    np.testing.assert_array_equal(shape.width[:192], balanced.width[:192])


@pytest.mark.parametrize("warps", [1, 5, 8, 12, 32])
@pytest.mark.parametrize("nnz_per_warp", [1, 7, 32])
@pytest.mark.parametrize("compat", [False, True])
def test_table_of_other_blocks(warps: int, nnz_per_warp: int, compat: bool) -> None:
    shape = BlockShape(warps, nnz_per_warp, compat)
    degrees = np.arange(1, shape.limit + 1)
    factors, rows, width = (array[1:] for array in (shape.warps_per_row, shape.rows_per_block, shape.width))
    assert (warps % factors == 0).all()
    assert (factors * rows <= warps).all()
    assert (factors * width >= degrees).all()
    assert (width <= nnz_per_warp).all()
    if not compat:  # the smallest divisor that suffices
        for degree, factor in zip(degrees, factors, strict=True):
            smaller = [f for f in range(1, factor) if warps % f == 0]
            assert all(f * nnz_per_warp < degree for f in smaller)


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    degree_lists(), st.sampled_from([(12, 32, False), (12, 32, True), (8, 16, False), (5, 1, False)])
)
def test_each_nonzero_is_in_one_record_and_one_warp(degrees: list[int], block: tuple[int, int, bool]) -> None:
    warps, nnz_per_warp, compat = block
    partition = BlockPartition.from_indptr(
        pointers(degrees), warps=warps, nnz_per_warp=nnz_per_warp, compat=compat
    )
    order, limit = partition.order.tolist(), partition.limit
    assert sorted(order) == list(range(len(degrees)))
    assert order == sorted(range(len(degrees)), key=lambda row: (degrees[row], row))
    first = np.cumsum([0] + [degrees[row] for row in order])
    seen: Counter[tuple[int, int]] = Counter()
    for degree, row, nonzero, info in partition.blocks.tolist():
        if degree > limit:
            assert 1 <= info <= limit
            served = [
                (row, nonzero + at, min(nnz_per_warp, info - at)) for at in range(0, info, nnz_per_warp)
            ]
        else:
            width, rows = info >> 16, info & 0xFFFF
            assert 1 <= rows <= partition.shape.rows_per_block[degree]
            assert nonzero == first[row]
            served = [
                (row + r, nonzero + r * degree + at, min(width, degree - at))
                for r in range(rows)
                for at in range(0, degree, width)
            ]
        assert len(served) <= warps
        for member, start, length in served:
            assert degrees[order[member]] == degree
            assert first[member] <= start
            assert start + length <= first[member + 1]
            seen.update((member, at) for at in range(start, start + length))
    assert seen == Counter((r, at) for r in range(len(degrees)) for at in range(first[r], first[r + 1]))
    assert partition.empty_rows == degrees.count(0)


@hypothesis.settings(max_examples=200)
@hypothesis.given(degree_lists(), st.integers(1, 32), st.integers(1, 40), st.booleans())
def test_native_and_numpy_are_identical(
    require, degrees: list[int], warps: int, nnz_per_warp: int, compat: bool
) -> None:
    require(native.extension(), "the compiled extension is missing: install a C++17 compiler")
    shape, indptr = BlockShape(warps, nnz_per_warp, compat), pointers(degrees).numpy()
    for ours, theirs in zip(
        module._native_partition(indptr, shape), reference_partition(indptr, shape), strict=True
    ):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", PUBLISHED_PARTITIONS)
def test_published_partitions_are_reproduced_record_by_record(name: str) -> None:
    indptr = pointers(published_degrees(name))
    partition = BlockPartition.from_indptr(indptr, compat=True)
    records, digest = PUBLISHED_PARTITIONS[name]
    assert partition.nnz == PUBLISHED[name].edges
    assert partition.blocks.shape == (records, 4)
    assert hashlib.sha256(partition.blocks.numpy().tobytes()).hexdigest()[:16] == digest
    assert len(BlockPartition.from_indptr(indptr).blocks) == WITH_192.get(name, records)


def test_from_two_to_the_31_nonzeros_records_are_wide(require) -> None:
    require(native.extension(), "the compiled extension is missing: install a C++17 compiler")
    degrees = [2**28] * 9 + [3, 0, 2]
    partition = BlockPartition.from_indptr(pointers(degrees), warps=32, nnz_per_warp=2**15 - 1)
    assert partition.blocks.dtype == torch.int64
    assert int(partition.blocks[-1, 2]) > 2**31
    covered = partition.blocks[partition.blocks[:, 0] > partition.limit, 3].sum()
    assert int(covered) == 9 * 2**28
    expected = reference_partition(pointers(degrees).numpy(), partition.shape)[1]
    np.testing.assert_array_equal(partition.blocks.numpy(), expected)
    below = BlockPartition.from_indptr(pointers([5, 2, 0]))
    assert below.blocks.dtype == torch.int32


@pytest.mark.parametrize("degrees", [[], [0], [0, 0, 0], [5]])
def test_smallest_matrices(degrees: list[int]) -> None:
    partition = BlockPartition.from_indptr(pointers(degrees))
    assert len(partition.blocks) == sum(degree > 0 for degree in degrees)
    assert partition.empty_rows == degrees.count(0)
    assert partition.stats().metadata_ratio == 1.0


def test_stats_by_hand() -> None:
    """25 rows of degree 2 (3 blocks), one of 100 (4 warps) and one of 800 (segments of 384, 384, 32)."""
    stats = BlockPartition.from_indptr(pointers([2] * 25 + [100, 0, 800])).stats()
    assert stats.records == 3 + 1 + 3
    assert stats.bytes == 16 * 7
    assert stats.warp_level_bytes == 16 * (25 + 4 + 12 + 12 + 1)
    assert stats.padding == pytest.approx((3 * 12 * 2 + 3 * 100 + 3 * 384) / 950)
    assert stats.split == pytest.approx(800 / 950)
    assert stats.empty_rows == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warps": 0}, "1 to 32 warps, not 0"),
        ({"warps": 33}, "1 to 32 warps, not 33"),
        ({"nnz_per_warp": 0}, "non-zeros, not 0"),
        ({"nnz_per_warp": 2**15}, "non-zeros, not 32768"),
    ],
)
def test_impossible_blocks_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockPartition.from_indptr(pointers([1, 2]), **options)


def test_partition_of_another_graph_is_refused() -> None:
    partition = BlockPartition.from_indptr(pointers([1, 2, 3]))
    partition.check(pointers([1, 2, 3]))
    for degrees in ([1, 3, 2], [1, 2, 3, 0], [1, 2, 4]):
        with pytest.raises(PartitionMismatch, match="another graph"):
            partition.check(pointers(degrees))
    assert checksum(pointers([1, 2])) != checksum(pointers([2, 1]))


def test_native_functions_refuse_what_would_overrun(require) -> None:
    kernels = native.extension()
    require(kernels, "the compiled extension is missing: install a C++17 compiler")
    indptr, order = np.array([0, 2, 3]), np.array([1, 0], np.int32)
    table, blocks = np.ones(3, np.int64), np.empty((2, 4), np.int32)
    kernels.cut_blocks(indptr, order, 2, table, table, blocks)
    for arguments, message in (
        ((indptr, order[:1], 2, table, table, blocks), "one element a row"),
        ((indptr, np.array([0, 2], np.int32), 2, table, table, blocks), "order must hold rows"),
        ((np.array([0, 2, 1]), order, 2, table, table, blocks), "must not decrease"),
        ((indptr, order, 3, table, table, blocks), "must cover the degrees"),
        ((indptr, order, 2, table, table, blocks[:1].copy()), "more blocks than counted"),
        ((indptr, order, 2, table, table, np.empty((3, 4), np.int32)), "fewer blocks than counted"),
        ((indptr, order, 2, table, table, np.empty((2, 3), np.int32)), "four fields"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.cut_blocks(*arguments)
    with pytest.raises(ValueError, match="must not decrease"):
        kernels.sort_by_degree(np.array([0, 2, 1]), np.empty(2, np.int32))
    with pytest.raises(ValueError, match="one element a row"):
        kernels.sort_by_degree(indptr, np.empty(3, np.int32))
    with pytest.raises(ValueError, match="hold a row"):
        kernels.count_blocks(indptr, 2, np.zeros(3, np.int64))
