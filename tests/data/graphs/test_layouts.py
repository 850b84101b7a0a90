"""OGB, Reddit, GraphSAINT, SNAP and SuiteSparse: small files in exactly their layout, and malformed ones."""

import gzip
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
import torch

from tradeoff.core.errors import DataError
from tradeoff.data import graphs
from tradeoff.data.graphs import archives, graphsaint, ogb, reddit, structures
from tradeoff.data.graphs.node_data import masks

RNG = np.random.default_rng(0)
MATRIX = sp.csr_matrix(np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]], np.float64))


def write_csv(path: Path, rows: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(",".join(map(str, np.atleast_1d(row).tolist())) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()))


def write_ogb(folder: Path, source: ogb.Source, **changes: np.ndarray) -> None:
    edges = np.array([[0, 1], [1, 2], [3, 1]])
    raw = {
        "num-node-list": [5], "num-edge-list": [3], "edge": edges,
        "node-label": RNG.integers(0, 2, (5, source.classes if source.multi_label else 1)),
        "node-feat": np.arange(5.0 * source.features).reshape(5, -1),
        "edge-feat": np.arange(3.0 * source.edge_features).reshape(3, -1),
        **changes,
    }  # fmt: skip
    if not source.features:
        del raw["node-feat"]
    for name, rows in raw.items():
        write_csv(folder / "raw" / f"{name}.csv.gz", np.asarray(rows))
    for part, nodes in (("train", [0, 3]), ("valid", [1]), ("test", changes.get("split", [4, 2]))):
        write_csv(folder / "split" / source.split / f"{part}.csv.gz", np.asarray(nodes))


def test_ogb(tmp_path):
    write_ogb(tmp_path / "ogbn_arxiv", ogb.SOURCES["ogbn-arxiv"])
    data = graphs.load("ogbn-arxiv", tmp_path)
    assert (data.num_nodes, data.graph.nnz, data.num_features, data.num_classes) == (5, 6, 128, 40)
    assert data.x[1, 0] == 128
    assert data.test.nonzero().flatten().tolist() == [2, 4]
    assert data.graph.degrees.tolist() == [1, 3, 1, 1, 0]


def test_ogb_edge_features_are_summed_over_the_edges_of_a_node(tmp_path):
    write_ogb(tmp_path / "proteins", ogb.SOURCES["ogbn-proteins"])
    data = graphs.load("ogbn-proteins", tmp_path)
    assert data.multi_label
    assert data.y.shape == (5, 112)
    assert data.x[:, 0].tolist() == [0, 0 + 8 + 16, 8, 16, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge": np.array([[0, 1], [1, 2]])}, "edge.csv.gz has 2 lines; expected 3"),
        ({"edge": np.array([[0, 1], [1, 2], [3, 1], [0, 0]])}, "has more lines; expected 3"),
        ({"edge": np.array([[0, 1], [1, 2], [3, 5]])}, "has node 5"),
        ({"edge": np.array([[0, 1, 1]] * 3)}, "is no table of 2 numbers"),
        ({"edge": np.array([["a", "b"]] * 3)}, "is no table of 2 numbers"),
        ({"num-node-list": [-1]}, "says -1"),
        ({"num-node-list": [1 << 40]}, "expected from 1 to"),
        ({"split": [5]}, "not among the 5"),
        ({"split": [0]}, "in two parts"),
        ({"node-label": [[99]] * 5}, "integers from 0 to 39"),
    ],
)
def test_malformed_ogb(tmp_path, changes, message):
    write_ogb(tmp_path / "ogbn-arxiv", ogb.SOURCES["ogbn-arxiv"], **changes)
    with pytest.raises(DataError, match=message):
        graphs.load("ogbn-arxiv", tmp_path)


def test_ogb_from_its_archive(tmp_path, monkeypatch):
    write_ogb(tmp_path / "made" / "arxiv", ogb.SOURCES["ogbn-arxiv"])

    def fetch(remote, target):
        assert remote.url == "https://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"
        with zipfile.ZipFile(target, "w") as file:
            for path in (tmp_path / "made").rglob("*.gz"):
                file.write(path, path.relative_to(tmp_path / "made"))
            file.writestr("../../evil", "x")
        return target

    monkeypatch.setattr(ogb, "download", fetch)
    data = graphs.load("ogbn-arxiv")
    monkeypatch.setattr(ogb, "download", lambda *a: pytest.fail("fetched twice"))
    assert torch.equal(graphs.load("ogbn-arxiv").x, data.x)


