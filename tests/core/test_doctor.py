"""The doctor: right with and without what it looks for."""

from importlib import metadata, util
from pathlib import Path

import pytest

from tradeoff.core import doctor, native, sandbox
from tradeoff.core.doctor import Examined, examine


def findings() -> dict[tuple[str, str], Examined]:
    return {(finding.area, finding.name): finding for finding in examine()}


def test_with_what_is_here() -> None:
    found = findings()
    assert found["machine", "python"].found
    assert found["extra", "private"].found == bool(util.find_spec("cryptography"))
    assert found["native", "compiled kernels"].found == bool(util.find_spec("tradeoff._native"))
    for finding in found.values():
        assert finding.found or finding.remedy or finding.name == "accelerator"
        assert not (finding.found and finding.remedy)


def test_without_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(native, "extension", lambda: None)
    monkeypatch.setattr(doctor, "sandbox_kind", lambda: None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    monkeypatch.delenv("TRADEOFF_DATA", raising=False)
    found = findings()
    assert found["extra", "distributed"].detail == "missing: ray"
    assert found["extra", "distributed"].remedy == "pip install 'tradeoff[distributed]'"
    assert "g++" in found["native", "compiled kernels"].remedy
    assert found["tool", "yosys"].remedy.startswith("apt-get install yosys")
    assert "bubblewrap" in found["sandbox", "programs that a model wrote"].remedy
    assert "TRADEOFF_DATA" in found["data", "TRADEOFF_DATA"].remedy
    assert not any(finding.found for (area, _), finding in found.items() if area != "machine")


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    monkeypatch.setenv("TRADEOFF_DATA", str(tmp_path))
    assert findings()["data", "TRADEOFF_DATA"].detail == f"{tmp_path}: cifar10"
    monkeypatch.setenv("TRADEOFF_DATA", str(tmp_path / "absent"))
    assert not findings()["data", "TRADEOFF_DATA"].found


def test_sandbox_kinds_are_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_works", lambda kind: kind == "unshare")
    sandbox.sandbox_kind.cache_clear()
    try:
        assert sandbox.sandbox_kind() == "unshare"
    finally:
        sandbox.sandbox_kind.cache_clear()
