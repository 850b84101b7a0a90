"""Adjacency arrays against scipy, generators against their promises, texts of graphs, hostile NumPy files."""

import dataclasses
import io
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core.errors import DataError
from tradeoff.nn import graphs
from tradeoff.nn.graphs import arrays, from_edges, generate, published
from tradeoff.nn.graphs.specs import FAMILIES


def to_scipy(graph: graphs.Adjacency) -> sp.csr_matrix:
    data = np.ones(graph.nnz) if graph.values is None else graph.values
    return sp.csr_matrix((data, graph.indices, graph.indptr), shape=(graph.num_nodes, graph.num_nodes))


edge_lists = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40)
    )
)


@settings(max_examples=100)
@given(edge_lists, st.booleans(), st.booleans(), st.booleans())
def test_edges_become_the_matrix_that_scipy_makes(case, symmetric, loops, weighted):
    n, edges = case
    rows, columns = np.array(edges, np.int64).reshape(-1, 2).T
    values = np.arange(1, len(rows) + 1, dtype=np.float32) if weighted and not symmetric else None
    graph = from_edges(rows, columns, n, values=values, symmetric=symmetric, self_loops=loops)
    dense = sp.coo_matrix(
        (np.ones(len(rows)) if values is None else values, (rows, columns)), (n, n)
    ).toarray()
    dense = dense + dense.T if symmetric else dense
    if not loops:
        np.fill_diagonal(dense, 0)
    dense = (dense > 0) if values is None else dense
    assert np.array_equal(to_scipy(graph).toarray(), dense)
    assert (graph.indptr.dtype, graph.indices.dtype) == (np.int64, np.int32)
    assert to_scipy(graph).has_canonical_format
    assert np.array_equal(to_scipy(graph.transpose()).toarray(), dense.T)
    assert graph.is_symmetric == bool((dense == dense.T).all())
    kept = np.arange(n)[::-2]
    assert np.array_equal(to_scipy(graph.induced(kept)).toarray(), dense[np.ix_(kept, kept)])
    source, target = graph.edge_index
    assert (dense[target, source] > 0).all()


@pytest.mark.parametrize(
    ("rows", "columns", "options", "message"),
    [
        ([0, 3], [1, 1], {}, "edge 1 has node 3; there are 3 nodes"),
        ([0, -1], [1, 1], {}, "edge 1 has node -1"),
        ([0], [1, 2], {}, "vectors of one length"),
        ([0], [1], {"values": np.ones(1, np.float32), "symmetric": True}, "weighted entries"),
    ],
)
def test_wrong_edges(rows, columns, options, message):
    with pytest.raises(ValueError, match=message):
        from_edges(np.array(rows), np.array(columns), 3, **options)


def test_files_are_those_of_scipy(tmp_path):
    graph = from_edges(np.array([0, 1, 1]), np.array([1, 0, 2]), 3, values=np.array([1, 2, 3], np.float32))
    graph.save(tmp_path / "ours.npz")
    assert np.array_equal(sp.load_npz(tmp_path / "ours.npz").toarray(), to_scipy(graph).toarray())
    sp.save_npz(tmp_path / "theirs.npz", to_scipy(graph))
    read = generate(str(tmp_path / "theirs.npz"))
    assert np.array_equal(to_scipy(read).toarray(), to_scipy(graph).toarray())


