"""Skeletons as graphs: joints, bones, and the adjacency matrices that graph convolutions use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import DataError

Hop = Literal["limited", "full"]


@dataclass(frozen=True)
class Skeleton:
    """Joints and the bones between them.

    Attributes:
        joints: names; edges: pairs of joints, each once; center: the joint that distances count from.

    Raises:
        DataError: a bone leads nowhere, or the graph is not connected.
    """

    joints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    center: int

    def __post_init__(self) -> None:
        count = len(self.joints)
        if not count or not 0 <= self.center < count:
            raise DataError(f"a skeleton of {count} joints has no center {self.center}")
        for a, b in self.edges:
            if not (0 <= a < count and 0 <= b < count and a != b):
                raise DataError(f"a bone between joints {a} and {b} of {count}")
        if not np.isfinite(self.distances).all():
            missing = [name for name, d in zip(self.joints, self.distances[0], strict=True) if np.isinf(d)]
            raise DataError(f"the skeleton is not connected: no way to {', '.join(missing)}")

    @property
    def nodes(self) -> int:
        """The number of joints."""
        return len(self.joints)

    @cached_property
    def distances(self) -> NDArray[np.float64]:
        """Bones on the way from each joint to each other one."""
        found = np.full((self.nodes, self.nodes), np.inf)
        np.fill_diagonal(found, 0.0)
        for a, b in self.edges:
            found[a, b] = found[b, a] = 1.0
        for middle in range(self.nodes):
            found = np.minimum(found, found[:, middle : middle + 1] + found[middle : middle + 1])
        return found

    def adjacency(self, hop: Hop = "limited") -> NDArray[np.float64]:
        """Three matrices (3, joints, joints), source by target, whose sum has columns that add up to 1.

        Joints themselves; neighbors as near to the center, or farther; neighbors nearer to it (Yan, Xiong and
        Lin, "Spatial temporal graph convolutional networks", AAAI 2018).

        Args:
            hop: ``limited`` knows distances of 0 and 1 from the center only, as the published code does: two
                joints farther away then count as equally near.
        """
        reach = self.distances
        linked = (reach <= 1).astype(np.float64)
        normal = linked / linked.sum(axis=0, keepdims=True)
        away = reach[:, self.center].copy()
        if hop == "limited":
            away[away > 1] = np.inf
        neighbor, source, target = reach == 1, away[:, None], away[None, :]
        nearer = neighbor & (source < target)
        own = np.eye(self.nodes, dtype=bool)
        return np.stack([normal * own, normal * (neighbor & ~nearer), normal * nearer])