def write_reddit(folder: Path, **changes: np.ndarray) -> None:
    folder.mkdir(parents=True)
    data = {
        "feature": np.eye(4, 6), "label": np.array([0, 1, 2, 1]), "node_types": np.array([1, 1, 2, 3]),
        "node_ids": np.arange(4), **changes,
    }  # fmt: skip
    np.savez(folder / "reddit_data.npz", **data)
    sp.save_npz(folder / "reddit_graph.npz", MATRIX.tocoo())


def test_reddit(tmp_path):
    write_reddit(tmp_path / "Reddit" / "raw")
    data = graphs.load("reddit", tmp_path)
    assert (data.num_nodes, data.graph.nnz, data.num_classes) == (4, 6, 3)
    assert data.train.tolist() == [True, True, False, False]
    assert data.graph.values is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.zeros(3, int)}, "different numbers of nodes"),
        ({"label": np.array([{}] * 4)}, "Python objects"),
        ({"label": -np.ones(4, int)}, "labels must be integers"),
        ({"feature": np.zeros(4)}, "must hold numbers"),
    ],
)
def test_malformed_reddit(tmp_path, changes, message):
    write_reddit(tmp_path / "reddit", **changes)
    with pytest.raises(DataError, match=message):
        graphs.load("reddit", tmp_path)


def write_saint(folder: Path, **changes: object) -> None:
    folder.mkdir(parents=True)
    sp.save_npz(folder / "adj_full.npz", MATRIX)
    np.save(folder / "feats.npy", changes.get("feats", np.arange(12.0).reshape(4, 3)))
    classes = changes.get("classes", {"0": 1, "1": 0, "2": 2, "3": 1})
    (folder / "class_map.json").write_text(classes if isinstance(classes, str) else json.dumps(classes))
    roles = changes.get("roles", {"tr": [0, 2], "va": [1], "te": [3]})
    (folder / "role.json").write_text(json.dumps(roles))


def test_graphsaint(tmp_path):
    write_saint(tmp_path / "Flickr" / "raw")
    data = graphs.load("flickr", tmp_path)
    assert (data.y.tolist(), data.num_classes, data.graph.nnz) == ([1, 0, 2, 1], 3, 6)
    assert data.x[:, 0].tolist() == [-1, 0, 1, 2]  # standardized by nodes 0 and 2
    write_saint(tmp_path / "yelp", classes={str(i): [i % 2, 1] for i in range(4)})
    data = graphs.load("yelp", tmp_path)
    assert data.multi_label
    assert data.y.tolist() == [[0, 1], [1, 1], [0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": {"0": 1}}, "must map each node"),
        ({"classes": "[" * 100_000}, "is no JSON"),
        ({"classes": {str(i): -1 for i in range(4)}}, "must give a class"),
        ({"classes": {str(i): [2] for i in range(4)}}, "lists of zeros and ones"),
        ({"classes": {str(i): [1] * i for i in range(4)}}, "class_map.json"),
        ({"classes": {str(i): "a" for i in range(4)}}, "must give a class"),
        ({"roles": {"tr": [0], "va": [0], "te": [1]}}, "in two parts"),
        ({"roles": {"tr": [9], "va": [0], "te": [1]}}, "not among the 4"),
        ({"roles": {"tr": "0"}}, "must list the numbers"),
        ({"feats": np.zeros((3, 2))}, "3 rows of features for 4 nodes"),
        ({"feats": np.full((4, 2), np.nan)}, "finite numbers"),
        ({"feats": np.array([{}])}, "Python objects"),
    ],
)
def test_malformed_graphsaint(tmp_path, changes, message):
    write_saint(tmp_path / "flickr", **changes)
    with pytest.raises(DataError, match=message):
        graphs.load("flickr", tmp_path)


def test_snap(tmp_path):
    (tmp_path / "snap").mkdir()
    text = "# Directed graph\n# FromNodeId\tToNodeId\n10\t20\n20\t10\n30\t10\n"
    (tmp_path / "snap" / "com-tiny.ungraph.txt.gz").write_bytes(gzip.compress(text.encode()))
    graph = graphs.load_structure("snap:com-tiny", tmp_path)
    assert (graph.num_nodes, graph.nnz, graph.name) == (3, 4, "com-tiny")
    path = tmp_path / "directed.txt"
    path.write_text(text)
    assert graphs.load_structure(str(path)).nnz == 4
    directed = structures.read_edge_list(path, symmetric=False)
    assert directed.edge_index.T.tolist() == [[1, 0], [2, 0], [0, 1]]
    path.write_text("1 2 3\n")
    with pytest.raises(DataError, match="has 3 numbers in a line; expected 2"):
        graphs.load_structure(str(path))


