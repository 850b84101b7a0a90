"""The data owner: shares inputs among the servers, puts the result together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.shamir import field
from tradeoff.engines.shamir.errors import InconsistentShares
from tradeoff.engines.shamir.field import PRIME, Elements
from tradeoff.engines.shamir.offline import END, GO, announce_batch
from tradeoff.engines.shamir.opening import open_checked
from tradeoff.engines.shamir.options import TRUNCATION_BITS
from tradeoff.engines.shamir.peers import PATIENCE, Peers
from tradeoff.engines.shamir.program import Program
from tradeoff.engines.transport import Clock, Endpoint


class Client:
    """The data owner's side of a session.

    Args:
        net: its end of the links.
        program: the public view.
        batch: images an inference.

    Attributes:
        verified, corrected: of the results so far, as for a server.
    """

    def __init__(self, net: Endpoint, program: Program, batch: int) -> None:
        self.net = net
        self.program = program
        self.options = program.options
        self.batch = batch
        self.clock = Clock()
        self.peers = Peers(net, program.options)
        self.verified = self.options.security != "semi-honest"
        self.corrected: set[int] = set()
        announce_batch(self.peers, batch)

    def infer(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """The network's result for inputs (batch, *input_shape).

        Raises:
            InconsistentShares: the shares of the result do not fit together.
            PeerError: what became of a party.
        """
        self.peers.send(self.options.dealer, np.empty(0, np.uint8), tag=GO, offline=True)
        first, last = self.program.steps[0], self.program.steps[-1]
        with self.net.scope(first.name), self.clock.measure(first.name):
            encoded = field.encode(x, first.frac, TRUNCATION_BITS, name="input")
            for server, share in enumerate(self.options.scheme.share(encoded)):
                self.peers.send(server, share, tag=0)
            self.net.round()
        with self.net.scope(last.name), self.clock.measure(last.name):
            values = self._collect(len(self.program.steps) - 1, (self.batch, *last.shape))
            self.net.round()
        return field.decode(values, last.frac)

    def finish(self) -> None:
        """Release the dealer."""
        self.peers.send(self.options.dealer, np.empty(0, np.uint8), tag=END, offline=True)

    def _collect(self, tag: int, shape: tuple[int, ...]) -> Elements:
        shares: dict[int, Elements] = {}
        for server in range(self.options.revealing):
            received = self.peers.recv(server, ("<u8", shape), tag=tag, timeout=PATIENCE)
            if received is not None:
                shares[server] = np.asarray(received, np.uint64)
        for server, share in shares.items():
            if (share >= np.uint64(PRIME)).any():
                raise InconsistentShares("reveal", "the result", {server})
        opened = open_checked(self.options, shares, self.options.threshold, "reveal", "the result")
        if self.options.security == "robust":
            self.verified = self.verified and opened.verified
        self.corrected |= opened.liars
        return opened.values
