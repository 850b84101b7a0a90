"""Construction, normalization and transposes of graphs, against dense arithmetic and other libraries."""

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from tradeoff.engines.kernels import Graph, GraphError, maxk, native_ops, reference, spmm


@given(n=st.integers(1, 20), m=st.integers(1, 20), nnz=st.integers(0, 80), seed=st.integers(0, 10**6))
def test_coordinates_in_any_order_are_added_up(n: int, m: int, nnz: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    row, column = generator.integers(0, n, nnz), generator.integers(0, m, nnz)
    values = generator.standard_normal(nnz)
    exact = scipy.sparse.coo_array((values, (row, column)), (n, m)).toarray()
    graph = Graph.from_coo(row, column, values, (n, m))
    assert np.allclose(graph.to_dense().numpy(), exact, atol=1e-12)
    assert graph.indices.dtype == torch.int32
    for begin, end in zip(graph.indptr[:-1].tolist(), graph.indptr[1:].tolist(), strict=True):
        columns = graph.indices[begin:end].tolist()
        assert columns == sorted(set(columns))
    unweighted = Graph.from_coo(row, column, shape=(n, m))
    counted = scipy.sparse.coo_array((np.ones(nnz), (row, column)), (n, m)).toarray()
    assert np.array_equal(unweighted.to_dense().numpy(), counted)
    assert (unweighted.values is None) == (len(set(zip(row, column, strict=True))) == nnz)


def test_weights_of_coordinates_get_gradients() -> None:
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    graph = Graph.from_coo([1, 0, 1], [0, 1, 0], values, (2, 2))
    spmm(graph, torch.tensor([[2.0], [5.0]])).sum().backward()
    assert values.grad.tolist() == [2, 5, 2]


def test_csr_of_unsorted_columns_is_sorted() -> None:
    graph = Graph.from_csr([0, 3, 4], [2, 0, 2, 1], torch.tensor([1.0, 2, 3, 4]), 3)
    assert graph.to_dense().tolist() == [[2, 0, 4], [0, 4, 0]]
    assert graph.nnz == 3


def test_csr_shares_memory() -> None:
    indptr, indices = torch.tensor([0, 1, 2]), torch.tensor([1, 0], dtype=torch.int32)
    values = torch.tensor([1.0, 2.0])
    graph = Graph.from_csr(indptr, indices, values)
    assert graph.indptr.data_ptr() == indptr.data_ptr()
    assert graph.indices.data_ptr() == indices.data_ptr()
    assert graph.values.data_ptr() == values.data_ptr()


def test_edges_point_from_source_to_target() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 0], [1, 2]]), num_nodes=3)
    assert graph.to_dense().tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert Graph.from_edge_index(torch.empty(2, 0, dtype=torch.int64)).shape == (0, 0)


@pytest.mark.parametrize("self_loops", [False, True])
def test_normalization_is_that_of_pyg(random_graph, self_loops: bool) -> None:
    gcn_norm = pytest.importorskip("torch_geometric.nn.conv.gcn_conv").gcn_norm
    graph = random_graph(12, 12, 0.3, 5)
    graph = graph.with_values(graph.values.abs())
    row = reference.row_of_entry(graph.indptr, graph.nnz)
    edge_index = torch.stack([graph.indices.long(), row])
    edges, weights = gcn_norm(edge_index, graph.values, 12, add_self_loops=self_loops)
    expected = Graph.from_edge_index(edges, weights, num_nodes=12)
    assert torch.allclose(graph.normalize("sym", self_loops).to_dense(), expected.to_dense(), atol=1e-6)


def test_isolated_nodes_have_weight_zero() -> None:
    graph = Graph.from_coo([0, 0, 2, 2], [0, 1, 0, 1], torch.tensor([1.0, 3.0, 1.0, -1.0]), (3, 3))
    rows = graph.normalize("row")
    assert rows.to_dense().tolist() == [[0.25, 0.75, 0], [0, 0, 0], [0, 0, 0]]
    assert bool(graph.normalize("sym").values.isfinite().all())
    assert graph.normalize("none") is graph


@given(n=st.integers(0, 25), m=st.integers(0, 25), seed=st.integers(0, 10**6))
def test_transposes_of_both_backends(random_graph, n: int, m: int, seed: int) -> None:
    graph = random_graph(n, m, 0.3, seed)
    assert torch.equal(graph.transpose().to_dense(), graph.to_dense().T)
    assert torch.equal(graph.transpose().values, graph.values[graph.perm])
    assert graph.transpose() is graph.transpose()
    for module in (native_ops, reference):
        for dtype in (torch.int32, torch.int64):  # columns are int64 beyond 2^31 - 1
            indptr, indices, perm = module.transpose(graph.indptr, graph.indices.to(dtype), m)
            assert torch.equal(indptr, graph.structure.column_offsets)
            assert torch.equal(indices, graph.transpose().indices)
            assert torch.equal(perm, graph.perm)


def test_wide_columns_give_the_same_products(random_graph, features) -> None:
    graph, x, y = random_graph(20, 15, 0.4, 1), features(15, 24, seed=2), features(20, 24, seed=3)
    h = maxk(x, 5)
    base, more = (graph.indptr, graph.indices), (graph.indptr, graph.indices.long())
    compressed = (h.values, h.index, None)
    for call in (
        lambda a: native_ops.spmm(*a, graph.values, x),
        lambda a: native_ops.sddmm(*a, y, x),
        lambda a: native_ops.cbsr_spmm(*a, graph.values, *compressed, 24, False),
        lambda a: native_ops.cbsr_sddmm(*a, graph.values, y, h.index, None, None, False),
        lambda a: native_ops.cbsr_edge_dots(*a, y, *compressed),
    ):
        assert torch.allclose(call(base), call(more), atol=1e-5)


