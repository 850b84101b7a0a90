"""Runs a program on ciphertexts, with exact scales, a bounded store of encoded weights and a meter."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from tradeoff.core.errors import EngineError
from tradeoff.engines.ckks.backends import Evaluator
from tradeoff.engines.ckks.errors import CorruptMessage, ScaleMismatch
from tradeoff.engines.ckks.meter import Meter
from tradeoff.engines.ckks.planning import Plan, exact_scales, same_scale
from tradeoff.engines.ckks.program import (
    Add,
    AddPlain,
    Input,
    Lower,
    Multiply,
    Operation,
    Program,
    Rescale,
    Rotate,
    Weighted,
)

DEFAULT_CACHE_BYTES = 2 << 30


class Execution:
    """Evaluates one program under one plan, for any number of requests.

    Args:
        evaluator: with the keys that the plan asks for.
        cache_bytes: how much memory encoded weights may take; the least recently used go first.

    Raises:
        EngineError: the plan is of another program.
    """

    def __init__(
        self,
        program: Program,
        plan: Plan,
        evaluator: Evaluator[Any, Any],
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        if plan.program != program.digest:
            raise EngineError("the plan was made for another program")
        self.program = program
        self.plan = plan
        self._evaluator = evaluator
        self._scales = exact_scales(program, plan.parameters)
        self._last_uses = program.last_uses()
        self._encoded: OrderedDict[tuple[int, int, float], Any] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached = 0

    def use(self, evaluator: Evaluator[Any, Any]) -> None:
        """Go on with another client's keys; encoded weights stay."""
        self._evaluator = evaluator

    def run(
        self, inputs: Sequence[Any], progress: Callable[[int], None] = lambda done: None
    ) -> tuple[list[Any], Meter]:
        """The results of ciphertexts, in the order of ``program.inputs``, and what it took.

        Args:
            progress: told after each operation how many are done; may raise, to cancel.

        Raises:
            CorruptMessage: an input is not a fresh ciphertext of the plan.
            MissingRotationKey: a key is absent.
        """
        if len(inputs) != len(self.program.inputs):
            raise CorruptMessage(f"{len(inputs)} ciphertexts came, the plan has {len(self.program.inputs)}")
        meter, waiting = Meter(), iter(inputs)
        found: dict[int, Any] = {}
        for index, op in enumerate(self.program.operations):
            encoding, began = meter.encode_seconds, time.perf_counter()
            result = (
                self._fresh(next(waiting)) if isinstance(op, Input) else self._step(op, index, found, meter)
            )
            self._settle(index, op, result)
            found[index] = result
            encoding = meter.encode_seconds - encoding
            meter.seconds[op.layer] = (
                meter.seconds.get(op.layer, 0.0) + time.perf_counter() - began - encoding
            )
            for ended in self._last_uses[index]:
                del found[ended]
            progress(index + 1)
        return [found[index] for index in self.program.outputs], meter

    def _fresh(self, ciphertext: Any) -> Any:
        evaluator, parameters = self._evaluator, self.plan.parameters
        if evaluator.level(ciphertext) != parameters.depth or evaluator.scale(ciphertext) != parameters.scale:
            raise CorruptMessage("a ciphertext is not fresh: its level or scale is not that of the plan")
        return ciphertext

    def _step(self, op: Operation, index: int, found: dict[int, Any], meter: Meter) -> Any:
        evaluator, depth = self._evaluator, self.plan.parameters.depth
        level = depth - self.program.consumed[index]
        match op:
            case Rotate():
                meter.count(op.layer, "rotate", level)
                return evaluator.rotate(found[op.x], op.step)
            case Weighted():
                return self._weighted(op, index, level, found, meter)
            case Multiply():
                meter.count(op.layer, "ct_ct", level)
                meter.count(op.layer, "relinearize", level)
                return evaluator.multiply(found[op.x], found[op.y])
            case Rescale():
                meter.count(op.layer, "rescale", level + 1)
                return evaluator.rescale(found[op.x])
            case Add():
                return self._add(op, level, found, meter)
            case AddPlain():
                meter.count(op.layer, "add_plain", level)
                plain = self._encode(op.vector, level, self._scales[index], meter)
                return evaluator.add_plain(found[op.x], plain)
            case Lower():
                meter.count(op.layer, "lower", level + op.by)
                return evaluator.lower(found[op.x], level)
        raise AssertionError(op)

    def _weighted(self, op: Weighted, index: int, level: int, found: dict[int, Any], meter: Meter) -> Any:
        evaluator, total = self._evaluator, None
        for x, vector in zip(op.xs, op.vectors, strict=True):
            plain = self._encode(vector, level, self._scales[index] / self._scales[x], meter)
            term = evaluator.multiply_plain(found[x], plain)
            meter.count(op.layer, "ct_pt", level)
            if total is None:
                total = term
                continue
            meter.count(op.layer, "add", level)
            # Their scales differ by the rounding of a quotient; SEAL wants them equal.
            evaluator.reinterpret_scale(term, evaluator.scale(total))
            evaluator.accumulate(total, term)
        return total

    def _add(self, op: Add, level: int, found: dict[int, Any], meter: Meter) -> Any:
        evaluator = self._evaluator
        total = found[op.xs[0]]
        if op.signs[0] < 0:
            total = evaluator.negate(total)
        for x, sign in zip(op.xs[1:], op.signs[1:], strict=True):
            meter.count(op.layer, "add", level)
            if evaluator.scale(total) != evaluator.scale(found[x]):
                if not same_scale(evaluator.scale(total), evaluator.scale(found[x])):
                    raise ScaleMismatch(op.layer, evaluator.scale(total), evaluator.scale(found[x]))
                evaluator.reinterpret_scale(total, evaluator.scale(found[x]))
            total = evaluator.add(total, found[x]) if sign > 0 else evaluator.subtract(total, found[x])
        return total

    def _settle(self, index: int, op: Operation, result: Any) -> None:
        """Check level and scale against the plan, and take the plan's scale where only rounding differs."""
        evaluator, planned = self._evaluator, self._scales[index]
        scale = evaluator.scale(result)
        if not same_scale(scale, planned):
            raise ScaleMismatch(op.layer, scale, planned)
        if scale != planned:
            evaluator.reinterpret_scale(result, planned)

    def _encode(self, vector: int, level: int, scale: float, meter: Meter) -> Any:
        key = (vector, level, scale)
        if key in self._encoded:
            self._encoded.move_to_end(key)
            return self._encoded[key]
        began = time.perf_counter()
        plain = self._evaluator.encode(self.program.vectors[vector], level, scale)
        meter.encode_seconds += time.perf_counter() - began
        meter.encodings += 1
        size = self._evaluator.plain_bytes(level)
        if size <= self._cache_bytes:
            self._encoded[key] = plain
            self._cached += size
            while self._cached > self._cache_bytes:
                (_, old_level, _), _ = self._encoded.popitem(last=False)
                self._cached -= self._evaluator.plain_bytes(old_level)
        return plain
