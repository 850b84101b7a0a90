"""The kernel tests again, with the extension built with the address and undefined-behavior sanitizers."""

from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kernels_are_clean_under_sanitizers(run_sanitized) -> None:
    run_sanitized([Path(__file__).parent / "test_field.py"], "native and not numpy", "best")
