"""Planetoid's layout, written here; pickles that would do something; and the real Cora where it is."""

import contextlib
import os
import pickle
import pickletools
import struct
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradeoff.core.errors import DataError
from tradeoff.data import graphs
from tradeoff.data.graphs import planetoid, unpickling

REAL_ROOT = os.environ.get("TRADEOFF_DATA")
NODES, CLASSES, TEST = 600, 3, [602, 599, 600]


def write(root: Path, protocol: int = 3, **changes: object) -> Path:
    """597 nodes that train or validate, three that test, and a gap at 601, as CiteSeer has."""
    rng = np.random.default_rng(0)
    labels = np.eye(CLASSES, dtype=np.int32)
    neighbors = defaultdict(list, {i: [(i + 1) % 603] for i in range(603)})
    neighbors[0] += [0, 1]
    parts: dict[str, object] = {
        "x": sp.csr_matrix(np.eye(60, 8, dtype=np.float32)),
        "allx": sp.csr_matrix(rng.integers(0, 2, (599, 8)).astype(np.float32)),
        "tx": sp.csr_matrix(np.arange(24, dtype=np.float32).reshape(3, 8)),
        "ally": labels[np.arange(599) % CLASSES],
        "ty": labels[[2, 1, 0]],
        "graph": neighbors,
        **changes,
    }
    folder = root / "planetoid" / "Cora" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for part, value in parts.items():
        content = value if isinstance(value, bytes) else pickle.dumps(value, protocol)
        (folder / f"ind.cora.{part}").write_bytes(content)
    test = changes.get("test", TEST)
    (folder / "ind.cora.test.index").write_text("\n".join(map(str, test)))
    return folder


@pytest.mark.parametrize("protocol", [3, 4])
def test_layout(tmp_path, protocol):
    write(tmp_path, protocol)
    data = graphs.load("cora", tmp_path)
    assert (data.num_nodes, data.num_features, data.num_classes) == (603, 8, 3)
    assert [int(part.sum()) for part in (data.train, data.validation, data.test)] == [60, 500, 3]
    assert data.x[602].tolist() == list(range(8))  # the first row of tx belongs to the first test number
    assert data.y[[602, 599, 600]].tolist() == [2, 1, 0]
    assert not data.x[601].any()
    assert data.graph.nnz == 2 * 603
    assert data.graph.is_symmetric


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": [602, 599]}, "do not fit together"),
        ({"test": [602, 599, 599]}, "do not fit together"),
        ({"test": [602, 599, 5]}, "do not fit together"),
        ({"test": [602, 599, "x"]}, "no list of node numbers"),
        ({"test": [602, 599, 1 << 40]}, "a node out of range"),
        ({"ally": np.eye(3)[:2]}, "do not fit together"),
        ({"ally": sp.csr_matrix(np.eye(3))}, "does not hold an array"),
        ({"ally": np.array([{}], object)}, "only numbers are read"),
        ({"allx": np.eye(3)}, "does not hold a sparse matrix"),
        ({"graph": {0: [700]}}, "has node 700"),
        ({"graph": {0: ["a"]}}, "does not hold lists of neighbors"),
        ({"graph": [1]}, "does not hold lists of neighbors"),
        ({"graph": b""}, "damaged pickle|refused"),
        ({"graph": pickle.dumps({0: [1]})[:-3]}, "damaged pickle|refused"),
    ],
)
def test_malformed_files(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        graphs.load("cora", tmp_path)


class Evil:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def attacks(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    return {
        "system": pickle.dumps(Evil(os.system, command), 2),
        "system, in a stack": pickle.dumps([np.arange(3), Evil(os.system, command)], 4),
        "eval": pickle.dumps(Evil(eval, f"open({str(marker)!r}, 'w')"), 2),
        "open": pickle.dumps(Evil(open, str(marker), "w"), 3),
        "getattr of an allowed module": b"cnumpy\nload\n(V/etc/passwd\ntR.",
        "a dotted name": pickle.dumps(Evil(np.ndarray.tofile, np.arange(3), str(marker)), 4),
        "old instruction INST": b"(S'touch'\nios\nsystem\n.",
        "memory by a memo slot": b"\x80\x02Nr" + struct.pack("<I", 1 << 31) + b".",
        "memory by a buffer": b"\x80\x05\x96" + struct.pack("<Q", 1 << 45) + b".",
        "memory by a string": b"\x80\x03B" + struct.pack("<I", (1 << 32) - 1) + b".",
        "persistent identifier": b"\x80\x02U\x01aQ.",
        "attributes of what is allowed": b"cnumpy\nndarray\n}U\x07__new__cbuiltins\nlist\nsb.",
        "deep": b"(" * 20_000 + b"t" * 20_000 + b".",
    }


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_what_a_pickle_says_is_not_done(tmp_path, attack):
    marker, path = tmp_path / "done", tmp_path / "evil"
    path.write_bytes(attacks(marker)[attack])
    for read in (unpickling.read_matrix, unpickling.read_array, unpickling.read_neighbors):
        with pytest.raises(DataError, match=r"is refused|is a damaged pickle|does not hold"):
            read(path)
    assert not marker.exists()


def test_the_attack_would_work_on_plain_pickle(tmp_path):
    marker = tmp_path / "done"
    pickle.loads(attacks(marker)["system"])  # noqa: S301
    assert marker.exists()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), which=st.integers(0, 2))
