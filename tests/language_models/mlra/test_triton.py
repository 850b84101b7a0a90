"""The Triton kernels: interpreted, in a process of its own, and compiled for GPUs that are not here."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(("name", "interpret"), [("interpreted_triton.py", "1"), ("compiled_triton.py", "0")])
def test_in_a_process_of_its_own(name: str, interpret: str, require) -> None:
    """TRITON_INTERPRET is read when triton is imported."""
    require(importlib.util.find_spec("triton"), "Triton is not installed: pip install 'tradeoff[dev]'")
    options = ["-q", "--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / name), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[2],
        env={**os.environ, "TRITON_INTERPRET": interpret},
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