def test_symmetry_is_of_pattern_and_weights() -> None:
    pattern = ([0, 1, 1, 2], [1, 0, 2, 1])
    symmetric = Graph.from_coo(*pattern, torch.tensor([1.0, 1.0, 2.0, 2.0]), (3, 3))
    assert symmetric.is_symmetric
    assert symmetric.transpose() is symmetric
    mean = symmetric.normalize("row")
    assert not mean.is_symmetric
    assert torch.equal(mean.transpose().to_dense(), mean.to_dense().T)
    assert mean.transpose().indices is mean.indices
    assert Graph.from_coo(*pattern, shape=(3, 3)).is_symmetric


def test_other_forms(random_graph) -> None:
    graph = random_graph(8, 6, 0.4, 2)
    assert torch.equal(Graph.from_scipy(graph.to_scipy()).to_dense(), graph.to_dense())
    assert torch.equal(graph.to_torch().to_dense(), graph.to_dense())
    assert graph.to(dtype=torch.float64).values.dtype == torch.float64
    assert graph.to("cpu") is graph
    assert graph.degrees().sum() == graph.nnz
    assert repr(graph) == f"Graph(8 x 6, nnz={graph.nnz}, float32, cpu)"


UNSIGNED = torch.tensor([0, 3], dtype=torch.uint64)
BAD = {
    "indptr falls at position 2: 1 after 3": lambda: Graph.from_csr([0, 3, 1, 3], [0, 1, 2]),
    "indptr starts with 1 at position 0": lambda: Graph.from_csr([1, 2], [0, 0]),
    "indptr ends with 2 at position 1, but indices has 1": lambda: Graph.from_csr([0, 2], [0]),
    "indptr is empty": lambda: Graph.from_csr([], []),
    r"indices\[1\] is 3, must be from 0 to 2": lambda: Graph.from_csr([0, 1, 2, 2], [0, 3]),
    r"indices\[0\] is -1": lambda: Graph.from_csr([0, 1], [-1]),
    r"row\[1\] is 2, must be from 0 to 1": lambda: Graph.from_coo([0, 2], [0, 0], shape=(2, 2)),
    r"column\[0\] is -4": lambda: Graph.from_coo([0], [-4], shape=(2, 2)),
    "row has 2 entries, column 1": lambda: Graph.from_coo([0, 1], [0]),
    "indices holds whole numbers": lambda: Graph.from_csr([0, 1], [0.5]),
    "indices has one dimension": lambda: Graph.from_csr([0, 1], [[0]]),
    "values has shape": lambda: Graph.from_csr([0, 1], [0], torch.ones(2)),
    "values are float32 or float64, not torch.int64": lambda: Graph.from_csr(
        [0, 1], [0], torch.ones(1).long()
    ),
    r"edge_index has shape \(2, edges\)": lambda: Graph.from_edge_index(torch.zeros(3, 2, dtype=torch.int64)),
    "num_columns is a whole number": lambda: Graph.from_csr([0], [], num_columns=-1),
    "normalize takes one of": lambda: Graph.from_csr([0], []).normalize("column"),
    "needs a square matrix": lambda: Graph.from_csr([0, 0], [], num_columns=3).normalize("sym"),
    r"1,099,511,627,776 rows .* takes [\d,]+ bytes": lambda: Graph.from_coo([0], [0], shape=(2**40, 2**40)),
    "4,611,686,018,427,387,905 columns": lambda: Graph.from_edge_index([[2**62], [0]]),
    "num_nodes is a whole number of at least 0, not nan": lambda: Graph.from_edge_index(
        [[0], [0]], num_nodes=float("nan")
    ),
    "num_nodes is a whole number of at least 0, not 'a'": lambda: Graph.from_edge_index(
        [[0], [0]], num_nodes="a"
    ),
    r"indices\[1\] is 3, must be from 0 to 1": lambda: Graph.from_csr([0, 1, 2], UNSIGNED),
    "values are real numbers, not torch.complex64": lambda: Graph.from_scipy(
        scipy.sparse.csr_array([[1j]], dtype="complex64")
    ),
    "row 0 sums to less than 0": lambda: Graph.from_csr([0, 1], [0], torch.tensor([-1.0])).normalize("sym"),
}


def test_unsigned_indices_are_taken() -> None:
    graph = Graph.from_coo(UNSIGNED, UNSIGNED)
    assert graph.to_dense().nonzero().tolist() == [[0, 0], [3, 3]]
    assert Graph.from_edge_index(torch.stack([UNSIGNED, UNSIGNED])).num_rows == 4


def test_rows_that_sum_to_next_to_nothing_have_means() -> None:
    """1 over a denormal number may be infinite."""
    values = torch.tensor([1e-45, 0, 1e-40, 3e-40, 2, 6])
    graph = Graph.from_csr([0, 2, 4, 6], [0, 1, 0, 1, 0, 1], values, 2)
    means = torch.tensor([[1.0, 0], [0.25, 0.75], [0.25, 0.75]])
    assert torch.allclose(graph.normalize("row").to_dense(), means, atol=1e-4)


@pytest.mark.parametrize("message", BAD)
def test_bad_arrays_name_the_first_bad_position(message: str) -> None:
    with pytest.raises(GraphError, match=message) as raised:
        BAD[message]()
    assert isinstance(raised.value, ValueError)
