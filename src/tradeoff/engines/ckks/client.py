"""The client: encrypts, asks, decrypts. The only side that ever has the secret key."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.ckks.errors import CorruptMessage, PrecisionLost, WrongKeyOrNoise
from tradeoff.engines.ckks.keys import Keys
from tradeoff.engines.ckks.messages import (
    CHUNK_BYTES,
    CIPHERTEXT,
    KEYS_CHUNK,
    KEYS_KNOWN,
    KEYS_READY,
    OFFER_KEYS,
    PROGRESS,
    REQUEST,
    RESULT,
    SERVER,
    as_json,
    configured,
    send_json,
)
from tradeoff.engines.ckks.meter import Meter, format_rows
from tradeoff.engines.ckks.planning import Plan
from tradeoff.engines.transport import Config, Party, UnexpectedMessage

ALERT = 4.0
"""Results beyond this times the calibrated range are warned of."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What one request took.

    Attributes:
        meter: operations and seconds at the server, as it says; bytes are of messages, both counted here.
        encrypt_seconds, decrypt_seconds: at the client; wait_seconds: from the request to the result.
    """

    plan: Plan
    meter: Meter
    encrypt_seconds: float
    wait_seconds: float
    decrypt_seconds: float
    sent: int
    received: int

    @property
    def evaluate_seconds(self) -> float:
        """At the server, without the encoding of weights."""
        return math.fsum(self.meter.seconds.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "parameters": self.plan.parameters.describe(),
            "log_n": self.plan.parameters.log_n,
            "total_bits": self.plan.parameters.total_bits,
            "depth": self.plan.parameters.depth,
            "keys": self.plan.key_count,
            "layers": list(self.meter.rows()),
            "rotations": self.meter.total("rotate"),
            "ct_pt": self.meter.total("ct_pt"),
            "ct_ct": self.meter.total("ct_ct"),
            "evaluate_seconds": self.evaluate_seconds,
            "encode_seconds": self.meter.encode_seconds,
            "encrypt_seconds": self.encrypt_seconds,
            "wait_seconds": self.wait_seconds,
            "decrypt_seconds": self.decrypt_seconds,
            "sent": self.sent,
            "received": self.received,
        }

    def __str__(self) -> str:
        meter = self.meter
        return "\n".join(
            [
                self.plan.parameters.describe(),
                format_rows(meter.rows()),
                f"{meter.total('rotate'):,} rotations, {meter.total('ct_pt'):,} ct-pt, "
                f"{meter.total('ct_ct'):,} ct-ct; {self.evaluate_seconds:.2f} s evaluation, "
                f"{meter.encode_seconds:.2f} s encoding, {self.sent:,} bytes sent, "
                f"{self.received:,} received",
            ]
        )


@dataclass(frozen=True)
class Result:
    """A decrypted result; it is for the key owner only.

    Attributes:
        values: the tensor; report: what it took.
    """

    values: NDArray[np.float64]
    report: Report
    _keys: Keys = field(repr=False)

    def share(
        self, *, tau: int = 1, stat_bits: int = 30, precision_bits: int = 8, seed: int | None = None
    ) -> NDArray[np.float64]:
        """The result with noise that makes it safe to hand to somebody who may see the ciphertexts.

        The noise of a decrypted value is linear in the secret key: exact values of known ciphertexts give the
        key away (Li and Micciancio, EUROCRYPT 2021). Gaussian noise of deviation ``sqrt(12 tau)
        2^(stat_bits/2) B`` hides it (Li, Micciancio, Schultz, Sorrell, CRYPTO 2022), B the plan's bound on
        the noise.

        Args:
            tau: results that are ever shared under this key; they are counted in the key folder.
            precision_bits: that must be left.
            seed: for tests.

        Raises:
            PrecisionLost: fewer bits would be left, more results than ``tau`` were shared, or the plan has no
                bound on the noise.
        """
        plan = self.report.plan
        if plan.noise_bound <= 0:
            raise PrecisionLost("the plan has no bound on the noise: prepare it with typical inputs")
        deviation = sharing_deviation(plan, tau, stat_bits)
        left = math.log2(max(float(np.abs(self.values).max()), 1e-300) / deviation)
        if left < precision_bits:
            raise PrecisionLost(
                f"noise of deviation {deviation:.3g} leaves {left:.1f} bits of the result, not "
                f"{precision_bits}; use a larger scale"
            )
        if self._keys.count_release() > tau:
            raise PrecisionLost(f"{tau} results were shared under this key already")
        generator = np.random.default_rng(seed)
        return self.values + generator.normal(0.0, deviation, self.values.shape)


def sharing_deviation(plan: Plan, tau: int, stat_bits: int) -> float:
    """Standard deviation of the noise that :meth:`Result.share` adds."""
    return math.sqrt(12 * tau) * 2 ** (stat_bits / 2) * plan.noise_bound


class Client:
    """Encryption and decryption for one plan.

    Args:
        keys: of this plan.
    """

    def __init__(self, plan: Plan, keys: Keys) -> None:
        self.plan = plan
        self.keys = keys

    def encrypt(self, x: NDArray[Any]) -> list[bytes]:
        """The ciphertexts of a tensor.

        Raises:
            ValueError: it has another shape than the plan's input, or values that are not finite.
        """
        scale = self.plan.parameters.scale
        vectors = self.plan.layout_in.pack(np.asarray(x, np.float64))
        return [self.keys.secret.encrypt(vector, scale) for vector in vectors]

    def decrypt(self, ciphertexts: list[bytes]) -> NDArray[np.float64]:
        """The tensor of result ciphertexts.

        Raises:
            CorruptMessage: they are not what the plan says.
            WrongKeyOrNoise: a value is out of every range.
        """
        plan = self.plan
        if len(ciphertexts) != plan.outputs:
            raise CorruptMessage(f"{len(ciphertexts)} results came, the plan has {plan.outputs}")
        secret, level, scale = self.keys.secret, plan.output_level, plan.output_scale
        slots = [secret.decrypt(data, level, scale) for data in ciphertexts]
        largest = max(float(np.abs(vector).max()) for vector in slots)
        if not largest < plan.parameters.bound:
            raise WrongKeyOrNoise(
                f"a decrypted slot has the magnitude {largest:.3g}, results stay below "
                f"{plan.parameters.bound:g}: the result is of other keys, or its noise took over"
            )
        result = plan.layout_out.unpack(slots)
        reached = float(np.abs(result).max())
        if plan.output_bound and reached > ALERT * plan.output_bound:
            _log.warning(
                "a result of %.3g, in calibration they stayed below %.3g", reached, plan.output_bound
            )
        return result

    def connect(self, config: Config) -> Connection:
        """A session with the server of ``config.parties[0]``.

        Raises:
            PlanMismatch: the server runs another plan. PeerError, AuthError: it cannot be reached or trusted.
        """
        return Connection(self, config)


class Connection:
    """A client's session with a server. Use it as a context manager.

    Attributes:
        key_bytes_sent: evaluation keys that this session uploaded; 0 where the server had them.
    """

    def __init__(self, client: Client, config: Config) -> None:
        self.client = client
        self.net = Party(configured(config, client.plan), 1)
        self.key_bytes_sent = 0
        self._request = 0
        try:
            self._offer_keys()
        except BaseException as error:
            self.net.close(error)
            raise

    def infer(
        self, x: NDArray[Any], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Result:
        """The network's result for a tensor; nothing is tried again, whatever comes back.

        Args:
            progress: told operations done and in all.

        Raises:
            WrongKeyOrNoise, CorruptMessage: the result is no result.
            PeerLost, PeerAborted, PeerTimeout: what became of the server; its own error by name.
        """
        net, client, plan = self.net, self.client, self.client.plan
        before, began = net.stats().total(phase="online"), time.perf_counter()
        ciphertexts = client.encrypt(x)
        encrypted = time.perf_counter()
        self._request += 1
        send_json(net, SERVER, REQUEST, {"request": self._request, "ciphertexts": len(ciphertexts)})
        for data in ciphertexts:
            net.send(SERVER, data, tag=CIPHERTEXT)
        meter = self._wait(progress)
        results = [_as_bytes(net.recv(SERVER, tag=CIPHERTEXT)) for _ in range(plan.outputs)]
        answered = time.perf_counter()
        values = client.decrypt(results)
        decrypted = time.perf_counter()
        after = net.stats().total(phase="online")
        report = Report(
            plan,
            meter,
            encrypted - began,
            answered - encrypted,
            decrypted - answered,
            after.payload_sent - before.payload_sent,
            after.payload_received - before.payload_received,
        )
        return Result(values, report, client.keys)

    def close(self, error: BaseException | None = None) -> None:
        """Leave."""
        self.net.close(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def _offer_keys(self) -> None:
        keys, net = self.client.keys, self.net
        send_json(net, SERVER, OFFER_KEYS, {"digest": keys.digest, "size": len(keys.evaluation)})
        known = net.recv(SERVER, tag=KEYS_KNOWN, expect=("uint8", (1,)))
        if not known[0]:
            view = memoryview(keys.evaluation)
            for at in range(0, len(view), CHUNK_BYTES):
                net.send(SERVER, np.frombuffer(view[at : at + CHUNK_BYTES], np.uint8), tag=KEYS_CHUNK)
            self.key_bytes_sent = len(view)
        net.recv(SERVER, tag=KEYS_READY, expect=("uint8", (1,)))

    def _wait(self, progress: Callable[[int, int], None]) -> Meter:
        while True:
            tag, value = self.net.recv_any(SERVER)
            if tag == PROGRESS and isinstance(value, np.ndarray) and value.shape == (2,):
                progress(int(value[0]), int(value[1]))
                continue
            if tag != RESULT:
                raise UnexpectedMessage(SERVER, f"tag {RESULT}", f"tag {tag}")
            told = as_json(value)
            if not isinstance(told, dict) or told.get("request") != self._request:
                raise CorruptMessage("the result of another request")
            return Meter.from_json(told.get("meter"))


def _as_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise CorruptMessage("a result that is no ciphertext")
    return value
