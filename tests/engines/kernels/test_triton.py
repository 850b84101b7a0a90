"""Triton kernels: interpreted, in a process of its own, and compiled for GPUs that are not here."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _triton(require) -> None:
    require(importlib.util.find_spec("triton"), "Triton is not installed: pip install 'tradeoff[dev]'")


def run(path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(path),
            "-q",
            "--import-mode=importlib",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[2],
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_interpreted_kernels_agree_with_the_reference() -> None:
    """TRITON_INTERPRET is read when triton is imported, hence the other process."""
    result = run(HERE / "interpreted_triton.py", TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_here() -> None:
    """To machine code for compute capabilities 8.0 and 9.0, by the ptxas of Triton's wheel."""
    result = run(HERE / "compiled_triton.py", TRITON_INTERPRET="0", TRITON_DEFAULT_FP_FUSION="1")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
