"""Candidate trees: which of the heads' guesses one pass verifies, and how many of them pay.

A node is a path (i_1, ..., i_m): the token at depth j is the i_j-th guess of head j. A set of nodes is a tree
if it holds every prefix of its nodes (Cai et al., 2024, sections 2.1.2 and 2.3.3). Which nodes are worth
their row of the pass is read off held-out text of the backbone; how many, off the measured cost of a pass.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import index

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .cost import StepCost
from .distillation import Distilled
from .errors import InvalidSetting, InvalidTree
from .heads import MedusaHeads
from .training import guess_ranks

Path = tuple[int, ...]
TOP = 10
"""Guesses of a head that a tree may use."""


def check_paths(paths: Iterable[Path], num_heads: int, top: int = TOP) -> tuple[Path, ...]:
    """The nodes, sorted by depth, if they are a tree.

    Raises:
        InvalidTree: a node is repeated, deeper than the heads guess, beyond their guesses, or without parent.
    """
    try:
        nodes = [tuple(index(rank) for rank in path) for path in paths]
    except TypeError:
        raise InvalidTree("a node is a path of ranks, which are whole numbers, as (0, 2)") from None
    known = set(nodes)
    for node in nodes:
        if not 1 <= len(node) <= num_heads:
            raise InvalidTree(f"node {node} has depth {len(node)}; there are {num_heads} heads")
        if not all(0 <= rank < top for rank in node):
            raise InvalidTree(f"node {node} asks for a guess beyond the first {top}")
        if len(node) > 1 and node[:-1] not in known:
            raise InvalidTree(f"node {node} is without its parent {node[:-1]}")
    if len(known) < len(nodes):
        (repeated, _), *_ = Counter(nodes).most_common(1)
        raise InvalidTree(f"node {repeated} is there twice")
    return tuple(sorted(nodes, key=lambda path: (len(path), path)))


def cartesian(widths: Sequence[int]) -> tuple[Path, ...]:
    """All products: the first ``widths[j]`` guesses of head j+1 behind every node of depth j."""
    nodes: list[Path] = []
    level: list[Path] = [()]
    for width in widths:
        level = [(*path, rank) for path in level for rank in range(width)]
        nodes += level
    return tuple(nodes)


def grow(score: Callable[[Path], float], nodes: int, depth: int, top: int = TOP) -> list[Path]:
    """The best tree of every size up to ``nodes``: its first n entries.

    Args:
        score: gain of a node; that of a child must not exceed its parent's. Then taking the best child of the
            tree so far, of any rank, gives the best tree of each size.
        nodes: how many, or fewer if there are no more.
        depth: of the tree, K.
        top: guesses of a head.
    """
    frontier: list[tuple[float, Path]] = [(-score((rank,)), (rank,)) for rank in range(top)]
    heapq.heapify(frontier)
    chosen: list[Path] = []
    while frontier and len(chosen) < nodes:
        _, node = heapq.heappop(frontier)
        chosen.append(node)
        if len(node) < depth:
            for rank in range(top):
                child = (*node, rank)
                heapq.heappush(frontier, (-score(child), child))
    return chosen


def product_score(accuracies: Sequence[Sequence[float]]) -> Callable[[Path], float]:
    """Gain of a node if heads were right independently; ``accuracies[j][i]`` of guess i of head j+1."""

    def score(path: Path) -> float:
        gain = 1.0
        for head, rank in zip(accuracies, path, strict=False):
            gain *= head[rank]
        return gain

    return score


def joint_score(ranks: Int[Tensor, "tokens heads"]) -> Callable[[Path], float]:
    """Gain of a node as it was: how often all guesses of its path were right together.

    Easy places come together, so this is more than the product of the heads' accuracies.
    """
    counts: Counter[Path] = Counter()
    for row in ranks.tolist():
        for length in range(1, len(row) + 1):
            if row[length - 1] < 0:
                break
            counts[tuple(row[:length])] += 1
    total = max(len(ranks), 1)
    return lambda path: counts[path] / total


def accepted(ranks: Int[Tensor, "tokens heads"], paths: Iterable[Path]) -> Int[Tensor, " tokens"]:
    """How many guesses of a tree are accepted in a step from each row."""
    levels: dict[int, list[Path]] = {}
    for path in paths:
        levels.setdefault(len(path), []).append(path)
    length = torch.zeros(len(ranks), dtype=torch.int64)
    for depth in sorted(levels):
        held = torch.tensor(levels[depth])
        matches: Bool[Tensor, " tokens"] = (ranks[:, None, :depth] == held[None]).all(-1).any(-1)
        length += matches
    return length


def replay(
    ranks: Int[Tensor, "tokens heads"], data: Distilled, paths: Sequence[Path], limit: int | None = None
) -> float:
    """Tokens per step of greedy decoding with a tree, on texts that the backbone wrote greedily.

    Exact, since greedy decoding gives just these texts: each step goes on from where the last one ended,
    which the mean over all rows does not know.

    Args:
        ranks: of :func:`guess_ranks`.
        data: the texts.
        paths: the tree.
        limit: tokens of a reply that count; None for all.
    """
    length = accepted(ranks, paths).tolist()
    tokens = steps = 0
    for start, end in data.spans():
        end = end if limit is None else min(end, start + limit)
        row = start
        while row < end - 1:  # the first token comes from the prompt's pass
            row += 1 + length[row]
            steps += 1
        tokens += max(0, end - 1 - start)
    return tokens / max(steps, 1)


@dataclass(frozen=True)
class Calibration:
    """What trees of each size are predicted to give.

    Attributes:
        paths: the tree to decode with; empty for plain decoding, if none is predicted to be faster.
        order: nodes in the order in which they were added: the first n are the best tree of n.
        tokens_per_step: with the first n nodes, n = 0 .. all.
        cost: time of a step with n nodes over that of a plain step, heads included; 1 with none.
    """

    paths: tuple[Path, ...]
    order: tuple[Path, ...]
    tokens_per_step: tuple[float, ...]
    cost: tuple[float, ...]

    @property
    def speedup(self) -> tuple[float, ...]:
        """Predicted, for every number of nodes."""
        return tuple(tokens / cost for tokens, cost in zip(self.tokens_per_step, self.cost, strict=True))

    @property
    def predicted(self) -> float:
        """Predicted speed-up of the tree that was chosen; 1 for plain decoding."""
        return self.speedup[len(self.paths)]

    def with_nodes(self, nodes: int) -> "Calibration":
        """The best tree of this size in place of the one that was chosen."""
        paths = tuple(sorted(self.order[:nodes], key=lambda path: (len(path), path)))
        return replace(self, paths=paths)


def calibrate_tree(
    heads: MedusaHeads,
    held_out: Distilled,
    cost: StepCost,
    *,
    max_nodes: int = 32,
    top: int = TOP,
    limit: int | None = None,
) -> Calibration:
    """Choose the tree with the highest predicted speed-up, or plain decoding if none is above 1.

    Args:
        heads: to decode with.
        held_out: the backbone's own text that heads were not trained on.
        cost: of a step on this machine; see :func:`measure_cost`.
        max_nodes: of the tree.
        top: guesses of a head that may be used.
        limit: tokens of a reply that count; None for all.

    Raises:
        InvalidSetting: there is no held-out text, or no node allowed.
    """
    if max_nodes < 1 or not held_out.num_tokens:
        raise InvalidSetting(f"{max_nodes} nodes, chosen by {held_out.num_tokens} held-out tokens")
    top = min(top, heads.table.shape[-2])
    ranks = guess_ranks(heads, held_out, top)
    order = grow(joint_score(ranks), max_nodes, heads.num_heads, top)
    sizes = range(len(order) + 1)
    found = Calibration(
        paths=(),
        order=tuple(order),
        tokens_per_step=tuple(replay(ranks, held_out, order[:size], limit) for size in sizes),
        cost=tuple(cost.with_nodes(size) for size in sizes),
    )
    best = max(sizes, key=lambda size: found.speedup[size])
    paths = check_paths(order[:best], heads.num_heads, top)
    return Calibration(paths, found.order, found.tokens_per_step, found.cost)