@pytest.mark.parametrize("kind", ["real", "pattern"])
def test_suitesparse(tmp_path, kind):
    path = tmp_path / "suitesparse" / "Group" / "tiny.mtx"
    path.parent.mkdir(parents=True)
    scipy.io.mmwrite(path, MATRIX * 2, field=kind, symmetry="symmetric")
    graph = graphs.load_structure("suitesparse:Group/tiny", tmp_path)
    assert (graph.num_nodes, graph.nnz, graph.is_symmetric) == (4, 6, True)
    assert graph.values is None if kind == "pattern" else (graph.values == 2).all()
    compressed = tmp_path / "tiny.mtx.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert graphs.load_structure(str(compressed)).nnz == 6


def test_suitesparse_from_its_archive(tmp_path, monkeypatch):
    path = tmp_path / "tiny.mtx"
    scipy.io.mmwrite(path, MATRIX)

    def fetch(remote, target):
        assert remote.url.endswith("/MM/Group/tiny.tar.gz")
        with tarfile.open(target, "w:gz") as file:
            file.add(path, "tiny/tiny_coord.mtx")
            file.add(path, "tiny/tiny.mtx")
        return target

    monkeypatch.setattr(structures, "download", fetch)
    assert graphs.load_structure("suitesparse:Group/tiny").nnz == 6
    monkeypatch.setattr(structures, "download", lambda *a: pytest.fail("fetched twice"))
    assert graphs.load_structure("suitesparse:Group/tiny").nnz == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no sparse matrix"),
        ("%%MatrixMarket matrix array real general\n2 2\n1\n1\n1\n1\n", "is no sparse matrix"),
        ("%%MatrixMarket matrix coordinate real general\n2 3 1\n1 1 1\n", "a graph's is square"),
        ("%%MatrixMarket matrix coordinate complex general\n2 2 1\n1 1 1 1\n", "complex"),
        (
            "%%MatrixMarket matrix coordinate real general\n2 2 99999999999\n1 1 1\n",
            "more than a file of its size",
        ),
        ("%%MatrixMarket matrix coordinate real general\n2 2 2\n1 1 1\n", "is no sparse matrix"),
        ("%%MatrixMarket matrix coordinate real general\n2 2 1\n3 1 1\n", "is no sparse matrix"),
        ("%%MatrixMarket matrix coordinate real general\n2 2 1\nx y z\n", "is no sparse matrix"),
    ],
)
def test_malformed_matrices(tmp_path, content, message):
    (tmp_path / "m.mtx").write_text(content)
    with pytest.raises(DataError, match=message):
        graphs.load_structure(str(tmp_path / "m.mtx"))


@pytest.mark.parametrize("text", ["snap:../../etc/passwd", "snap:", "suitesparse:a", "suitesparse:a/../b"])
def test_names_of_collections_are_no_paths(text):
    with pytest.raises(DataError, match="is no name of that collection"):
        graphs.load_structure(text)


def test_absent_says_what_to_do(tmp_path, monkeypatch):
    def refuse(remote, target):
        raise DataError("no network")

    for module in (graphsaint, reddit, ogb, structures):
        monkeypatch.setattr(module, "download", refuse)
    for name in ("flickr", "yelp", "reddit", "ogbn-products"):
        with pytest.raises(DataError, match=f"{name} is not here: set TRADEOFF_DATA .* no network"):
            graphs.load(name, tmp_path)
    with pytest.raises(DataError, match="set TRADEOFF_DATA to a folder that holds snap/amazon0601"):
        graphs.load_structure("snap:amazon0601", tmp_path)
    with pytest.raises(DataError, match="did you mean 'reddit'"):
        graphs.load("redit")
    with pytest.raises(DataError, match="graphs with features are: debian-small"):
        graphs.load_structure("nothing")
    assert graphs.load_structure("road:3:0").nnz == 24


def test_damaged_archives(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot unpack"):
        archives.unzip(path, ["x"], tmp_path, 100)
    with pytest.raises(DataError, match="cannot unpack"):
        archives.untar(path, "x/x", tmp_path / "x", 100)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("top/x", "0" * 1000)
    with pytest.raises(DataError, match="holds no y"):
        archives.unzip(path, ["y"], tmp_path, 100)
    with pytest.raises(DataError, match="unpacks to more than 100 bytes"):
        archives.unzip(path, ["x"], tmp_path, 100)


def test_splits_name_nodes():
    with pytest.raises(DataError, match="vector of node numbers"):
        masks(3, np.zeros(2), np.zeros(0, int), np.zeros(0, int))
