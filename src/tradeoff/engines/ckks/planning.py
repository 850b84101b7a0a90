"""Plans: parameters, levels, exact scales, counts and keys of a program, before any ciphertext exists."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tradeoff.core.errors import DataError
from tradeoff.engines.ckks.errors import LevelExhausted, ScaleMismatch
from tradeoff.engines.ckks.layouts import Layout, parse_layout
from tradeoff.engines.ckks.meter import Meter
from tradeoff.engines.ckks.parameters import MAX_PRIME_BITS, Parameters, choose
from tradeoff.engines.ckks.program import (
    Add,
    AddPlain,
    Input,
    Lower,
    Multiply,
    Program,
    Rescale,
    Rotate,
    Weighted,
)

SAME_SCALE = 1e-9
"""Relative difference up to which two scales are one; SEAL itself wants them equal to the last bit."""


@dataclass(frozen=True)
class Plan:
    """What client and server agree on. It holds no weights: the client gets it as it is.

    Attributes:
        parameters: of the scheme.
        inputs: names of the input ciphertexts; outputs: number of the results.
        output_level: level of the results; output_scale: their exact scale.
        steps: rotations that need keys; relinearize: whether products do.
        program: digest of the program's structure.
        output_bound: largest magnitude of a result in calibration, margin included; 0 if not calibrated.
        noise_bound: what the noise of a result stays below, but for one slot in many millions; 0 likewise.
        backend: which scheme's objects cross the wire.
    """

    parameters: Parameters
    input_layout: str
    output_layout: str
    inputs: tuple[str, ...]
    outputs: int
    output_level: int
    output_scale: float
    steps: tuple[int, ...]
    relinearize: bool
    program: str
    output_bound: float = 0.0
    noise_bound: float = 0.0
    backend: str = "seal"

    @cached_property
    def digest(self) -> str:
        """What both sides compare before they talk: parameters, program, layouts, all of it."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def keys_digest(self) -> str:
        """Which keys fit: plans with equal parameters and rotations share them."""
        wanted = [self.parameters.to_json(), list(self.steps), self.relinearize, self.backend]
        return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()

    @property
    def layout_in(self) -> Layout:
        """How an input lies in slots."""
        return parse_layout(self.input_layout)

    @property
    def layout_out(self) -> Layout:
        """How a result lies in slots."""
        return parse_layout(self.output_layout)

    @property
    def key_count(self) -> int:
        """Evaluation keys that the client makes."""
        return len(self.steps) + self.relinearize

    @property
    def key_bytes(self) -> int:
        """Memory of the evaluation keys at the server: 16 N k (k - 1) bytes each, k primes in all."""
        k = self.parameters.depth + 2
        return 16 * self.parameters.n * k * (k - 1) * self.key_count

    @property
    def input_bytes(self) -> int:
        """Memory of the input ciphertexts."""
        return 16 * self.parameters.n * (self.parameters.depth + 1) * len(self.inputs)

    @property
    def output_bytes(self) -> int:
        """Memory of the results."""
        return 16 * self.parameters.n * (self.output_level + 1) * self.outputs

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        return {
            **values,
            "parameters": self.parameters.to_json(),
            **{k: list(getattr(self, k)) for k in _LISTS},
        }

    @classmethod
    def from_json(cls, values: Any) -> Plan:
        """Read what :meth:`to_json` gave.

        Raises:
            DataError: it is not that. InsecureParameters: the table forbids its parameters.
        """
        if not isinstance(values, dict) or set(values) != {"parameters", *_PLAIN_FIELDS, *_LISTS}:
            raise DataError("not a plan: keys are missing or unknown")
        for name, kind in _PLAIN_FIELDS.items():
            if not isinstance(values[name], kind) or (kind is int and type(values[name]) is not int):
                raise DataError(f"not a plan: {name} is {values[name]!r}")
        steps, inputs = values["steps"], values["inputs"]
        parameters = Parameters.from_json(values["parameters"])
        if not isinstance(steps, list) or not all(type(s) is int and 0 < s < parameters.slots for s in steps):
            raise DataError("not a plan: a rotation is out of range")
        if not isinstance(inputs, list) or not all(isinstance(name, str) for name in inputs):
            raise DataError("not a plan: inputs are names")
        if not 0 <= values["output_level"] <= parameters.depth or not values["output_scale"] > 0:
            raise DataError("not a plan: level or scale of the result is out of range")
        lists: dict[str, Any] = {"steps": tuple(steps), "inputs": tuple(inputs)}
        plan = cls(parameters, **{n: values[n] for n in _PLAIN_FIELDS}, **lists)
        for layout in (plan.layout_in, plan.layout_out):
            if layout.period > parameters.slots:
                raise DataError(f"not a plan: {layout} needs more than {parameters.slots} slots")
        return plan


