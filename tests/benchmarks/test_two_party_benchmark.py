"""The comparison with other systems: its judgment, and that the stored results are complete."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "benchmarks" / "two_party.json"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location(
            "two_party_benchmark", ROOT / "benchmarks" / "two_party.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def ring(speedup: float) -> dict[str, Any]:
    return {"seconds": {"ring": 1.0, "torch_int64": speedup, "numpy_int64": speedup}}


def test_verdicts_follow_the_figures(benchmark: ModuleType) -> None:
    rows = [
        benchmark.Row("tradeoff", "relu", 100_000, "loopback", sent_bytes=30.0, seconds=2.0),
        benchmark.Row("spu", "relu", 100_000, "loopback", sent_bytes=100.0, seconds=1.0),
        benchmark.Row("crypten", "relu", 100_000, "loopback", sent_bytes=100.0, seconds=4.0),
    ]
    met = {verdict["target"]: verdict["met"] for verdict in benchmark.verdicts(rows, ring(11.9))}
    assert met["bytes per ReLU: share of spu's"] is True
    assert met["bytes per ReLU: share of crypten's"] is False
    assert [value for target, value in met.items() if "loopback" in target] == [True, False]
    assert list(met.values())[-1] is False


def test_cells_that_did_not_run_are_not_judged(benchmark: ModuleType) -> None:
    rows = [
        benchmark.Row("tradeoff", "small_cnn", 32, "wan", seconds=1.0),
        benchmark.Row("spu", "small_cnn", 32, "wan", note="not run"),
    ]
    assert len(list(benchmark.verdicts(rows, ring(20.0)))) == 2


def test_stored_results_are_complete_and_say_what_they_judge(benchmark: ModuleType) -> None:
    stored = json.loads(RESULTS.read_text())
    rows = [benchmark.Row(**row) for row in stored["rows"]]
    expected = {
        (competitor.name, workload.name, workload.size, network)
        for competitor in benchmark.COMPETITORS
        for workload in benchmark.workloads(quick=False)
        for network in benchmark.PROFILES
    }
    assert {(row.system, row.workload, row.size, row.network) for row in rows} == expected
    assert all(row.seconds is not None or row.note for row in rows)
    assert stored["verdicts"] == list(benchmark.verdicts(rows, stored["ring_product"]))
    assert set(stored["networks"]) == set(benchmark.PROFILES)


def test_stored_bytes_are_those_that_the_protocols_declare(benchmark: ModuleType) -> None:
    """Per ReLU and party 26.4 bytes here (with padding to whole words), 232 in CrypTen, 72 in SPU."""
    rows = [
        row for row in json.loads(RESULTS.read_text())["rows"] if row["workload"] == "relu" and row["seconds"]
    ]
    bounds = {"tradeoff": (26.375, 26.51), "crypten": (232, 232), "spu": (72, 72)}
    assert {row["system"] for row in rows} == set(bounds)
    for row in rows:
        low, high = bounds[row["system"]]
        assert low <= row["sent_bytes"] / row["size"] <= high
        assert row["rounds"] == {"tradeoff": 5, "crypten": 9, "spu": 8}[row["system"]]
        # The interface saw at least what the system says it sent.
        assert min(row["wire_bytes"]) >= row["sent_bytes"]
