"""One server: executes a program's steps on its shares."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from tradeoff.core.errors import EngineError
from tradeoff.engines.shamir import field
from tradeoff.engines.shamir.errors import InconsistentShares
from tradeoff.engines.shamir.field import PRIME, Elements
from tradeoff.engines.shamir.materials import SEEDS, Authentication, Material, Opening, Verification
from tradeoff.engines.shamir.offline import Source
from tradeoff.engines.shamir.opening import open_checked
from tradeoff.engines.shamir.peers import PATIENCE, Peers
from tradeoff.engines.shamir.program import SETUP_INDEX, VERIFICATION, Program
from tradeoff.engines.shamir.sharing import uniform
from tradeoff.engines.shamir.steps import Input, Reveal, Step
from tradeoff.engines.transport import Clock, Endpoint
from tradeoff.engines.transport.prg import Prg

SETUP = "setup"
Operands = Mapping[tuple[str, str], Elements]
"""This server's shares of weights, by step and name."""

_log = logging.getLogger(__name__)


class Server:
    """Executes a program on shares.

    Args:
        net: this server's end of the links.
        program: the public view.
        batch: images an inference.
        operands: shares of the weights, where they are private.

    Attributes:
        verified: whether wrong shares would have been noticed so far: not in ``semi-honest`` runs, nor in a
            ``robust`` one in which an opening had no more shares than it needed.
        corrected: servers whose wrong shares were corrected (``robust`` only).
    """

    def __init__(self, net: Endpoint, program: Program, batch: int, operands: Operands) -> None:
        self.net = net
        self.program = program
        self.options = program.options
        self.batch = batch
        self.clock = Clock()
        self.peers = Peers(net, program.options)
        self.verified = self.options.security != "semi-honest"
        self.corrected: set[int] = set()
        self._scheme = program.options.scheme
        self._operands = dict(operands)
        self._tag = 0
        self._layer = SETUP
        self._expected: list[Opening] = []
        self._pending: list[tuple[Elements, Elements]] = []
        self._source: Source | None = None

    @property
    def source(self) -> Source:
        """This server's correlated randomness; known after :meth:`prepare`."""
        assert self._source is not None
        return self._source

    def prepare(self) -> None:
        """Get keys from the dealer; multiply what is added to values by the verification key."""
        with self.net.scope(SETUP), self.clock.measure(SETUP):
            self._tag = SETUP_INDEX
            self._source = Source(self.peers)
            addends = [key for step in self.program.steps for key in step.addends]
            if not (self.options.authenticated and addends):
                self._operands |= {key: self._operands[key][None] for key in addends}
                return
            flat = np.concatenate([self._operands[key].ravel() for key in addends])
            paired = self._authenticate(flat)
            sizes = np.cumsum([self._operands[key].size for key in addends])[:-1]
            for key, part in zip(addends, np.split(paired, sizes, axis=1), strict=True):
                self._operands[key] = part.reshape(2, *self._operands[key].shape)

    def operand(self, step: Step, name: str) -> Elements:
        """This server's share of a weight: (*shape), or (copies, *shape) of one that is added."""
        return self._operands[step.name, name]

    def infer(self) -> None:
        """One inference: inputs come from the data owner, who gets the result."""
        self.source.start()
        shares: dict[str, Elements] = {}
        last_use = {name: step.name for step in self.program.steps for name in step.inputs}
        checkpoints = self.program.checkpoints(self.batch)
        for index, step in enumerate(self.program.steps):
            self._tag = index
            if index in checkpoints:
                self.verify()
            self._layer = step.name
            with self.net.scope(step.name), self.clock.measure(step.name):
                inputs = [shares[name] for name in step.inputs]
                if isinstance(step, Input):
                    shares[step.name] = self._receive_input(step)
                elif isinstance(step, Reveal):
                    self._reveal(step, inputs[0])
                else:
                    shares[step.name] = step.run(self, *inputs)
            for name in set(step.inputs):
                if last_use[name] == step.name:
                    del shares[name]

    def take(self, material: Material) -> dict[str, Elements]:
        """Dealt shares for a protocol, whose openings must then be those that it declares."""
        if self._expected:
            raise EngineError(f"{self._layer}: a protocol opened less than it declares")
        self._expected = list(material.openings)
        return self.source.take(self._tag, material)

    def plus(self, x: Elements, public: Any) -> Elements:
        """x plus public elements, broadcast against x without its first axis."""
        public = np.broadcast_to(np.asarray(public, np.uint64), x.shape[1:])[None]
        if self.options.authenticated:
            public = np.concatenate([public, field.multiply(public, self.source.key)])
        return field.add(x, public)

    def constant(self, public: Elements) -> Elements:
        """Public elements as a shared tensor."""
        return self.plus(np.zeros((self.options.copies, *np.shape(public)), np.uint64), public)

    def zeros(self, shape: tuple[int, ...]) -> Elements:
        """Random shares, of degree 2t, of zeros."""
        return self.source.doubles(shape)[1]

    def reduce(self, product: Elements, what: str) -> Elements:
        """Shares (copies, ...) of degree 2t as shares of degree t: 1 round."""
        random, zeros = self.source.doubles(product.shape)
        masked = field.subtract(product, field.add(random, zeros))
        reduced = field.add(self.open(masked, what, product=True), random)
        if self.options.authenticated and len(reduced) == 2:
            self._pending.append((reduced[0], reduced[1]))
        return reduced

    def open(self, share: Elements, what: str, *, product: bool = False) -> Elements:
        """The values of a shared tensor, at all servers: 1 round.

        Raises:
            InconsistentShares: wrong shares came, and the security mode notices them but cannot correct them.
            PeerLost, PeerTimeout, ...: a server that cannot be done without is gone.
        """
        opening = self._expected.pop(0) if self._expected else None
        if opening != Opening(share.size, product):
            raise EngineError(f"{self._layer}: opening {share.size} elements of {what} was not declared")
        degree = opening.degree(self.options)
        share = np.ascontiguousarray(share)
        n, me = self._scheme.n, self.net.me
        readers = self.options.readers(degree)
        for to in ((me - distance) % n for distance in range(1, readers + 1)):
            self.send(to, share, what)
        shares = {me: share}
        for source in ((me + distance) % n for distance in range(1, readers + 1)):
            received = self.peers.recv(source, ("<u8", share.shape), tag=self._tag)
            if received is not None:
                shares[source] = np.asarray(received)
        self.net.round()
        return self._interpolate(shares, degree, what)

    def send(self, to: int, share: Elements, what: str) -> None:
        """Show another party this server's shares of ``what``."""
        self.peers.send(to, share, tag=self._tag)

    def verify(self) -> None:
        """Check all products since the last verification: 5 rounds.

        With public random rho_k, T = sum rho_k (alpha x_k) - alpha sum rho_k x_k is 0 unless somebody
        cheated; r T with a random r is opened, by degree t, so that T itself stays hidden. A wrong
        computation passes with a probability of about 3 / p (K. Chida et al., CRYPTO 2018).

        The rho_k follow from a seed that is opened when every server has said that it received all messages:
        who knew them before its last message could choose errors that cancel.

        Raises:
            InconsistentShares: it does not pass.
        """
        self._layer = VERIFICATION
        with self.net.scope(VERIFICATION), self.clock.measure(VERIFICATION):
            pending, self._pending = self._pending, []
            self.take(Verification(self.options, sum(x.size for x, _ in pending)))
            self.open(np.empty(0, np.uint64), "a receipt")
            seed = self.open(self.source.doubles((SEEDS,))[0], "a seed")
            name = hashlib.blake2b(seed.tobytes(), digest_size=16).digest()
            stream = Prg(name).stream(bytes(16), 0, 0, 0, "verification")
            plain = multiple = np.zeros(1, np.uint64)
            for x, keyed in pending:
                rho = uniform(stream, x.shape)
                plain = field.add(plain, field.total(field.multiply(rho, x).ravel()))
                multiple = field.add(multiple, field.total(field.multiply(rho, keyed).ravel()))
            expected = self.reduce(field.multiply(plain, self.source.key)[None], "a verification")[0]
            random = self.source.doubles((1,))[0]
            difference = field.multiply(field.subtract(multiple, expected), random)
            outcome = self.open(self.reduce(difference[None], "a verification")[0], "a verification")
            if outcome.any():
                others = set(self._scheme.servers) - {self.net.me}
                raise InconsistentShares(VERIFICATION, "its products", others)

    def _authenticate(self, share: Elements) -> Elements:
        """Shares of x and alpha x from shares of flat x: 1 round."""
        self.take(Authentication(self.options, share.size))
        keyed = self.reduce(field.multiply(share, self.source.key)[None], "a key's multiple")[0]
        self._pending.append((share, keyed))
        return np.stack([share, keyed])

    def _receive_input(self, step: Input) -> Elements:
        shape = (self.batch, *step.shape)
        received = self.peers.recv(self.options.client, ("<u8", shape), tag=self._tag, timeout=PATIENCE)
        share = self._valid(self.options.client, np.asarray(received), "the input")
        self.net.round()
        if not self.options.authenticated:
            return share[None]
        return self._authenticate(share.ravel()).reshape(2, *shape)

    def _reveal(self, step: Reveal, share: Elements) -> None:
        if self._expected or self._pending:
            raise EngineError("a result would be revealed before it is verified")
        if self.net.me < self.options.revealing:
            self.send(self.options.client, np.ascontiguousarray(share[0]), "the result")
        self.net.round()

    def _interpolate(self, shares: dict[int, Elements], degree: int, what: str) -> Elements:
        for server, share in shares.items():
            self._valid(server, share, what)
        if self.options.security == "semi-honest":
            return self._scheme.open(shares, degree)
        opened = open_checked(self.options, shares, degree, self._layer, what, trusted=self.net.me)
        if self.options.security == "robust":
            self.verified = self.verified and opened.verified
        for liar in opened.liars - self.corrected:
            _log.warning("%s: wrong shares of server %d were corrected", self._layer, liar)
        self.corrected |= opened.liars
        return opened.values

    def _valid(self, source: int, share: Elements, what: str) -> Elements:
        if (share >= np.uint64(PRIME)).any():
            raise InconsistentShares(self._layer, what, {source})
        return share