_PLAIN_FIELDS: dict[str, Any] = {
    "input_layout": str,
    "output_layout": str,
    "outputs": int,
    "output_level": int,
    "output_scale": (int, float),
    "relinearize": bool,
    "program": str,
    "output_bound": (int, float),
    "noise_bound": (int, float),
    "backend": str,
}
_LISTS = ("inputs", "steps")


def plan(
    program: Program,
    *,
    preset: str | None = None,
    scale_bits: int = 40,
    first_bits: int | None = None,
    special_bits: int | None = None,
    margin_bits: int = 0,
    parameters: Parameters | None = None,
    backend: str = "seal",
) -> Plan:
    """Choose the smallest secure parameters for a program; :func:`tradeoff.engines.ckks.prepare` also checks
    ranges.

    Args:
        preset: ``standard`` (scale 40, first 50, special 60 bits) or ``compact`` (28, 38, 43).
        scale_bits: in place of a preset; first_bits: 10 more if not given; special_bits: as first_bits plus
            10, at most 60.
        margin_bits: to stay below the limit of the security table by.
        parameters: in place of all these.

    Raises:
        LevelExhausted: no ring is large enough for its depth. ScaleMismatch: it adds values of different
        scales. InsecureParameters, ValueError: parameters that cannot be.
    """
    if parameters is None:
        first = scale_bits + 10 if first_bits is None else first_bits
        special = min(MAX_PRIME_BITS, first + 10) if special_bits is None else special_bits
        parameters = choose(
            program.depth,
            program.period,
            preset=preset,
            scale_bits=scale_bits,
            first_bits=first,
            special_bits=special,
            margin_bits=margin_bits,
        )
    if parameters.depth < program.depth:
        raise LevelExhausted("the program", program.depth, parameters.depth)
    if parameters.slots < program.period:
        raise ValueError(f"a period of {program.period} does not fit {parameters.slots} slots")
    scales = exact_scales(program, parameters)
    first_output = program.outputs[0]
    return Plan(
        parameters,
        program.input_layout,
        program.output_layout,
        program.inputs,
        len(program.outputs),
        parameters.depth - program.consumed[first_output],
        scales[first_output],
        program.steps,
        program.multiplies,
        program.digest,
        backend=backend,
    )


def exact_scales(program: Program, parameters: Parameters) -> list[float]:
    """The scale of every value, with the primes as they are.

    Raises:
        LevelExhausted: a value would have no level left. ScaleMismatch: values of different scales are added.
    """
    scales: list[float] = []
    for index, op in enumerate(program.operations):
        level = parameters.depth - program.consumed[index]
        if level < 0:
            raise LevelExhausted(op.layer or op.kind, program.consumed[index], parameters.depth)
        scales.append(_scale(op, scales, level, parameters))
    return scales


def _scale(op: Any, scales: list[float], level: int, parameters: Parameters) -> float:
    match op:
        case Input():
            return parameters.scale
        case Weighted():
            return rescaled_target(op, level, parameters) * parameters.primes[level]
        case Multiply():
            return scales[op.x] * scales[op.y]
        case Rescale():
            return scales[op.x] / parameters.primes[level + 1]
        case Add():
            first = scales[op.xs[0]]
            for x in op.xs:
                if not same_scale(first, scales[x]):
                    raise ScaleMismatch(op.layer, first, scales[x])
            return first
        case Rotate() | AddPlain() | Lower():
            return scales[op.x]
    raise AssertionError(op)


def rescaled_target(op: Weighted, level: int, parameters: Parameters) -> float:
    """The scale that a weighted sum at ``level`` has once it is rescaled."""
    if op.for_product and level >= 2:
        return math.sqrt(parameters.scale * parameters.primes[level - 1])
    return parameters.scale


def same_scale(a: float, b: float) -> bool:
    """Whether two scales differ by rounding only."""
    return abs(a - b) <= SAME_SCALE * max(a, b)


def predicted_counts(program: Program, parameters: Parameters) -> Meter:
    """What the evaluation will do, exactly, from the operations alone."""
    meter = Meter()
    for index, op in enumerate(program.operations):
        level = parameters.depth - program.consumed[index]
        match op:
            case Rotate():
                meter.count(op.layer, "rotate", level)
            case Weighted():
                meter.count(op.layer, "ct_pt", level, len(op.xs))
                if len(op.xs) > 1:
                    meter.count(op.layer, "add", level, len(op.xs) - 1)
            case Multiply():
                meter.count(op.layer, "ct_ct", level)
                meter.count(op.layer, "relinearize", level)
            case Rescale():
                meter.count(op.layer, "rescale", level + 1)
            case Add() if len(op.xs) > 1:
                meter.count(op.layer, "add", level, len(op.xs) - 1)
            case AddPlain():
                meter.count(op.layer, "add_plain", level)
            case Lower():
                meter.count(op.layer, "lower", level + op.by)
    return meter
