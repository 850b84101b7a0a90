"""The loading benchmark: that the stored results are complete, and shown in the README and in Medusa's card."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("loading_benchmark", ROOT / "benchmarks" / "loading.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_stored_results_are_complete_and_shown(benchmark: ModuleType) -> None:
    stored = json.loads(benchmark.RESULTS.read_text())
    assert tuple(stored["rows"]) == benchmark.CANDIDATES
    assert all(row[field] > 0 for row in stored["rows"].values() for field in benchmark.FIELDS)
    for page in (benchmark.README, benchmark.CARD):
        assert benchmark.markdown(stored) in page.read_text()