def test_a_changed_byte_is_read_or_refused(tmp_path, position, byte, which):
    value, read = (
        (sp.csr_matrix(np.eye(3)), unpickling.read_matrix),
        (np.arange(6.0).reshape(2, 3), unpickling.read_array),
        (defaultdict(list, {0: [1], 1: [0, 2]}), unpickling.read_neighbors),
    )[which]
    content = bytearray(pickle.dumps(value, 3))
    content[position % len(content)] = byte
    path = tmp_path / "changed"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        read(path)


def test_arrays_come_out_as_they_went_in(tmp_path):
    for value in (np.arange(6, dtype=">i4").reshape(2, 3), np.asfortranarray(np.eye(3)), np.zeros((0, 2))):
        path = tmp_path / "a"
        path.write_bytes(pickle.dumps(value, 3))
        assert np.array_equal(unpickling.read_array(path), value)
    assert {opcode.name for opcode in pickletools.opcodes} > unpickling.OPCODES


def test_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickling, "MAX_BYTES", 10)
    (tmp_path / "a").write_bytes(pickle.dumps(np.eye(3)))
    with pytest.raises(DataError, match="more than 10 bytes"):
        unpickling.read_array(tmp_path / "a")


def test_absent_says_what_to_do(tmp_path, monkeypatch):
    def refuse(remote, target):
        assert remote.url.startswith(planetoid.URL)
        assert len(remote.digest) == 64
        raise DataError("no network")

    monkeypatch.setattr(planetoid, "download", refuse)
    with pytest.raises(
        DataError, match=r"citeseer: no ind.citeseer.x .*set TRADEOFF_DATA to a folder that holds"
    ):
        graphs.load("citeseer", tmp_path)


def test_real_cora(require):
    require(
        REAL_ROOT and (Path(REAL_ROOT) / "planetoid/Cora").is_dir(), "needs TRADEOFF_DATA with planetoid/Cora"
    )
    data = graphs.load("cora", REAL_ROOT)
    assert (data.num_nodes, data.graph.nnz, data.num_features, data.num_classes) == (2708, 10_556, 1433, 7)
    assert [int(part.sum()) for part in (data.train, data.validation, data.test)] == [140, 500, 1000]
    assert data.y[data.train].bincount().tolist() == [20] * 7
    assert 0.80 < data.homophily < 0.82
