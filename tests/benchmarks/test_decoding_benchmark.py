"""The decoding benchmark: its judgment, and that the stored results are complete and shown."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "benchmarks" / "decoding.json"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location(
            "decoding_benchmark", ROOT / "benchmarks" / "decoding.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_verdicts_follow_the_figures(benchmark: ModuleType) -> None:
    def rows(torch: float) -> list[dict]:
        return [
            {"rows": count, "torch": [torch] * 3, "relative": [1.2] * 3, "read": [1.5] * 3}
            for count in benchmark.ROWS
        ]

    steps = [{"rows": count, "relative": {"ours": [1.6] * 3, "torch": [2.0] * 3}} for count in benchmark.ROWS]
    document = {"linear": rows(0.9), "steps": steps, "loops": {"oracle": {"ratio": [0.3] * 3}}}
    assert [verdict["met"] for verdict in benchmark.verdicts(document)] == [True, False, False, True]


@pytest.mark.parametrize("path", sorted(RESULTS.parent.glob(RESULTS.name)), ids=lambda path: path.stem)
def test_stored_results_are_complete_and_shown(benchmark: ModuleType, path: Path) -> None:
    stored = json.loads(path.read_text())
    for part in ("linear", "steps"):
        assert [row["rows"] for row in stored[part]] == list(benchmark.ROWS)
    assert stored["loops"]["oracle"]["same"]
    assert benchmark.verdicts(stored) == stored["verdicts"]
    assert benchmark.markdown(stored) in (ROOT / "benchmarks" / "README.md").read_text()
