"""The kernel tests again, with the extension built with the address and undefined-behavior sanitizers."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("instructions", ["best", "portable"])
def test_kernels_are_clean_under_sanitizers(run_sanitized, instructions: str) -> None:
    tests = [HERE / f"test_{name}.py" for name in ("ring", "bits", "elementwise", "oblivious")]
    run_sanitized(tests, "native and not realistic and not without and not faster", instructions)
