"""The server: computes on what clients encrypted. It has no secret key, and no code that could take one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tradeoff.core.errors import TradeoffError
from tradeoff.engines.ckks.backends import Evaluator, evaluator
from tradeoff.engines.ckks.errors import CorruptMessage, InsecureParameters, QuotaExceeded
from tradeoff.engines.ckks.execution import DEFAULT_CACHE_BYTES, Execution
from tradeoff.engines.ckks.messages import (
    CHUNK_BYTES,
    CIPHERTEXT,
    CLIENT,
    KEYS_CHUNK,
    KEYS_KNOWN,
    KEYS_READY,
    OFFER_KEYS,
    PROGRESS,
    REQUEST,
    RESULT,
    as_json,
    configured,
    send_json,
)
from tradeoff.engines.ckks.meter import Meter
from tradeoff.engines.ckks.planning import Plan
from tradeoff.engines.ckks.program import Program
from tradeoff.engines.transport import Config, Party, PeerLost, Server, serve

IDLE_SECONDS = 600.0
"""How long a client may say nothing between two requests."""
PROGRESS_SECONDS = 0.5
DEFAULT_QUOTA = 8 << 30


@dataclass(frozen=True)
class Served:
    """One request, as a server may log it: no value of anybody.

    Attributes:
        client: the name in its certificate; error: class and message of what ended it, or None.
    """

    client: str
    seconds: float
    meter: Meter | None
    error: str | None


class KeyStore:
    """Evaluation keys of clients on disk, by digest, within a quota.

    Args:
        folder: made if it is not there; quota: bytes of all keys together.
    """

    def __init__(self, folder: Path, quota: int) -> None:
        self.folder = folder
        self.quota = quota
        self._lock = threading.Lock()
        self._promised = 0
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.partial"):
            left.unlink()

    def path(self, digest: str) -> Path:
        """Where keys are kept."""
        return self.folder / f"{digest}.keys"

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Hold room for keys that are about to come.

        Raises:
            QuotaExceeded: there is not so much.
        """
        with self._lock:
            used = sum(path.stat().st_size for path in self.folder.glob("*.keys")) + self._promised
            if used + size > self.quota:
                raise QuotaExceeded(
                    f"keys of {size:,} bytes; {self.quota - used:,} of {self.quota:,} are left"
                )
            self._promised += size
        try:
            yield
        finally:
            with self._lock:
                self._promised -= size


