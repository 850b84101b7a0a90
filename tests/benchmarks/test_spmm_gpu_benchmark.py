"""The GPU benchmark of sparse products: what it says without a GPU, and that it runs with one."""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tradeoff.core.timing import SideBySide, Timing
from tradeoff.engines.kernels import Graph
from tradeoff.nn.graphs import generate

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "spmm_gpu.py"


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=600, check=False
    )


def test_it_names_what_is_missing_or_runs() -> None:
    result = run("--graphs", "pl:2000:8", "--dims", "16", "--runs", "3", "--maxk", "4", "--backward")
    if torch.cuda.is_available():
        assert result.returncode == 0, result.stderr
        assert "geometric mean" in result.stdout
    else:
        assert result.returncode == 2
        assert "needs a CUDA device" in result.stderr
        assert not result.stdout


def test_candidates_are_right_wherever_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with a stand-in for the clock of a GPU that calls each candidate."""
    spec = importlib.util.spec_from_file_location("spmm_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def called(calls: dict[str, Callable[[], object]], **options: object) -> SideBySide:
        for call in calls.values():
            call()
        return SideBySide(dict.fromkeys(calls, Timing((1.0,), None)))

    monkeypatch.setattr(script, "side_by_side_on_gpu", called)
    arrays = generate("pl:300:6")
    graph = Graph.from_csr(arrays.indptr, arrays.indices)
    options = argparse.Namespace(present=["torch", "pyg"], backward=True, maxk=[2, 64])
    options = argparse.Namespace(**vars(options), warmups=1, runs=1, flush=False)
    seconds = script.products(graph, 8, options)
    assert {"rows", "buckets", "torch", "pyg", "buckets, forward and backward"} <= seconds.keys()
    assert {"k=2, atomics", "k=2, bitmaps"} <= seconds.keys()
    assert not any(name.startswith("k=64") for name in seconds)