def csr(**changes):
    arrays = {
        "indptr": np.array([0, 1, 2]), "indices": np.array([1, 0]), "data": np.ones(2),
        "shape": np.array([2, 2]), "format": np.array(b"csr"),
    }  # fmt: skip
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indptr": np.array([0, 2, 1])}, "indptr must have 3 numbers, from 0 to 2"),
        ({"indptr": np.array([0, 3, 2])}, "indptr decreases at row 1"),
        ({"indptr": np.array([0, 2])}, "indptr must have 3 numbers"),
        ({"indices": np.array([1, 2])}, "has node 2"),
        ({"indices": np.array([1.0, 0.0])}, "vectors of integers"),
        ({"data": np.ones(3)}, "as many real numbers"),
        ({"shape": np.array([2, 3])}, "a graph's is square"),
        ({"shape": np.array([10**12, 10**12])}, "less than 2.32 nodes"),
        ({"format": np.array(b"csc")}, "not in CSR form"),
        ({"data": None}, "holds no array data"),
        ({"data": np.array([{}, {}], object)}, "Python objects"),
    ],
)
def test_malformed_matrices(tmp_path, changes, message):
    np.savez(tmp_path / "g.npz", **csr(**changes))
    with pytest.raises(DataError, match=message):
        graphs.read_adjacency(tmp_path / "g.npz")


@pytest.mark.parametrize("value", [1, 2])
def test_entries_that_repeat_in_a_file_add_up(tmp_path, value):
    repeated = {"indptr": [0, 2, 3], "indices": [1, 1, 0], "data": [value, value, 1.0]}
    np.savez(tmp_path / "g.npz", **csr(**{name: np.array(array) for name, array in repeated.items()}))
    graph = graphs.read_adjacency(tmp_path / "g.npz")
    assert to_scipy(graph).toarray().tolist() == [[0, 2 * value], [1, 0]]


def test_graphs_larger_than_memory_are_named(monkeypatch):
    def full(*numbers, seed):
        raise MemoryError("Unable to allocate 29.8 GiB")

    monkeypatch.setitem(FAMILIES, "pl", dataclasses.replace(FAMILIES["pl"], make=full))
    with pytest.raises(ValueError, match="'pl:4000000000:0' takes more memory than there is"):
        generate("pl:4000000000:0")


