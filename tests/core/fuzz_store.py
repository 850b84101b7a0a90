"""Fuzzer of the store's JSON: ``python tests/core/fuzz_store.py -max_total_time=600``.

Every input must be an outcome or a :class:`StoreError`, and an outcome must survive being written and read
again. Half of the inputs are raw bytes; the other half are a valid outcome with a part of it replaced.
"""

import json
import sys
from typing import Any

import atheris

from tradeoff.core import Outcome, Trial, measured
from tradeoff.core.errors import StoreError
from tradeoff.core.files import parse_json
from tradeoff.core.store import parse_outcome

VALID = Outcome(
    trial=Trial(variant="a", setting={"b": 1}), metrics={"accuracy": measured(0.5)}, artifact="a/b"
)
PATHS = [
    ("trial",),
    ("trial", "variant"),
    ("trial", "setting"),
    ("trial", "setting", "b"),
    ("trial", "seed"),
    ("metrics",),
    ("metrics", "accuracy"),
    ("metrics", "accuracy", "value"),
    ("metrics", "accuracy", "kind"),
    ("artifact",),
    ("provenance",),
    ("provenance", "started"),
    ("extra",),
]


def value(provider: Any, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = provider.ConsumeIntInRange(0, 7 if depth < 3 else 5)
    if kind == 6:
        return [value(provider, depth + 1) for _ in range(provider.ConsumeIntInRange(0, 3))]
    if kind == 7:
        count = provider.ConsumeIntInRange(0, 3)
        return {provider.ConsumeUnicodeNoSurrogates(8): value(provider, depth + 1) for _ in range(count)}
    scalars = (
        lambda: None,
        provider.ConsumeBool,
        lambda: provider.ConsumeInt(12),
        provider.ConsumeFloat,
        lambda: provider.ConsumeUnicode(20),
        lambda: provider.PickValueInList(["2026-01-01", "../x", "measured", "NaN", "rounds", "1e999"]),
    )
    return scalars[kind]()


def changed_outcome(provider: Any) -> bytes:
    """The valid outcome with one part replaced."""
    document = VALID.model_dump(mode="json")
    *parents, last = provider.PickValueInList(PATHS)
    target = document
    for part in parents:
        if not isinstance(target.get(part), dict):
            target[part] = {}
        target = target[part]
    target[last] = value(provider)
    return json.dumps(document).encode()


def one_input(data: bytes) -> None:
    """Parse one input."""
    provider = atheris.FuzzedDataProvider(data)
    text = changed_outcome(provider) if provider.ConsumeBool() else provider.ConsumeBytes(len(data))
    try:
        outcome = parse_outcome(text, "fuzz")
    except StoreError:
        return
    again = parse_outcome(outcome.model_dump_json().encode(), "again")
    assert again.trial.key == outcome.trial.key
    assert again == outcome


for function in (parse_outcome, parse_json, one_input):
    atheris.instrument_func(function)
atheris.Setup(sys.argv, one_input)
atheris.Fuzz()
