"""How tensors lie in the slots of ciphertexts.

A layout turns one tensor into vectors of length ``period``, one for each ciphertext, and back. Each vector is
repeated over all slots, so a rotation of the ciphertext is a cyclic rotation of the vector.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import DataError
from tradeoff.engines.ckks.parameters import log2_ceil

Slots = NDArray[np.float64]
MAX_PERIOD = 1 << 16
_TEXT = re.compile(r"([a-z_]+)\(([0-9, ]+)\)")


def power_of_two(number: int) -> int:
    """The smallest one that is not below ``number``."""
    return 1 << log2_ceil(number)


class Layout(ABC):
    """How a tensor of :attr:`shape` lies in :attr:`ciphertexts` vectors of length :attr:`period`."""

    name = ""

    def __post_init__(self) -> None:
        if min(self.numbers) < 1:
            raise DataError(f"a layout has sizes of at least 1: {self}")
        if self.period > MAX_PERIOD:
            raise DataError(f"{self} needs {self.period} slots; at most {MAX_PERIOD}")

    @property
    @abstractmethod
    def numbers(self) -> tuple[int, ...]:
        """What :func:`parse_layout` needs besides the name."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""

    @property
    @abstractmethod
    def period(self) -> int:
        """Length of a vector, a power of two."""

    @property
    def ciphertexts(self) -> int:
        """How many vectors a tensor takes."""
        return 1

    @abstractmethod
    def positions(self) -> NDArray[np.int64]:
        """By element of one ciphertext's part of the tensor, its slot."""

    def mask(self) -> Slots:
        """1 in slots that hold an element, 0 elsewhere."""
        mask = np.zeros(self.period)
        mask[self.positions().ravel()] = 1.0
        return mask

    def pack(self, x: NDArray[np.float64]) -> list[Slots]:
        """The vectors of a tensor.

        Raises:
            ValueError: it has another shape, or a value that is not finite.
        """
        x = np.asarray(x, np.float64)
        if x.shape != self.shape:
            raise ValueError(f"{self} takes a tensor of shape {self.shape}, not {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError("a value is not finite")
        positions = self.positions()
        vectors = np.zeros((self.ciphertexts, self.period))
        for vector, part in zip(vectors, self._parts(x), strict=True):
            vector[positions] = part
        return list(vectors)

    def unpack(self, vectors: list[Slots]) -> NDArray[np.float64]:
        """The tensor of vectors, which may be longer than the period (all slots)."""
        positions = self.positions()
        return self._joined([np.asarray(vector)[positions] for vector in vectors])

    def _parts(self, x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        return [x]

    def _joined(self, parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        return parts[0]

    def __str__(self) -> str:
        return f"{self.name}({','.join(map(str, self.numbers))})"


@dataclass(frozen=True)
class Vector(Layout):
    """``size`` numbers in one ciphertext, padded to a power of two of at least ``room``."""

    size: int
    room: int = 1

    name = "vector"

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.size, self.room)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def period(self) -> int:
        return power_of_two(max(self.size, self.room))

    def positions(self) -> NDArray[np.int64]:
        return np.arange(self.size)


@dataclass(frozen=True)
class ChannelTime(Layout):
    """(batch, channels, time, nodes): one ciphertext a node, slot ``(sample * C + channel) * T + time``.

    C and T are powers of two that hold ``channels`` and ``time``, and at least ``room_channels`` and
    ``room_time``. This is the adjacency-matrix-aware format of CryptoGCN (Ran et al., NeurIPS 2022): sums
    over neighbors are sums of ciphertexts, without rotations.
    """

    batch: int
    channels: int
    time: int
    nodes: int
    room_channels: int = 1
    room_time: int = 1

    name = "channel_time"

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.batch, self.channels, self.time, self.nodes, self.room_channels, self.room_time)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, self.time, self.nodes)

    @property
    def block(self) -> tuple[int, int]:
        """Slots of a sample: (channels, time)."""
        return power_of_two(max(self.channels, self.room_channels)), power_of_two(
            max(self.time, self.room_time)
        )

    @property
    def period(self) -> int:
        channels, time = self.block
        return power_of_two(self.batch) * channels * time

    @property
    def ciphertexts(self) -> int:
        return self.nodes

    def positions(self) -> NDArray[np.int64]:
        channels, time = self.block
        sample, channel, frame = np.ix_(range(self.batch), range(self.channels), range(self.time))
        return (sample * channels + channel) * time + frame

    def _parts(self, x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        return list(np.moveaxis(x, 3, 0))

    def _joined(self, parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.stack(parts, axis=3)


@dataclass(frozen=True)
class Grouped(Layout):
    """(batch, size) results, ``group`` to a ciphertext: number i of a sample in ciphertext ``i // group``, at
    slot ``sample * stride + (i % group) * spacing``."""

    batch: int
    size: int
    group: int
    stride: int
    spacing: int

    name = "grouped"

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.batch, self.size, self.group, self.stride, self.spacing)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, self.size)

    @property
    def period(self) -> int:
        return power_of_two(self.batch) * power_of_two(max(self.stride, self.group * self.spacing))

    @property
    def ciphertexts(self) -> int:
        return -(-self.size // self.group)

    def positions(self) -> NDArray[np.int64]:
        sample, number = np.ix_(range(self.batch), range(self.group))
        return sample * self.stride + number * self.spacing

    def _parts(self, x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        padded = np.zeros((self.batch, self.ciphertexts * self.group))
        padded[:, : self.size] = x
        return np.split(padded, self.ciphertexts, axis=1)

    def _joined(self, parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.concatenate(parts, axis=1)[:, : self.size]


_LAYOUTS: dict[str, type[Layout]] = {cls.name: cls for cls in (Vector, ChannelTime, Grouped)}


def parse_layout(text: str) -> Layout:
    """A layout from its text.

    Raises:
        DataError: it is none.
    """
    found = _TEXT.fullmatch(text[:200])
    if found is None or found[1] not in _LAYOUTS:
        raise DataError(f"not a layout: {text[:80]!r}; there are {', '.join(_LAYOUTS)}")
    try:
        return _LAYOUTS[found[1]](*(int(number) for number in found[2].split(",")))
    except (TypeError, ValueError) as error:
        raise DataError(f"not a layout: {text!r} ({error})") from None
