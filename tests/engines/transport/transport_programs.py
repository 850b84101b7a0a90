"""Programs that parties run in the tests; in a module of their own, so that child processes import little."""

from __future__ import annotations

import numpy as np


def swap(net, size=4):
    """Exchange with every peer, by id."""
    own = np.full(size, net.me, np.uint64)
    return [int(part[0]) for part in net.allgather(own)]
