"""The tests of the kernels again, with the extension built with address and undefined-behavior sanitizers."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("instructions", ["best", "avx2", "portable"])
def test_kernels_are_clean_under_sanitizers(run_sanitized, instructions: str) -> None:
    files = ["test_operators.py", "test_linear.py", "test_partition.py", "test_buckets.py", "test_faults.py"]
    # Left out: what runs no kernel, or torch's compiler.
    skipped = "not torch and not published and not table and not compilers"
    run_sanitized([HERE / name for name in files], skipped, instructions)
