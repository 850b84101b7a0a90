"""Pooling and argmax of shared values.

The maximum of a window is a tournament of ReLUs, max(a, b) = b + ReLU(a - b), in ceil(log2 k) levels; a tie
takes a, the lower index. Average pooling is a local sum; its factor is public.
"""

from collections.abc import Sequence

import numpy as np

from tradeoff.engines.two_party.arithmetic import Elementwise, Triple, product
from tradeoff.engines.two_party.comparison import Comparison, at_least_zero
from tradeoff.engines.two_party.correlations import Fields
from tradeoff.engines.two_party.protocol import Lane, Rounds
from tradeoff.engines.two_party.sharing import Ring, Share, padded


def argmax_lane(ring: Ring, radix: int, batch: int, pairs: int, first: bool) -> Lane:
    """Correlations of one level of :func:`argmax_level`."""
    count = padded(batch * pairs)
    comparison = Comparison(ring, count, radix)
    if first:
        return (comparison,)
    return (comparison, Triple(ring, Elementwise(), (count,), (count,)))


def argmax_level(
    rank: int, lane: Lane, values: Share, indices: Share, first: bool, materials: Sequence[Fields]
) -> Rounds:
    """One level on (candidates, batch) arrays: returns the winners' values and indices, stacked.

    At the first level the indices are public (held by party 0), so only the bits are compared; later the
    index difference is multiplied by the shared bit.
    """
    comparison = lane[0]
    assert isinstance(comparison, Comparison)
    pairs, batch = values.shape[0] // 2, values.shape[1]
    a, b = values[0 : 2 * pairs : 2], values[1 : 2 * pairs : 2]
    difference = np.zeros(comparison.count, values.dtype)
    difference[: a.size] = (a - b).ravel()
    bit, positive = yield from at_least_zero(rank, comparison, difference, materials[0])
    step = np.zeros_like(difference)
    step[: a.size] = (indices[0 : 2 * pairs : 2] - indices[1 : 2 * pairs : 2]).ravel()
    if first:
        chosen = -bit  # the public difference of neighbors is a's index less b's: always -1
    else:
        chosen = yield from product(rank, Elementwise(), bit, step, materials[1])
    winners = b + positive[: a.size].reshape(pairs, batch)
    places = indices[1 : 2 * pairs : 2] + chosen[: a.size].reshape(pairs, batch)
    rest = 2 * pairs
    return np.stack([np.concatenate([winners, values[rest:]]), np.concatenate([places, indices[rest:]])])