class Service:
    """One program under one plan, for any number of clients; one request is computed at a time.

    Args:
        keys: where evaluation keys are kept.
        cache_bytes: memory for encoded weights.
    """

    def __init__(
        self,
        program: Program,
        plan: Plan,
        keys: KeyStore,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        on_query: Callable[[Served], None] = lambda served: None,
    ) -> None:
        if not plan.parameters.secure:
            parameters = plan.parameters
            raise InsecureParameters(parameters.total_bits, parameters.limit_bits, parameters.n)
        self._plan = plan
        self._keys = keys
        self._execution = Execution(program, plan, evaluator(plan.backend, plan.parameters), cache_bytes)
        self._busy = threading.Lock()
        self._on_query = on_query

    def handle(self, net: Party, name: str) -> None:
        """Talk to one client until it leaves."""
        began, scheme = time.perf_counter(), None
        try:
            scheme = self._receive_keys(net)
            while True:
                began = time.perf_counter()
                meter = self._answer(net, scheme)
                self._on_query(Served(name, time.perf_counter() - began, meter, None))
        except TradeoffError as error:
            if isinstance(error, PeerLost) and scheme is not None and "left" in error.detail:
                return
            # The transport remembers the error: not, in its frames, this client's keys and ciphertexts.
            scheme = None
            traceback.clear_frames(error.__traceback__)
            said = f"{type(error).__name__}: {error}"
            self._on_query(Served(name, time.perf_counter() - began, None, said))
            raise

    def _receive_keys(self, net: Party) -> Evaluator[Any, Any]:
        offer = as_json(net.recv(CLIENT, tag=OFFER_KEYS, timeout=IDLE_SECONDS))
        digest, size = _checked_offer(offer)
        path = self._keys.path(digest)
        scheme = evaluator(self._plan.backend, self._plan.parameters)
        known = path.exists()
        if known:
            net.send(CLIENT, np.ones(1, np.uint8), tag=KEYS_KNOWN)
            self._take(scheme, path.read_bytes())
        else:
            with self._keys.room(size):
                net.send(CLIENT, np.zeros(1, np.uint8), tag=KEYS_KNOWN)
                self._upload(net, scheme, path, digest, size)
        net.send(CLIENT, np.ones(1, np.uint8), tag=KEYS_READY)
        return scheme

    def _upload(self, net: Party, scheme: Evaluator[Any, Any], path: Path, digest: str, size: int) -> None:
        """Write chunks to disk as they come; keep them once they have the digest and fit the plan."""
        number, name = tempfile.mkstemp(suffix=".partial", dir=self._keys.folder)
        try:
            hashed, left = hashlib.sha256(), size
            with os.fdopen(number, "wb") as file:
                while left:
                    length = min(CHUNK_BYTES, left)
                    chunk = bytes(net.recv(CLIENT, tag=KEYS_CHUNK, expect=("uint8", (length,))))
                    hashed.update(chunk)
                    file.write(chunk)
                    left -= length
            if hashed.hexdigest() != digest:
                raise CorruptMessage("evaluation keys with another digest than offered")
            self._take(scheme, Path(name).read_bytes())
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)

    def _take(self, scheme: Evaluator[Any, Any], data: bytes) -> None:
        scheme.load_keys(data)
        scheme.require_steps(self._plan.steps, self._plan.relinearize)

    def _answer(self, net: Party, scheme: Evaluator[Any, Any]) -> Meter:
        request = as_json(net.recv(CLIENT, tag=REQUEST, timeout=IDLE_SECONDS))
        number = _checked_request(request, len(self._plan.inputs))
        inputs = []
        for _ in self._plan.inputs:
            data = net.recv(CLIENT, tag=CIPHERTEXT)
            if not isinstance(data, bytes):
                raise CorruptMessage("an array where a ciphertext is expected")
            inputs.append(scheme.load(data))
        told = _Progress(net, len(self._execution.program.operations))
        with self._turn(told):
            self._execution.use(scheme)
            outputs, meter = self._execution.run(inputs, told.done)
            saved = [scheme.save(output) for output in outputs]
        send_json(net, CLIENT, RESULT, {"request": number, "meter": meter.to_json()})
        for data in saved:
            net.send(CLIENT, data, tag=CIPHERTEXT)
        return meter

    @contextlib.contextmanager
    def _turn(self, told: _Progress) -> Iterator[None]:
        """Wait for other clients' requests; a client that leaves meanwhile is noticed."""
        while not self._busy.acquire(timeout=PROGRESS_SECONDS):
            told.done(0)
        try:
            yield
        finally:
            self._busy.release()


class _Progress:
    """Tells a client how far its request is; raises once it is gone, which ends the computation."""

    def __init__(self, net: Party, total: int) -> None:
        self._net = net
        self._total = total
        self._last = time.monotonic()

    def done(self, count: int) -> None:
        if time.monotonic() - self._last >= PROGRESS_SECONDS:
            self._last = time.monotonic()
            self._net.send(CLIENT, np.array([count, self._total], np.uint64), tag=PROGRESS)


def serve_program(
    program: Program,
    plan: Plan,
    config: Config,
    keys: Path | str,
    *,
    quota: int = DEFAULT_QUOTA,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    max_clients: int = 8,
    on_query: Callable[[Served], None] = lambda served: None,
) -> Server:
    """Serve until the returned server is closed.

    Args:
        config: two parties, of which this is the first.
        keys: folder for clients' evaluation keys; they are not uploaded twice.
        quota: bytes of all clients' keys together.
        cache_bytes: memory for encoded weights.
        on_query: told of every request.

    Raises:
        InsecureParameters: the plan is below 128 bits of security.
        EngineError: the plan is of another program. ConfigError, InsecureTransport, PortInUse.
    """
    service = Service(program, plan, KeyStore(Path(keys), quota), cache_bytes, on_query)
    return serve(service.handle, configured(config, plan), max_clients=max_clients)


def _checked_offer(offer: Any) -> tuple[str, int]:
    if not isinstance(offer, dict) or set(offer) != {"digest", "size"}:
        raise CorruptMessage("an offer of keys with missing or unknown fields")
    digest, size = offer["digest"], offer["size"]
    well_formed = isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    if not well_formed or type(size) is not int or size < 0:
        raise CorruptMessage("an offer of keys without digest or size")
    return digest, size


def _checked_request(request: Any, ciphertexts: int) -> int:
    if not isinstance(request, dict) or set(request) != {"request", "ciphertexts"}:
        raise CorruptMessage("a request with missing or unknown fields")
    if type(request["request"]) is not int or not 0 <= request["request"] < 1 << 53:
        raise CorruptMessage("a request without a number")
    if request["ciphertexts"] != ciphertexts:
        raise CorruptMessage(
            f"a request of {request['ciphertexts']!r} ciphertexts; the plan has {ciphertexts}"
        )
    return int(request["request"])
