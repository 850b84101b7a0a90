"""Opening a sharing when shares may be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tradeoff.engines.shamir.errors import InconsistentShares
from tradeoff.engines.shamir.field import Elements
from tradeoff.engines.shamir.options import Options


@dataclass(frozen=True)
class Opened:
    """Values with what their shares say about the servers.

    Attributes:
        verified: whether there were more shares than the values need.
        liars: servers whose shares were wrong, and corrected.
    """

    values: Elements
    verified: bool
    liars: frozenset[int] = frozenset()


def open_checked(
    options: Options,
    shares: Mapping[int, Elements],
    degree: int,
    layer: str,
    what: str,
    *,
    trusted: int | None = None,
) -> Opened:
    """Open, with all shares that came: detect wrong ones, and correct them if the program is robust.

    Args:
        trusted: the server that does this, which knows itself to be honest.

    Raises:
        InconsistentShares: wrong shares came, more than can be corrected.
    """
    scheme, left = options.scheme, len(shares) - degree - 1
    if scheme.check(shares, degree):
        return Opened(scheme.open(shares, degree), verified=left > 0)
    if options.security == "robust":
        found = scheme.explanations(shares, degree, left // 2)
        if found:
            liars = frozenset(found[0])
            honest = {server: share for server, share in shares.items() if server not in liars}
            return Opened(scheme.open(honest, degree), verified=True, liars=liars)
    raise InconsistentShares(layer, what, _suspects(options, shares, degree) - {trusted})


def _suspects(options: Options, shares: Mapping[int, Elements], degree: int) -> set[int]:
    """Whoever is in one of the smallest sets of servers that explain the wrong shares.

    Where products are opened without redundancy (n = 2t + 1), somebody may have given an honest server a
    wrong product before, whose shares are wrong since then: there it can be anybody.
    """
    if options.authenticated:
        return set(shares)
    explanations = options.scheme.explanations(shares, degree, options.threshold)
    return {server for liars in explanations for server in liars} or set(shares)
