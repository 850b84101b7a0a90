"""Which slots a new token sees: causal, a tree of guesses, right-padded rows, or any boolean matrix.

A mask speaks of the new tokens only; bound to what the cache holds (:class:`Visibility`) it says everything
that an attention kernel needs, and is expanded at most once for all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tradeoff.nn.decoder.errors import InvalidInput


@dataclass(frozen=True)
class Causal:
    """Every new token sees the cached slots, the new tokens before it and itself."""


@dataclass(frozen=True, eq=False)
class Tree:
    """New tokens are nodes of a tree (or of several): a node sees the cached slots, its ancestors and itself.

    Attributes:
        ancestors: ``ancestors[i, j]`` is true iff node j is node i or an ancestor of it. Parents come before
            their children.

    Raises:
        InvalidInput: not square and boolean, a child before its parent, not closed under ancestors, or a node
            with two parents.
    """

    ancestors: Bool[Tensor, "nodes nodes"]

    def __post_init__(self) -> None:
        matrix = self.ancestors
        if matrix.dtype != torch.bool or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InvalidInput(
                f"ancestors is {matrix.dtype} {tuple(matrix.shape)}; expected a square of bool"
            )
        object.__setattr__(self, "ancestors", matrix.cpu())
        seen = self.ancestors.numpy()
        if not seen.diagonal().all():
            raise InvalidInput(f"node {int(np.argmin(seen.diagonal()))} does not see itself")
        if np.triu(seen, 1).any():
            child, parent = np.argwhere(np.triu(seen, 1))[0]
            raise InvalidInput(f"node {child} sees node {parent} behind it; parents come before children")
        depths = seen.sum(1) - 1
        for node in range(len(seen)):
            (path,) = seen[node].nonzero()
            missing = seen[path].any(0) & ~seen[node]
            if missing.any():
                raise InvalidInput(
                    f"node {node} does not see node {int(np.argmax(missing))}, an ancestor of an ancestor"
                )
            if (depths[path] != np.arange(len(path))).any():
                raise InvalidInput(f"the nodes that node {node} sees are no path: {path.tolist()}")

    @classmethod
    def from_parents(cls, parents: Sequence[int]) -> "Tree":
        """The tree in which node i hangs below ``parents[i]``, or below the cached text if that is -1.

        Raises:
            InvalidInput: a parent that does not come before its child.
        """
        ancestors = torch.eye(len(parents), dtype=torch.bool)
        for node, parent in enumerate(parents):
            if not -1 <= parent < node:
                raise InvalidInput(f"node {node} has parent {parent}; expected -1 to {node - 1}")
            if parent >= 0:
                ancestors[node] |= ancestors[parent]
        return cls(ancestors)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Edges from a root to each node."""
        return tuple((self.ancestors.sum(1) - 1).tolist())

    @cached_property
    def words(self) -> Int[Tensor, " nodes"]:
        """Rows as 64-bit words, bit j for node j.

        Raises:
            InvalidInput: more than 64 nodes.
        """
        if len(self.ancestors) > 64:
            raise InvalidInput(f"a row of {len(self.ancestors)} nodes does not fit 64 bits")
        bits = np.zeros((len(self.ancestors), 64), dtype=np.uint8)
        bits[:, : len(self.ancestors)] = self.ancestors.numpy()
        return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view("<i8").reshape(-1).copy())


@dataclass(frozen=True)
class Padded:
    """Causal, and row b has ``lengths[b]`` tokens; what stands right of them is padding.

    Outputs at padding are finite and without meaning; a cache keeps nothing of it.
    """

    lengths: tuple[int, ...]


Mask = Causal | Tree | Padded | Tensor
"""A mask of new tokens; a tensor is boolean, ``(new, slots)`` or ``(batch, new, slots)``, over all slots."""


