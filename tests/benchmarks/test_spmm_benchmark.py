"""The comparison of sparse products: its judgment, and that the stored results are complete and shown."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tradeoff.engines.kernels.bench import Row

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "benchmarks" / "spmm.json"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("spmm_benchmark", ROOT / "benchmarks" / "spmm.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def row(columns: int, torch: float, scipy: float) -> Row:
    ratios = {"torch": (torch, torch, torch), "scipy": (scipy, scipy, scipy)}
    return Row("g", 10, 20, 5, columns, 1, ratios=ratios)


def test_verdicts_follow_the_figures(benchmark: ModuleType) -> None:
    rows = [row(16, 0.8, 3.0), row(64, 2.0, 1.0), row(256, 4.5, 1.44)]
    torch, scipy, slowest = benchmark.verdicts(rows)
    assert torch["value"] == pytest.approx(3.0)
    assert torch["met"]
    assert scipy["value"] == pytest.approx(1.2)
    assert not scipy["met"]
    assert slowest["value"] == 0.8
    assert not slowest["met"]


@pytest.mark.parametrize("path", sorted(RESULTS.parent.glob(RESULTS.name)), ids=lambda path: path.stem)
def test_stored_results_are_complete_and_shown(benchmark: ModuleType, path: Path) -> None:
    stored = json.loads(path.read_text())
    cells = {(row["graph"], row["columns"], row["threads"]) for row in stored["rows"]}
    assert cells == {(g, d, t) for g in benchmark.GRAPHS for d in benchmark.WIDTHS for t in benchmark.THREADS}
    rows = [Row(**{key: value for key, value in row.items() if key != "bound"}) for row in stored["rows"]]
    assert all(row.error < 1e-5 for row in rows)
    assert list(benchmark.verdicts(rows)) == stored["verdicts"]
    assert len(stored["others"]) == 2
    assert all(other["met"] is (other["value"] >= other["at_least"]) for other in stored["others"])
    assert benchmark.markdown(stored) in (ROOT / "benchmarks" / "README.md").read_text()
