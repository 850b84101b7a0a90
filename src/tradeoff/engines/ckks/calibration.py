"""How long each operation takes on this machine, by level, and what a program will take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tradeoff.engines.ckks.backends import Evaluator, evaluator, secret
from tradeoff.engines.ckks.meter import Meter
from tradeoff.engines.ckks.parameters import Parameters
from tradeoff.engines.ckks.planning import Plan, predicted_counts
from tradeoff.engines.ckks.program import Program, Slots

TIMED = ("encode", "rotate", "ct_pt", "ct_ct", "rescale", "add", "add_plain", "lower")
"""``ct_ct`` includes the relinearization."""


@dataclass(frozen=True)
class Timings:
    """Processor seconds of single operations by (operation, level), and of encryption and decryption."""

    parameters: Parameters
    seconds: dict[tuple[str, int], float]
    encrypt: float
    decrypt: float

    def of(self, operation: str, level: int) -> float:
        """Seconds of an operation at a level; between measured levels the nearest line."""
        known = sorted(lv for name, lv in self.seconds if name == operation)
        return float(np.interp(level, known, [self.seconds[operation, lv] for lv in known]))

    def evaluation(self, meter: Meter) -> float:
        """Seconds that counted operations take, without encoding."""
        counted = {key: n for key, n in meter.counts.items() if key[1] in TIMED}
        return sum(n * self.of(name, level) for (_, name, level), n in counted.items())

    def encoding(self, meter: Meter) -> float:
        """Seconds for the encoding of all known vectors, once each use."""
        wanted = [
            (level, n) for (_, name, level), n in meter.counts.items() if name in ("ct_pt", "add_plain")
        ]
        return sum(n * self.of("encode", level) for level, n in wanted)


def measure(
    parameters: Parameters, *, backend: str = "seal", repeats: int = 3, levels: Sequence[int] | None = None
) -> Timings:
    """Time every operation at a few levels, after a warm-up; medians of processor time.

    Args:
        levels: which; up to four spread over all if not given.
    """
    depth = parameters.depth
    chosen = sorted(set(levels or np.linspace(min(1, depth), depth, 4).round().astype(int).tolist()))
    key = secret(backend, parameters).generate(parameters)
    engine = evaluator(backend, parameters)
    engine.load_keys(key.evaluation_keys([1], True))
    values = np.random.default_rng(0).standard_normal(parameters.slots)
    fresh = engine.load(key.encrypt(values, parameters.scale))
    found: dict[tuple[str, int], float] = {}
    for level in chosen:
        x = fresh if level == depth else engine.lower(fresh, level)
        for name, call in _calls(engine, x, values, level).items():
            found[name, level] = _median(call, repeats)
    saved = engine.save(engine.lower(fresh, 0))
    encrypt = _median(partial(key.encrypt, values, parameters.scale), repeats)
    decrypt = _median(partial(key.decrypt, saved, 0, parameters.scale), repeats)
    return Timings(parameters, found, encrypt, decrypt)


def predict(program: Program, plan: Plan, timings: Timings) -> tuple[float, float]:
    """(evaluation, encoding) seconds of a program on one core of the machine that was measured."""
    meter = predicted_counts(program, plan.parameters)
    return timings.evaluation(meter), timings.encoding(meter)


def _calls(engine: Evaluator[Any, Any], x: Any, values: Slots, level: int) -> dict[str, Callable[[], Any]]:
    """What to time at a level."""
    scale = engine.parameters.scale
    plain = engine.encode(values, level, float(engine.parameters.primes[level]))
    same = engine.encode(values, level, scale)
    product = engine.multiply_plain(x, plain)
    calls: dict[str, Callable[[], Any]] = {
        "encode": partial(engine.encode, values, level, scale),
        "rotate": partial(engine.rotate, x, 1),
        "ct_pt": partial(engine.multiply_plain, x, plain),
        "ct_ct": partial(engine.multiply, x, engine.add(x, x)),
        "add": partial(engine.add, x, x),
        "add_plain": partial(engine.add_plain, x, same),
    }
    if level > 0:
        calls["rescale"] = partial(engine.rescale, product)
        calls["lower"] = partial(engine.lower, x, level - 1)
    return calls


def _median(call: Callable[[], Any], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)
