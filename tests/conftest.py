"""Helpers of the whole suite."""

import os

import pytest


def require(condition: object, reason: str) -> None:
    """Skip the test where something optional is absent, or fail it where the suite must be complete.

    Args:
        condition: whether what the test needs is here.
        reason: what is missing and how to get it.
    """
    if not condition:
        if os.environ.get("TRADEOFF_REQUIRE_ALL") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(name="require", scope="session")
def _require() -> object:
    """:func:`require` as a fixture, for test modules that cannot import this file."""
    return require
