"""Shamir sharing: polynomials over the field, interpolation, detection and correction of wrong shares.

A value is shared among n servers by a random polynomial of degree t whose constant term it is; server i
(counted from 0) holds the polynomial at point i + 1. Any t shares are uniform and independent of the value,
any t + 1 determine it. A product of two shares lies on a polynomial of degree 2t.

A. Shamir, "How to share a secret", CACM 1979.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from math import comb, prod

import numpy as np

from tradeoff.engines.shamir import field
from tradeoff.engines.shamir.field import PRIME, Elements
from tradeoff.engines.transport.prg import SEED_BYTES, Prg, Stream

MAX_SERVERS = 16
MAX_SETS = 500
"""Beyond so many sets of n - t servers, double sharings come from the dealer."""


@dataclass(frozen=True)
class Scheme:
    """n servers of which any t learn nothing.

    Args:
        n: servers, at most 16.
        t: threshold, at least 1; n >= 2t + 1.

    Raises:
        ValueError: another combination.

    Example:
        >>> scheme = Scheme(3, 1)
        >>> shares = scheme.share(field.elements(np.array([7, -2])))
        >>> field.integers(scheme.open({0: shares[0], 2: shares[2]}, 1)).tolist()
        [7, -2]
    """

    n: int = 3
    t: int = 1

    def __post_init__(self) -> None:
        for name in ("n", "t"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{name} is a whole number, not {getattr(self, name)!r}")
        if self.t < 1 or self.n < 2 * self.t + 1 or self.n > MAX_SERVERS:
            raise ValueError(
                f"{self.n} servers with threshold {self.t}: there must be a threshold of at least 1 and "
                f"between 2t + 1 and {MAX_SERVERS} servers"
            )

    @property
    def servers(self) -> range:
        """Ids of the servers."""
        return range(self.n)

    @cached_property
    def sets(self) -> tuple[tuple[int, ...], ...]:
        """All sets of n - t servers: the members of each have a key in common."""
        return tuple(combinations(self.servers, self.n - self.t))

    @property
    def from_keys(self) -> bool:
        """Whether random sharings come from common keys, without a message; else from the dealer."""
        return comb(self.n, self.t) <= MAX_SETS

    def share(self, values: Elements, stream: Stream | None = None) -> Elements:
        """Shares of values, shape (n, *values.shape).

        Args:
            stream: of the coefficients; a fresh one from the operating system's generator by default.
        """
        stream = fresh_stream() if stream is None else stream
        flat = np.asarray(values, np.uint64).reshape(1, -1)
        coefficients = uniform(stream, (self.t, flat.shape[1]))
        powers = np.array(
            [[pow(i + 1, k, PRIME) for k in range(self.t + 1)] for i in self.servers], np.uint64
        )
        return field.matmul(powers, np.concatenate([flat, coefficients])).reshape(self.n, *values.shape)

    def open(self, shares: Mapping[int, Elements], degree: int) -> Elements:
        """The values of the first ``degree`` + 1 shares, by server; see :meth:`check` for the others.

        Raises:
            ValueError: there are too few.
        """
        servers = tuple(sorted(shares))[: degree + 1]
        if len(servers) <= degree:
            raise ValueError(f"a sharing of degree {degree} needs {degree + 1} shares, not {len(servers)}")
        values: Elements = combine(lagrange(servers, (-1,)), [shares[server] for server in servers])[0]
        return values

    def check(self, shares: Mapping[int, Elements], degree: int) -> bool:
        """Whether all shares lie on polynomials of that degree."""
        servers = tuple(sorted(shares))
        known, others = servers[: degree + 1], servers[degree + 1 :]
        if not others:
            return True
        expected = combine(lagrange(known, others), [shares[server] for server in known])
        return all(np.array_equal(expected[i], shares[other]) for i, other in enumerate(others))

    def explanations(self, shares: Mapping[int, Elements], degree: int, most: int) -> list[tuple[int, ...]]:
        """The smallest sets of up to ``most`` servers without whose shares the others fit together."""
        for size in range(most + 1):
            found = [
                liars
                for liars in combinations(sorted(shares), size)
                if len(shares) - size > degree
                and self.check({s: share for s, share in shares.items() if s not in liars}, degree)
            ]
            if found:
                return found
        return []


def fresh_stream() -> Stream:
    """A stream of its own from the operating system's generator."""
    return Prg(secrets.token_bytes(SEED_BYTES)).stream(bytes(16), 0, 0, 0, "coefficients")


def uniform(stream: Stream, shape: int | tuple[int, ...]) -> Elements:
    """Uniform elements: 61 bits of each word; the one value that is not below p is drawn again."""
    mask = np.uint64(PRIME)
    words = stream.words(shape)
    words &= mask
    while (rejected := words == mask).any():
        words[rejected] = stream.words(int(rejected.sum())) & mask
    return words


def combine(weights: Elements, shares: Sequence[Elements]) -> Elements:
    """Linear combinations of shares: (m, k) weights of k shares give m arrays."""
    stacked = np.stack(shares)
    flat = stacked.reshape(len(shares), -1)
    return field.matmul(weights, flat).reshape(len(weights), *stacked.shape[1:])


@cache
def lagrange(servers: tuple[int, ...], wanted: tuple[int, ...]) -> Elements:
    """Weights (wanted, servers) that take shares of ``servers`` to those of ``wanted``; -1 is the value."""
    rows = []
    for target in wanted:
        row = []
        for i in servers:
            others = [j for j in servers if j != i]
            above = prod(target - j for j in others)
            below = prod(i - j for j in others)
            row.append(above % PRIME * field.inverse(below) % PRIME)
        rows.append(row)
    return np.array(rows, np.uint64).reshape(len(wanted), len(servers))


@cache
def set_weights(scheme: Scheme, server: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which of the scheme's sets a server belongs to, and there the value of the polynomial of degree t that
    is 1 at 0 and 0 at the points of everybody outside."""
    members = tuple(index for index, members in enumerate(scheme.sets) if server in members)
    weights = []
    for index in members:
        outside = [other + 1 for other in scheme.servers if other not in scheme.sets[index]]
        above = prod(point - (server + 1) for point in outside)
        weights.append(above % PRIME * field.inverse(prod(outside)) % PRIME)
    return members, tuple(weights)
