"""The tests of the kernels again, with the extension built with address and undefined-behavior sanitizers."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("instructions", ["best", "avx2", "portable"])
def test_kernels_are_clean_under_sanitizers(run_sanitized, instructions: str) -> None:
    run_sanitized([HERE / "test_kernels.py"], "not refused and not trained", instructions)
