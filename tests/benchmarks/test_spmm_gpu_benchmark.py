"""The GPU benchmark of sparse products: what it says where there is no GPU, and that it runs where there is one."""

import subprocess
import sys
from pathlib import Path

import torch

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
