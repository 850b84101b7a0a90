"""SEAL: the key owner's half. No module of the server imports this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from tradeoff.engines.ckks.backends.backend import Secret, Slots
from tradeoff.engines.ckks.backends.seal import (
    _PARTS,
    galois_element,
    levels,
    loaded,
    saved,
    seal_context,
    sealapi,
    tiled,
)
from tradeoff.engines.ckks.errors import CorruptMessage, KeysMismatch
from tradeoff.engines.ckks.parameters import Parameters


class SealSecret(Secret[Any, Any]):
    """A secret key, and what can be done with it alone.

    Keys and fresh ciphertexts carry a seed in place of their random half: they are half as long.
    """

    def __init__(self, parameters: Parameters, context: Any, key: Any) -> None:
        self.parameters = parameters
        self._api, self._context, self._key = sealapi(), context, key
        self._levels = levels(context, parameters.depth)
        self._encoder = self._api.CKKSEncoder(context)
        self._encryptor = self._api.Encryptor(context, key)
        self._decryptor = self._api.Decryptor(context, key)

    @classmethod
    def generate(cls, parameters: Parameters) -> Self:
        context = seal_context(parameters)
        return cls(parameters, context, sealapi().KeyGenerator(context).secret_key())

    @classmethod
    def load(cls, parameters: Parameters, data: bytes) -> Self:
        context = seal_context(parameters)
        try:
            return cls(parameters, context, loaded(sealapi().SecretKey(), context, data, "secret key"))
        except CorruptMessage as error:
            raise KeysMismatch(f"{error}; it is damaged, or belongs to other parameters") from None

    def save(self) -> bytes:
        return saved(self._key)

    def coefficients(self) -> bytes:
        """The key as it lies in memory, for tests that look for it elsewhere."""
        data = self._key.data()
        return b"".join(int(data.data(i)).to_bytes(8, "little") for i in range(self.parameters.n))

    def evaluation_keys(self, steps: Sequence[int], relinearize: bool) -> bytes:
        generator = self._api.KeyGenerator(self._context, self._key)
        first = saved(generator.create_relin_keys()) if relinearize else b""
        elements = [galois_element(step, self.parameters.n) for step in steps]
        second = saved(generator.create_galois_keys(elements)) if elements else b""
        return _PARTS.pack(len(first), len(second)) + first + second

    def encrypt(self, values: Slots, scale: float) -> bytes:
        plain = self._api.Plaintext()
        self._encoder.encode(tiled(values, self.parameters.slots), self._levels[-1], scale, plain)
        return saved(self._encryptor.encrypt_symmetric(plain))

    def decrypt(self, data: bytes, level: int, scale: float) -> Slots:
        result = loaded(self._api.Ciphertext(), self._context, data, "result")
        if result.size() != 2 or result.parms_id() != self._levels[level] or result.scale != scale:
            raise CorruptMessage("result: not at the level or scale of the plan")
        plain = self._api.Plaintext()
        self._decryptor.decrypt(result, plain)
        return np.asarray(self._encoder.decode_double(plain))
