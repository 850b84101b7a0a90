"""Every method that is installed keeps the contract."""

import pytest

from tradeoff.core.contract import Check, check_method
from tradeoff.core.registry import load_method, methods


def _checks() -> list[pytest.param]:
    return [
        # One group for each method, so that a single process runs its smoke study.
        pytest.param(check, id=f"{name}: {check}", marks=pytest.mark.xdist_group(name))
        for name in methods()
        for check in check_method(load_method(name))
    ]


@pytest.mark.parametrize("check", _checks())
def test_method_keeps_the_contract(check: Check) -> None:
    check()
