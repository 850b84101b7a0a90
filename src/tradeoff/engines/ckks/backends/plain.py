"""CKKS simulated in the clear: levels, scales and noise as they would be, on plain numbers. For tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from tradeoff.engines.ckks.backends.backend import Evaluator, Secret, Slots
from tradeoff.engines.ckks.errors import CorruptMessage, MissingRotationKey
from tradeoff.engines.ckks.noise import NoiseModel
from tradeoff.engines.ckks.parameters import Parameters

_HEAD = struct.Struct("<Id")


@dataclass
class PlainText:
    """A known vector that was encoded at a level and scale."""

    values: Slots
    level: int
    scale: float


class PlainEvaluator(Evaluator[PlainText, PlainText]):
    """Computes on numbers, with the noise that encryption would bring if ``noise``.

    Vectors keep their period: nothing is repeated over slots that do not exist.
    """

    def __init__(self, parameters: Parameters, *, noise: bool = True, seed: int = 0) -> None:
        super().__init__(parameters)
        self._model = NoiseModel(parameters)
        self._generator = np.random.default_rng(seed)
        self._noise = noise
        self._steps: set[int] = set()

    def load_keys(self, data: bytes | memoryview) -> None:
        try:
            self._steps = {int(step) for step in json.loads(bytes(data))}
        except (ValueError, TypeError) as error:
            raise CorruptMessage(f"evaluation keys: {error}") from None

    def require_steps(self, steps: Sequence[int], relinearize: bool) -> None:
        for step in [*steps, *([0] if relinearize else [])]:
            self._require(step)

    def encode(self, values: Slots, level: int, scale: float) -> PlainText:
        return PlainText(self._noisy(values, self._model.encoding(scale)), level, scale)

    def plain_bytes(self, level: int) -> int:
        return 8 * self.parameters.n * (level + 1)

    def add(self, x: PlainText, y: PlainText) -> PlainText:
        return PlainText(x.values + y.values, *self._same(x, y))

    def subtract(self, x: PlainText, y: PlainText) -> PlainText:
        return PlainText(x.values - y.values, *self._same(x, y))

    def accumulate(self, x: PlainText, y: PlainText) -> None:
        self._same(x, y)
        x.values = x.values + y.values

    def negate(self, x: PlainText) -> PlainText:
        return PlainText(-x.values, x.level, x.scale)

    def add_plain(self, x: PlainText, y: PlainText) -> PlainText:
        return self.add(x, y)

    def multiply_plain(self, x: PlainText, y: PlainText) -> PlainText:
        assert x.level == y.level
        return PlainText(x.values * y.values, x.level, x.scale * y.scale)

    def multiply(self, x: PlainText, y: PlainText) -> PlainText:
        self._require(0)
        assert x.level == y.level
        scale = x.scale * y.scale
        noise = self._model.switching(x.level, scale, len(x.values))
        return PlainText(self._noisy(x.values * y.values, noise), x.level, scale)

    def rescale(self, x: PlainText) -> PlainText:
        scale = x.scale / self.parameters.primes[x.level]
        return PlainText(self._noisy(x.values, self._model.rounding(scale)), x.level - 1, scale)

    def lower(self, x: PlainText, level: int) -> PlainText:
        return PlainText(x.values, level, x.scale)

    def rotate(self, x: PlainText, step: int) -> PlainText:
        self._require(step)
        noise = self._model.switching(x.level, x.scale, len(x.values))
        moved = self._noisy(np.roll(x.values, -step), noise)
        return PlainText(moved, x.level, x.scale)

    def level(self, x: PlainText) -> int:
        return x.level

    def scale(self, x: PlainText) -> float:
        return x.scale

    def reinterpret_scale(self, x: PlainText, scale: float) -> None:
        x.values = x.values * (x.scale / scale)
        x.scale = scale

    def save(self, x: PlainText) -> bytes:
        return _HEAD.pack(x.level, x.scale) + x.values.astype("<f8").tobytes()

    def load(self, data: bytes) -> PlainText:
        return read(data, self.parameters)

    def _noisy(self, values: Slots, deviation: float | Slots) -> Slots:
        if not self._noise:
            return values
        return values + self._generator.normal(0.0, deviation, values.shape)

    def _same(self, x: PlainText, y: PlainText) -> tuple[int, float]:
        assert x.level == y.level
        return x.level, x.scale

    def _require(self, step: int) -> None:
        if step not in self._steps:
            raise MissingRotationKey(step)


class PlainSecret(Secret[PlainText, PlainText]):
    """Encrypts nothing."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self._evaluator = PlainEvaluator(parameters)

    @classmethod
    def generate(cls, parameters: Parameters) -> Self:
        return cls(parameters)

    @classmethod
    def load(cls, parameters: Parameters, data: bytes) -> Self:
        return cls(parameters)

    def save(self) -> bytes:
        return b"plain"

    def evaluation_keys(self, steps: Sequence[int], relinearize: bool) -> bytes:
        return json.dumps([*steps, *([0] if relinearize else [])]).encode()

    def encrypt(self, values: Slots, scale: float) -> bytes:
        fresh = PlainText(np.asarray(values, np.float64), self.parameters.depth, scale)
        fresh.values = self._evaluator._noisy(fresh.values, self._evaluator._model.fresh(scale))
        return self._evaluator.save(fresh)

    def decrypt(self, data: bytes, level: int, scale: float) -> Slots:
        result = read(data, self.parameters)
        if result.level != level or result.scale != scale:
            raise CorruptMessage("result: not at the level or scale of the plan")
        return result.values


def read(data: bytes, parameters: Parameters) -> PlainText:
    """A simulated ciphertext from bytes.

    Raises:
        CorruptMessage: they are none.
    """
    if (
        len(data) < _HEAD.size
        or (len(data) - _HEAD.size) % 8
        or len(data) > _HEAD.size + 8 * parameters.slots
    ):
        raise CorruptMessage("ciphertext: of a wrong length")
    level, scale = _HEAD.unpack_from(data)
    values = np.frombuffer(data, "<f8", offset=_HEAD.size).astype(np.float64)
    if level > parameters.depth or not scale > 0 or not np.isfinite(values).all():
        raise CorruptMessage("ciphertext: level, scale or value out of range")
    return PlainText(values, level, scale)
