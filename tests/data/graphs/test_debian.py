"""The package graph: its embedded part, control files made here, hostile ones, and this machine's lists."""

import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core.errors import DataError
from tradeoff.data import graphs
from tradeoff.data.graphs import debian

LIST = """\
Package: app
Source: suite (1.0-2)
Section: games
Depends: lib (>= 2) | libalt, mta, python3:any
Pre-Depends: base [amd64]
Recommends: many-provide-this
Suggests: app, absent
Description: a Game of an old age
 whose second line is no feature
Description-md5: 00

Package: app-doc
Source: suite
Section: non-free/doc
Description-en: game

Package: lib
Section: libs
Description: C library

Package: libalt
Section: libs

Package: mail-a
Section: mail
Provides: mta (= 1), many-provide-this

Package: mail-b
Section: mail
Provides: mta,
 many-provide-this

Package: mail-c
Section: mail
Provides: many-provide-this

Package: mail-d
Section: mail
Provides: many-provide-this

Package: base
Section: admin

Package: python3
Section: python
Depends: lib

Package: lib
Section: duplicate

Package: no-section

Package: Bad Name
Section: libs
"""


def test_control_fields_become_a_graph():
    packages = debian.parse(LIST.splitlines(), "2026-01-02")
    names = ["app", "app-doc", "base", "lib", "libalt", "mail-a", "mail-b", "mail-c", "mail-d", "python3"]
    edges = {
        frozenset((names[a], names[b]))
        for a, b in zip(packages.graph.rows, packages.graph.indices, strict=True)
    }
    wanted = [("app", other) for other in ("lib", "libalt", "mail-a", "mail-b", "python3", "base")]
    assert edges == {frozenset(pair) for pair in [*wanted, ("python3", "lib")]}
    assert packages.graph.is_symmetric
    assert [packages.section_names[s] for s in packages.section[:4]] == ["games", "doc", "admin", "libs"]
    assert packages.source[0] == packages.source[1]
    assert len(np.unique(packages.source)) == 9
    buckets = sorted(zlib.crc32(word) % 1024 for word in (b"game", b"old", b"age"))
    assert packages.words[:3].tolist() == buckets
    data = debian.to_node_data(packages, "x", "here")
    assert data.x[0].nonzero().flatten().tolist() == buckets
    assert data.x.sum(1)[3] == 1  # "library": the letter C is no word
    assert data.train[0] == data.train[1]
    assert data.origin == "here, lists of 2026-01-02"


def test_the_embedded_part():
    data = graphs.load("debian-small")
    assert (data.num_nodes, data.num_features, data.num_classes) == (4000, 1024, 16)
    assert data.y.bincount().tolist() == [250] * 16
    assert debian.EMBEDDED.stat().st_size < 300_000
    assert data.graph.is_symmetric
    assert 0.5 < data.homophily < 0.6
    parts = [set(data.group[part].tolist()) for part in (data.train, data.validation, data.test)]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert (data.train | data.validation | data.test).all()
    assert 0.45 < data.train.float().mean() < 0.55
    assert torch.equal(data.train, graphs.load("debian-small").train)


def test_neighbors_tell_the_section_that_words_do_not():
    """Least squares on words, and on words with their neighbors' mean: what graph learning stands on."""
    data = graphs.load("debian-small")
    graph = data.graph
    weights = torch.from_numpy(1 / np.maximum(graph.degrees, 1)).float()
    mean = torch.zeros_like(data.x).index_add_(0, torch.from_numpy(graph.rows).long(), data.x[graph.indices])
    targets = torch.nn.functional.one_hot(data.y).float()
    accuracy = []
    for x in (data.x, torch.cat([data.x, mean * weights[:, None]], 1)):
        seen = x[data.train]
        solution = torch.linalg.solve(seen.T @ seen + 3 * torch.eye(x.shape[1]), seen.T @ targets[data.train])
        accuracy.append((x[data.test] @ solution).argmax(1).eq(data.y[data.test]).float().mean())
    assert accuracy[1] > accuracy[0] + 0.05