@dataclass(frozen=True, eq=False)
class Visibility:
    """A mask together with the slots that were there before.

    Attributes:
        mask: of the new tokens.
        offsets: cached slots of every row of the batch; the row's new tokens occupy the slots behind.
        new: new tokens in a row.
    """

    mask: Mask
    offsets: tuple[int, ...]
    new: int

    def __post_init__(self) -> None:
        mask, batch = self.mask, len(self.offsets)
        if not isinstance(mask, Causal | Tree | Padded | Tensor):
            raise InvalidInput(f"the mask is {mask!r}; expected Causal, Tree, Padded or a tensor of bool")
        if isinstance(mask, Tree) and len(mask.ancestors) != self.new:
            raise InvalidInput(f"a tree of {len(mask.ancestors)} nodes for {self.new} new tokens")
        if isinstance(mask, Padded) and (
            len(mask.lengths) != batch or not all(1 <= length <= self.new for length in mask.lengths)
        ):
            raise InvalidInput(f"padded lengths {mask.lengths} for {batch} rows of {self.new} tokens")
        if isinstance(mask, Tensor):
            expected = ((self.new, self.slots), (batch, self.new, self.slots), (1, self.new, self.slots))
            if mask.dtype != torch.bool or tuple(mask.shape) not in expected:
                raise InvalidInput(
                    f"the mask is {mask.dtype} {tuple(mask.shape)}; "
                    f"expected bool {expected[0]} or {expected[1]}"
                )

    @property
    def slots(self) -> int:
        """Slots that a kernel is shown: the longest row's, new tokens included."""
        return max(self.offsets) + self.new

    @property
    def aligned(self) -> bool:
        """Whether all rows have the same number of cached slots."""
        return min(self.offsets) == max(self.offsets)

    @property
    def is_causal(self) -> bool:
        """Whether new token t sees slots 0 to t, in every row: the lower triangle."""
        return isinstance(self.mask, Causal | Padded) and max(self.offsets) == 0

    @property
    def is_full(self) -> bool:
        """Whether every new token sees every slot."""
        return self.new == 1 and self.aligned and not isinstance(self.mask, Tensor)

    def positions(self) -> Int[Tensor, "rows new"]:
        """Positions of the new tokens, in a tree by a node's depth; one row if all rows agree."""
        steps = self.mask.depths if isinstance(self.mask, Tree) else range(self.new)
        rows = self.offsets[:1] if self.aligned else self.offsets
        return torch.tensor([[offset + step for step in steps] for offset in rows])

    def kept(self) -> tuple[int, ...] | None:
        """How many new tokens of every row a cache keeps; None if the caller selects among them."""
        if isinstance(self.mask, Tree):
            return None
        return self.mask.lengths if isinstance(self.mask, Padded) else (self.new,) * len(self.offsets)

    def valid(self, device: torch.device) -> Bool[Tensor, "batch new"] | None:
        """Which tokens are no padding; None if all."""
        if not isinstance(self.mask, Padded):
            return None
        lengths = torch.tensor(self.mask.lengths, device=device)
        return torch.arange(self.new, device=device) < lengths[:, None]

    @cached_property
    def _dense(self) -> dict[torch.device, Tensor]:
        return {}

    def dense(self, device: torch.device) -> Bool[Tensor, "rows new slots"]:
        """The mask as a matrix, one row of the batch if all rows agree; expanded once per device."""
        if device not in self._dense:
            self._dense[device] = self._expand().to(device)
        return self._dense[device]

    def _expand(self) -> Tensor:
        if isinstance(self.mask, Tensor):
            return self.mask if self.mask.ndim == 3 else self.mask[None]
        rows = self.offsets[:1] if self.aligned else self.offsets
        local = (
            self.mask.ancestors
            if isinstance(self.mask, Tree)
            else torch.ones(self.new, self.new, dtype=torch.bool).tril()
        )
        seen = torch.zeros(len(rows), self.new, self.slots, dtype=torch.bool)
        for row, offset in enumerate(rows):
            seen[row, :, :offset] = True
            seen[row, :, offset : offset + self.new] = local
        return seen
