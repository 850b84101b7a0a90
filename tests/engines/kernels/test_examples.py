"""The examples run as their text says."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_pyg_swap_gives_equal_losses() -> None:
    pytest.importorskip(
        "torch_geometric", reason="torch-geometric is not installed: pip install 'tradeoff[graphs]'"
    )
    command = [sys.executable, str(EXAMPLES / "pyg_swap.py"), "--nodes", "2000", "--epochs", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "times as fast" in result.stdout
