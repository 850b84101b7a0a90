"""The contract suite fails on six methods that are broken on purpose, at the point that they break."""

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TOY
from tradeoff.core.contract import check_method
from tradeoff.core.errors import CardError, ContractViolation
from tradeoff.core.method import Method

Copy = Callable[[dict[str, tuple[str, str]]], type[Any]]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    """Makes the toy method under another name, with texts replaced in its files."""

    def make(replacements: dict[str, tuple[str, str]]) -> type[Any]:
        package = f"toy_{tmp_path.name.replace('-', '_')}"
        folder = tmp_path / package
        shutil.copytree(TOY / "src" / "toy_rounding", folder)
        study = folder / "study.py"
        study.write_text(study.read_text().replace("toy_rounding", package))
        for name, (old, new) in replacements.items():
            text = (folder / name).read_text()
            assert old in text
            (folder / name).write_text(text.replace(old, new))
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        try:
            return importlib.import_module(f"{package}.study").ToyRounding
        finally:
            sys.modules.pop(package, None)

    return make


def broken_points(method: Method[Any]) -> dict[str, str]:
    """Which checks fail, and why."""
    found = {}
    for check in check_method(method):
        try:
            check()
        except ContractViolation as violation:
            found[check.name] = str(violation)
    return found


def test_the_unbroken_copy_passes(copy: Copy) -> None:
    assert broken_points(copy({})()) == {}


def test_missing_card_field(copy: Copy) -> None:
    method = copy({})
    card = method().folder / "card.md"
    card.write_text(card.read_text().replace("  venue: Journal of Examples\n", ""))
    assert "venue" in broken_points(method())["card is complete"]


def test_missing_card_field_stops_the_import(copy: Copy) -> None:
    with pytest.raises(CardError, match="venue"):
        copy({"card.md": ("  venue: Journal of Examples\n", "")})


def test_unregistered_quantity(copy: Copy) -> None:
    broken = broken_points(copy({"study.py": ('"accuracy": measured', '"niceness": measured')})())
    assert "unknown quantity 'niceness'" in broken["smoke study runs"]


def test_trial_that_is_not_deterministic(copy: Copy) -> None:
    luck = "measured(np.mean(np.abs(stored - values) < 0.05) + np.random.default_rng().random())"
    broken = broken_points(copy({"study.py": ("measured(np.mean(np.abs(stored - values) < 0.05))", luck)})())
    assert list(broken) == ["resumes, and gives equal outcomes again"]
    assert "not reproducible" in broken["resumes, and gives equal outcomes again"]


def test_smoke_recipe_that_raises(copy: Copy) -> None:
    broken = broken_points(copy({"recipes/smoke.yaml": ("seeds: 2", "seeds: 2\nfail_at: 4")})())
    assert "ValueError: 4 bits are not supported" in broken["smoke study runs"]


def test_claim_without_numbers(copy: Copy) -> None:
    broken = broken_points(copy({"study.py": ('numbers={"worst accuracy": worst}', "numbers={}")})())
    assert list(broken) == ["claims evaluate with numbers"]
    assert "without numbers" in broken["claims evaluate with numbers"]


@pytest.mark.parametrize(
    "statement",
    [
        "from tradeoff.methods.private_inference.autorep import replace_relus",
        "import tradeoff.methods.private_inference.autorep",
        "def late():\n    from tradeoff.methods.private_inference import autorep",
    ],
)
def test_import_of_another_method(copy: Copy, statement: str) -> None:
    method = copy({})
    (method().folder / "helper.py").write_text(statement)
    broken = broken_points(method())
    assert list(broken) == ["imports no other method"]
    assert "helper.py imports tradeoff.methods.private_inference" in broken["imports no other method"]
