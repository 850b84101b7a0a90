"""The crossbar benchmark: its judgment, and that the stored results are complete and shown."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "benchmarks" / "crossbar.json"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location(
            "crossbar_benchmark", ROOT / "benchmarks" / "crossbar.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_verdicts_follow_the_figures(benchmark: ModuleType) -> None:
    document = {
        "peer": "another",
        "network": {"ratio": [2.1, 2.0, 2.2]},
        "layers": [
            {"difference": 1e-6, "slow_is_fast": True},
            {"difference": 9e-6, "slow_is_fast": True},
        ],
    }
    assert [verdict["met"] for verdict in benchmark.verdicts(document)] == [False, True, True]


@pytest.mark.parametrize("path", sorted(RESULTS.parent.glob(RESULTS.name)), ids=lambda path: path.stem)
def test_stored_results_are_complete_and_shown(benchmark: ModuleType, path: Path) -> None:
    stored = json.loads(path.read_text())
    assert [(row["outputs"], row["inputs"]) for row in stored["layers"]] == list(benchmark.SHAPES)
    assert benchmark.verdicts(stored) == stored["verdicts"]
    assert benchmark.markdown(stored) in (ROOT / "benchmarks" / "README.md").read_text()
