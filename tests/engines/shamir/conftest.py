"""Servers in a few lines: protocols without a dealer's process, programs among simulated parties."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tradeoff.engines.shamir import Options, Program
from tradeoff.engines.shamir import field as elements
from tradeoff.engines.shamir.client import Client
from tradeoff.engines.shamir.materials import Material
from tradeoff.engines.shamir.offline import learn_batch, run_dealer
from tradeoff.engines.shamir.server import Server
from tradeoff.engines.shamir.sharing import combine, fresh_stream, lagrange, uniform
from tradeoff.engines.transport import SimNet


class Bank:
    """A dealer inside the test: makes what the n-th call asks for once, and hands out its shares."""

    def __init__(self, options: Options, deal: Callable[[Material], dict[str, Any]] | None = None) -> None:
        self.options = options
        self.alpha = uniform(fresh_stream(), 1)
        self.key_shares = options.scheme.share(self.alpha)
        self._deal = deal or (lambda material: material.deal(fresh_stream()))
        self._made: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()

    def get(self, kind: str, number: int, make: Callable[[], Any]) -> Any:
        with self._lock:
            if (kind, number) not in self._made:
                self._made[kind, number] = make()
            return self._made[kind, number]

    def pair(self, value: Any) -> Any:
        """Shares (servers, copies, *shape) of a value."""
        copies = [value, elements.multiply(value, self.alpha)][: self.options.copies]
        return np.stack([self.options.scheme.share(copy) for copy in copies], axis=1)

    def dealt(self, material: Material) -> dict[str, Any]:
        return {name: self.pair(value) for name, value in self._deal(material).items()}

    def doubles(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        scheme, degree = self.options.scheme, 2 * self.options.threshold
        random = scheme.share(uniform(fresh_stream(), shape))
        drawn = [uniform(fresh_stream(), shape) for _ in range(degree)]
        weights = lagrange((-1, *range(degree)), tuple(range(degree, scheme.n)))
        zeros = [*drawn, *combine(weights, [np.zeros(shape, np.uint64), *drawn])]
        return random, np.stack(zeros)


class BankSource:
    """A server's source of randomness from a :class:`Bank`."""

    def __init__(self, bank: Bank, me: int) -> None:
        self._bank, self._me = bank, me
        self._calls = {"dealt": 0, "doubles": 0}
        self.key = bank.key_shares[me][0]

    def _number(self, kind: str) -> int:
        self._calls[kind] += 1
        return self._calls[kind]

    def take(self, tag: int, material: Material) -> dict[str, Any]:
        made = self._bank.get("dealt", self._number("dealt"), lambda: self._bank.dealt(material))
        return {name: shares[self._me] for name, shares in made.items()}

    def doubles(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        made = self._bank.get("doubles", self._number("doubles"), lambda: self._bank.doubles(shape))
        return made[0][self._me], made[1][self._me]


@dataclass
class Ran:
    """What came of a protocol.

    Attributes:
        value: opened from any t + 1 servers; opened: by server what every opening showed, in order.
    """

    value: Any
    opened: dict[int, list[Any]] = field(default_factory=dict)


def run_protocol(
    options: Options,
    protocol: Callable[..., Any],
    *values: Any,
    deal: Callable[[Material], dict[str, Any]] | None = None,
    server_class: type[Server] = Server,
    verify: bool = True,
) -> Ran:
    """Run ``protocol(server, *shared)`` on shares (copies, *shape) of values; check that all shares of the
    result fit together, and its multiple by the key."""
    bank = Bank(options, deal)
    inputs = [bank.pair(value) for value in values]
    opened: dict[int, list[Any]] = {server: [] for server in options.scheme.servers}

    def party(net: Any) -> Any:
        server = server_class(net, SimpleNamespace(options=options), 1, {})  # type: ignore[arg-type]
        server._source = BankSource(bank, net.me)  # type: ignore[assignment]
        original = server._interpolate

        def remember(shares: Any, degree: int, what: str) -> Any:
            result = original(shares, degree, what)
            opened[net.me].append(result)
            return result

        server._interpolate = remember  # type: ignore[method-assign]
        result = protocol(server, *(shares[net.me] for shares in inputs))
        if options.authenticated and verify:
            server.verify()
        assert not server._expected, "a protocol opened less than it declares"
        return result

    results = SimNet(options.servers, recv_timeout=20.0).run(party)
    shares = dict(enumerate(results))
    assert options.scheme.check(shares, options.threshold)
    value = options.scheme.open(shares, options.threshold)
    if options.authenticated:
        assert np.array_equal(value[1], elements.multiply(value[0], bank.alpha))
    return Ran(value[0], opened)


def run_program(
    program: Program,
    x: Any,
    *,
    server_class: Callable[..., Server] = Server,
    inferences: int = 1,
    net: SimNet | None = None,
) -> list[Any]:
    """Run a program among simulated parties; by party id what it returned: (server, stats) or (results,
    stats)."""
    options, shares = program.options, program.share_weights()

    def party(endpoint: Any) -> Any:
        public = program.public()
        if endpoint.me == options.dealer:
            return run_dealer(endpoint, public)
        if endpoint.me == options.client:
            client = Client(endpoint, public, len(x))
            results = [client.infer(x) for _ in range(inferences)]
            client.finish()
            return results, endpoint.stats(), client
        own = {tuple(name.rsplit("/", 1)): share for name, share in shares[endpoint.me].items()}
        server = server_class(endpoint, public, len(x), own)
        server.prepare()
        learn_batch(server.peers)
        for _ in range(inferences):
            server.infer()
        return server, endpoint.stats()

    return (net or SimNet(options.parties, recv_timeout=20.0)).run(party)


@pytest.fixture(scope="session")
def protocol_runner() -> Callable[..., Ran]:
    return run_protocol


@pytest.fixture(scope="session")
def program_runner() -> Callable[..., list[Any]]:
    return run_program