def test_array_files_claim_no_more_than_they_hold(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as file:
        file.writestr("a.npy", header.getvalue() + b"0" * 64)
    (tmp_path / "bomb.npy").write_bytes(header.getvalue() + b"0" * 64)
    for load in (
        lambda: arrays.load_npz(tmp_path / "bomb.npz", ["a"]),
        lambda: arrays.load_npy(tmp_path / "bomb.npy"),
    ):
        with pytest.raises(DataError, match="more than its file holds"):
            load()
    np.savez(tmp_path / "large.npz", a=np.zeros(1000))
    with pytest.raises(DataError, match="unpacks to more than 100 bytes"):
        arrays.load_npz(tmp_path / "large.npz", ["a"], 100)
    whole = (tmp_path / "large.npz").read_bytes()
    for content in (b"", b"PK", whole[:100], whole[:-30]):
        (tmp_path / "cut.npz").write_bytes(content)
        with pytest.raises(DataError, match="is no file of NumPy arrays"):
            arrays.load_npz(tmp_path / "cut.npz", ["a"])
    with pytest.raises(DataError, match="there is no file"):
        arrays.load_npz(tmp_path / "absent.npz", ["a"])
    np.save(tmp_path / "f.npy", np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    assert np.array_equal(arrays.load_npy(tmp_path / "f.npy"), np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    "text", ["rmat:10:8", "pl:2000:12:2.3", "road:30:0.3", "community:1500:30:7", "pl:500:8:2.5:90"]
)
def test_generated_graphs_are_simple_undirected_and_repeatable(text):
    graph = generate(text)
    assert graph.name == text
    assert graph.is_symmetric
    assert not (graph.rows == graph.indices).any()
    again, other = generate(text), generate(text, seed=1)
    assert np.array_equal(graph.indices, again.indices)
    assert not np.array_equal(graph.indices, other.indices)


def test_generators_keep_their_promises():
    assert generate("pl:3000:12").nnz == 3000 * 12
    assert generate("community:2000:40").nnz == 2000 * 40
    assert generate("road:50:0.3").nnz == 2 * (2 * 50 * 49 - round(0.3 * 2 * 50 * 49))
    assert generate("road:50:0").degrees.max() == 4
    hub = graphs.power_law(20_000, 15, 2.2, max_degree=900)
    assert 600 < hub.degrees.max() < 1100
    assert hub.degrees.max() > 50 * np.median(hub.degrees)
    rmat = generate("rmat:12:8")
    assert 0.8 < rmat.nnz / (2 * 8 * 4096) <= 1
    assert rmat.degrees.max() > 20 * rmat.degrees.mean()


def test_communities_hold_together():
    labels = graphs.community_labels(2000, 10)
    assert np.bincount(labels).tolist() == [200] * 10
    inside = {}
    for share in (0.0, 0.8):
        graph = graphs.community(2000, 20, 10, inside=share)
        inside[share] = np.mean(labels[graph.rows] == labels[graph.indices])
    assert inside[0.0] < 0.2
    assert inside[0.8] > 0.7


@settings(max_examples=30)
@given(st.integers(1, 30).flatmap(lambda n: st.lists(st.integers(0, n), min_size=n, max_size=n)))
def test_rows_have_exactly_the_wanted_degrees(degrees):
    graph = graphs.with_degrees(np.array(degrees))
    assert graph.degrees.tolist() == degrees
    assert to_scipy(graph).has_canonical_format


def test_a_row_may_have_every_column():
    degrees = np.array([5000, 4999, 0] + [1] * 4997)
    assert np.array_equal(graphs.with_degrees(degrees).degrees, degrees)


def test_published_sizes():
    exact = [name for name, facts in graphs.PUBLISHED.items() if facts.exact]
    for name, (degrees, rows) in arrays.load_npz(published.DEGREES_FILE, exact).items():
        facts = graphs.PUBLISHED[name]
        rows = rows.astype(np.int64)
        assert (rows.sum(), degrees @ rows, degrees.max()) == (facts.nodes, facts.edges, facts.max_degree)
    for name in ("arxiv", "reddit"):
        facts, each = graphs.PUBLISHED[name], graphs.published_degrees(name)
        assert (len(each), each.sum(), each.max()) == (facts.nodes, facts.edges, facts.max_degree)


def test_a_stand_in_has_the_published_degrees():
    graph = generate("like:PubMed")
    facts = graphs.PUBLISHED["pubmed"]
    assert (graph.num_nodes, graph.nnz, graph.degrees.max()) == (facts.nodes, facts.edges, facts.max_degree)
    assert to_scipy(graph).has_canonical_format


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnat:3", "no graph 'rnat:3'; did you mean 'rmat'"),
        ("zzz", "no graph 'zzz'. Write for example"),
        ("", "no graph ''"),
        ("rmat", r"has 0 numbers; write rmat:SCALE\[:EDGE_FACTOR\]"),
        ("rmat:3:4:5", "has 3 numbers"),
        ("rmat:x", "scale must be an integer, not 'x'"),
        ("rmat:99", "scale must be from 1 to 31"),
        ("rmat:31:99", "edges are more than"),
        ("rmat:4:0", "edge_factor must be at least 1"),
        ("pl:100:nan", "average_degree is out of range"),
        ("pl:100:200", "average degree of 100 nodes is from 0 to 99"),
        ("pl:0:0", "at least one node"),
        ("pl:100:5:2", "exponent must be above 2"),
        ("pl:100:99:2.1", None),
        ("pl:99999999999:5", "nodes are more than"),
        ("road:0", "side must be at least 1"),
        ("road:10:1.5", "removed must be from 0 to 1"),
        ("community:10:3:11", "communities must be from 1 to 10"),
        ("community:10:3:2:-1", "deviation must not be negative"),
        ("like:nothing", "no published graph 'nothing'"),
        ("absent.npz", "there is no file"),
    ],
)
def test_wrong_texts(text, message):
    with pytest.raises(ValueError, match=message):
        generate(text)


@pytest.mark.slow
def test_named_graphs_have_their_sizes():
    sizes = {name: (graph.num_nodes, graph.nnz) for name in ("road1m",) for graph in [generate(name)]}
    assert sizes == {"road1m": (1_000_000, 2_797_200)}
