"""What names the code that a cached result was made by."""

from pathlib import Path

import pytest

from tradeoff.core.provenance import source_digest


def package(root: Path, name: str, **modules: str) -> str:
    (root / name / "inner").mkdir(parents=True)
    for module, text in {"__init__": "", "inner/__init__": "", **modules}.items():
        (root / name / f"{module}.py").write_text(text)
    return name


def test_the_digest_of_code_follows_every_module_of_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = package(tmp_path, "digested_package", first="a = 1\n")
    digests = [source_digest(name)]
    for path, text in (("first", "a = 2\n"), ("inner/second", "b = 1\n"), ("inner/second", "b = 12\n")):
        (tmp_path / name / f"{path}.py").write_text(text)
        source_digest.cache_clear()
        digests.append(source_digest(name))
    assert len(set(digests)) == 4
    assert source_digest(f"{name}.first") not in digests
    (tmp_path / name / "inner" / "notes.txt").write_text("no code")
    source_digest.cache_clear()
    assert source_digest(name) == digests[-1]


def test_the_digest_of_code_without_source_is_refused() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        source_digest("no_such_module")
