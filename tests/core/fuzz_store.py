"""Fuzzer of the store's JSON: ``python tests/core/fuzz_store.py -max_total_time=600``.

Every input must be an outcome or a :class:`StoreError`; an outcome must survive being written and read again.
"""

import sys

import atheris

with atheris.instrument_imports(include=["tradeoff"]):
    from tradeoff.core.errors import StoreError
    from tradeoff.core.store import parse_outcome


def one_input(data: bytes) -> None:
    """Parse one input."""
    try:
        outcome = parse_outcome(data, "fuzz")
    except StoreError:
        return
    assert parse_outcome(outcome.model_dump_json().encode(), "again") == outcome


atheris.Setup(sys.argv, one_input)
atheris.Fuzz()
