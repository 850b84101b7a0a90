"""Every method that is installed keeps the contract."""

import pytest

from tradeoff.core.contract import check_method
from tradeoff.core.errors import ContractViolation
from tradeoff.core.registry import load_method, methods


@pytest.mark.slow
@pytest.mark.parametrize("name", methods())
def test_method_keeps_the_contract(name: str) -> None:
    violations = []
    for check in check_method(load_method(name)):
        try:
            check()
        except ContractViolation as violation:
            violations.append(f"{check}: {violation}")
    assert not violations, "\n".join(violations)