def test_to_pyg():
    pytest.importorskip("torch_geometric")
    data = graphs.load("debian-small")
    made = data.to_pyg()
    assert made.validate()
    assert made.is_undirected()
    assert torch.equal(made.test_mask, data.test)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no package"),
        ("Package: a\n", "no package"),
        ("Section: libs\n", "no package"),
        ("\x00\xff\n: : :\n\n", "no package"),
        ("Package: a\nSection: x\nDepends: b\n" + " c,\n" * 100_000, "a field of more than"),
        ("Package: a\nSection: x\nDepends: " + "c" * (1 << 20), "a line of more than"),
        ("".join(f"Package: p{i}\nSection: s{i}\n\n" for i in range(256)), "256 sections"),
    ],
)
def test_lists_of_no_distribution(text, message):
    with pytest.raises(DataError, match=message):
        debian.parse(text.split("\n"))


def test_bounds_of_packages_and_relations(monkeypatch):
    monkeypatch.setattr(debian, "MAX_PACKAGES", 3)
    with pytest.raises(DataError, match="more than 3 packages"):
        debian.parse(LIST.splitlines())
    monkeypatch.setattr(debian, "MAX_PACKAGES", 100)
    monkeypatch.setattr(debian, "MAX_EDGES", 3)
    with pytest.raises(DataError, match="more than 3 relations"):
        debian.parse(LIST.splitlines())


@settings(max_examples=100)
@given(st.text(alphabet="abP:,|()[] \n\t\x00é", max_size=80), st.integers(0, len(LIST)))
def test_any_text_is_read_or_refused(text, position):
    packages = debian.parse(
        (LIST[:position] + text + LIST[position:] + "\n\nPackage: z\nSection: z").split("\n")
    )
    assert packages.graph.num_nodes >= 1


def test_stored_graphs_are_dated_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "available_packages", lambda: LIST.splitlines())
    monkeypatch.setattr(debian, "_list_date", lambda: "2026-01-02")
    data = graphs.load("debian")
    assert (data.num_nodes, data.graph.nnz) == (10, 14)
    monkeypatch.setattr(debian, "available_packages", lambda: pytest.fail("built twice"))
    assert torch.equal(graphs.load("debian").x, data.x)
    (stored,) = debian.cache_folder("debian").glob("packages-2026-01-02-*.npz")
    (tmp_path / "debian").mkdir()
    shutil.move(stored, tmp_path / "debian")
    assert graphs.load("debian", tmp_path).origin == f"{stored.stem}, lists of 2026-01-02"
    local = tmp_path / "debian" / stored.name
    local.write_bytes(local.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="is damaged: its content is not that of its name"):
        graphs.load("debian", tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"section": np.full(10, 99)}, {"words": np.array([5000])}, {"source": np.zeros(9, int)},
        {"word_counts": np.ones(10, int)}, {"section_names": np.arange(7)}, {"indices": np.full(14, 10)},
        {"indptr": np.zeros(11)},
    ],
)  # fmt: skip
def test_malformed_files(tmp_path, changes):
    path = tmp_path / "g.npz"
    debian.parse(LIST.splitlines(), "2026-01-02").save(path)
    with np.load(path) as file:
        np.savez(path, **{**file, **changes})
    with pytest.raises(DataError, match=r"g\.npz"):
        debian.read(path)


def test_without_apt(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        DataError, match=r"run this on Debian or Ubuntu, set TRADEOFF_DATA .* or load 'debian-small'"
    ):
        graphs.load("debian")


def apt_has_lists() -> bool:
    if not shutil.which("apt-cache") or not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
        return False
    return len(subprocess.run(["apt-cache", "pkgnames"], capture_output=True, check=False).stdout) > 100_000


def test_this_machine(require):
    require(apt_has_lists(), "needs apt's package lists; run: apt-get update")
    data = graphs.load("debian")
    assert data.num_nodes > 30_000
    assert data.num_classes > 40
    assert 0.4 < data.homophily < 0.6
    assert 6 < data.graph.degrees.mean() < 14
    assert data.graph.degrees.max() > 10_000
    assert (data.graph.degrees == 0).mean() < 0.06
