"""The interface that a scheme implements. Ciphertexts and plaintexts are its own objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.ckks.parameters import Parameters

C = TypeVar("C")
P = TypeVar("P")
Slots = NDArray[np.float64]


class Evaluator(ABC, Generic[C, P]):
    """Computes on ciphertexts with public parameters and evaluation keys.

    Levels count down from ``parameters.depth`` to 0. Methods return new ciphertexts and leave their
    arguments as they are, but :meth:`accumulate`, which changes the first.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    @abstractmethod
    def load_keys(self, data: bytes | memoryview) -> None:
        """Take evaluation keys as :meth:`Secret.evaluation_keys` wrote them.

        Raises:
            CorruptMessage: the bytes are no keys of these parameters.
        """

    @abstractmethod
    def require_steps(self, steps: Sequence[int], relinearize: bool) -> None:
        """Refuse keys that lack what a plan needs.

        Raises:
            MissingRotationKey: a rotation, or the relinearization (step 0), has no key.
        """

    @abstractmethod
    def encode(self, values: Slots, level: int, scale: float) -> P:
        """A known vector (period,), repeated over all slots, for products and sums at a level."""

    @abstractmethod
    def plain_bytes(self, level: int) -> int:
        """Memory of one encoded vector."""

    @abstractmethod
    def add(self, x: C, y: C) -> C: ...

    @abstractmethod
    def subtract(self, x: C, y: C) -> C: ...

    @abstractmethod
    def accumulate(self, x: C, y: C) -> None:
        """``x += y`` in place."""

    @abstractmethod
    def negate(self, x: C) -> C: ...

    @abstractmethod
    def add_plain(self, x: C, y: P) -> C: ...

    @abstractmethod
    def multiply_plain(self, x: C, y: P) -> C: ...

    @abstractmethod
    def multiply(self, x: C, y: C) -> C:
        """The product, relinearized."""

    @abstractmethod
    def rescale(self, x: C) -> C: ...

    @abstractmethod
    def lower(self, x: C, level: int) -> C: ...

    @abstractmethod
    def rotate(self, x: C, step: int) -> C:
        """Slots moved ``step`` places to the left.

        Raises:
            MissingRotationKey: there is no key for it.
        """

    @abstractmethod
    def level(self, x: C) -> int: ...

    @abstractmethod
    def scale(self, x: C) -> float: ...

    @abstractmethod
    def reinterpret_scale(self, x: C, scale: float) -> None:
        """Declare another scale: the value is multiplied by the old one over the new one, for nothing."""

    @abstractmethod
    def save(self, x: C) -> bytes: ...

    @abstractmethod
    def load(self, data: bytes) -> C:
        """A ciphertext from bytes of unknown origin.

        Raises:
            CorruptMessage: they are no ciphertext of two polynomials under these parameters.
        """


class Secret(ABC, Generic[C, P]):
    """The key owner's side: keys, encryption and decryption."""

    parameters: Parameters

    @classmethod
    @abstractmethod
    def generate(cls, parameters: Parameters) -> Self:
        """A fresh key."""

    @classmethod
    @abstractmethod
    def load(cls, parameters: Parameters, data: bytes) -> Self:
        """A key from bytes.

        Raises:
            KeysMismatch: they are no key of these parameters.
        """

    @abstractmethod
    def save(self) -> bytes:
        """The secret key. Keep it."""

    @abstractmethod
    def evaluation_keys(self, steps: Sequence[int], relinearize: bool) -> bytes:
        """Keys for rotations and products, for the server."""

    @abstractmethod
    def encrypt(self, values: Slots, scale: float) -> bytes:
        """A fresh ciphertext at the top level of a vector (period,), repeated over all slots."""

    @abstractmethod
    def decrypt(self, data: bytes, level: int, scale: float) -> Slots:
        """All slots of a ciphertext, which must be at ``level`` and have ``scale``.

        Raises:
            CorruptMessage: it is none of these parameters.
        """
