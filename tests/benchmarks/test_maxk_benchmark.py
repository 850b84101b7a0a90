"""The benchmark of MaxK's kernels: its judgment, and that the stored results are complete and shown."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tradeoff.methods.graphs.maxk_gnn.nodes import load_nodes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "benchmarks" / "maxk.json"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("maxk_benchmark", ROOT / "benchmarks" / "maxk.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_a_row_has_every_figure(benchmark: ModuleType) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        row = benchmark.measure("small", load_nodes("community:300:12:5")[1].normalize("row"), 8, rounds=2)
    finally:
        torch.set_num_threads(threads)
    assert (row.nodes, row.k) == (300, 8)
    assert row.nnz == load_nodes("community:300:12:5")[1].nnz
    figures = (row.select, row.forward, row.dense_forward, row.backward, row.dense_backward)
    assert all(figure > 0 for figure in (*figures, *row.forward_gain, *row.backward_gain, *row.auto))


def test_verdicts_follow_the_figures(benchmark: ModuleType) -> None:
    def row(nnz: int, k: int, forward: float, backward: float, auto: float) -> object:
        gains = {"forward_gain": (forward,) * 3, "backward_gain": (backward,) * 3, "auto": (auto,) * 3}
        return benchmark.Row("g", 10, nnz, k, 1.0, 1.0, 1.0, 1.0, 1.0, **gains)

    rows = [row(600, 16, 3.0, 1.3, 1.0), row(100, 16, 0.5, 0.5, 0.95), row(600, 64, 1.0, 1.0, 0.8)]
    forward, backward, auto, explained = benchmark.verdicts(rows, 0.96)
    assert (forward["value"], forward["met"]) == (3.0, True)
    assert (backward["value"], backward["met"]) == (1.3, False)
    assert (auto["value"], auto["met"]) == (0.8, False)
    assert (explained["value"], explained["met"]) == (0.96, True)


@pytest.mark.parametrize("path", sorted(RESULTS.parent.glob(RESULTS.name)), ids=lambda path: path.stem)
def test_stored_results_are_complete_and_shown(benchmark: ModuleType, path: Path) -> None:
    stored = json.loads(path.read_text())
    cells = {(row["graph"], row["k"]) for row in stored["rows"]}
    assert cells == {(graph, k) for graph in benchmark.GRAPHS for k in benchmark.KS}
    rows = [benchmark.Row(**row) for row in stored["rows"]]
    assert list(benchmark.verdicts(rows, stored["explained"])) == stored["verdicts"]
    assert benchmark.markdown(stored) in (ROOT / "benchmarks" / "README.md").read_text()
