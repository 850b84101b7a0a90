"""Fuzzer of the store's JSON: ``python tests/core/fuzz_store.py -max_total_time=600``.

Every input must be an outcome or a :class:`StoreError`, and an outcome must survive being written and read
again. Some inputs are raw bytes, some are the text of a valid outcome with bytes replaced, and most are a
valid outcome with a part of it replaced. What makes these is instrumented, too, else the fuzzer would not see
that a longer input builds another document, and would stay with the shortest ones.
"""

import json
import sys
from typing import Any

import atheris

from tradeoff.core import Outcome, Trial, measured
from tradeoff.core.errors import StoreError
from tradeoff.core.files import parse_json
from tradeoff.core.quantities import quantity
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


def changed_text(provider: Any) -> bytes:
    """The text of the valid outcome with some bytes replaced."""
    text = VALID.model_dump_json().encode()
    start = provider.ConsumeIntInRange(0, len(text))
    end = provider.ConsumeIntInRange(start, min(len(text), start + 8))
    return text[:start] + provider.ConsumeBytes(8) + text[end:]


def one_input(data: bytes) -> None:
    """Parse one input."""
    provider = atheris.FuzzedDataProvider(data)
    match provider.ConsumeIntInRange(0, 7):
        case 0:
            text = provider.ConsumeBytes(len(data))
        case 1:
            text = changed_text(provider)
        case _:
            text = changed_outcome(provider)
    try:
        outcome = parse_outcome(text, "fuzz")
    except StoreError:
        return
    again = parse_outcome(outcome.model_dump_json().encode(), "again")
    assert again.trial.key == outcome.trial.key
    assert again == outcome


for function in (parse_outcome, parse_json, quantity, value, changed_outcome, changed_text):
    atheris.instrument_func(function)
# Without these options libFuzzer starts with inputs of a few bytes, which build hardly any document.
atheris.Setup([sys.argv[0], "-len_control=0", "-max_len=256", *sys.argv[1:]], one_input)
atheris.Fuzz()
