"""Small decoders, trees of the specification, and proposers that guess right, wrong or anything."""

import random
from collections.abc import Callable, Sequence

import torch

from tradeoff.engines.decoding import Draft, Front
from tradeoff.nn.decoder import Decoder, DecoderConfig

CONFIG = DecoderConfig(
    vocab=512, dim=64, layers=2, heads=4, attention="gqa", kv_heads=2, max_len=256, init_std=0.3
)


def decoder(config: DecoderConfig = CONFIG, seed: int = 0) -> Decoder:
    return Decoder(config, torch.Generator().manual_seed(seed)).eval()


def prompts(count: int, vocab: int = 512, seed: int = 0) -> list[list[int]]:
    """Texts of different lengths."""
    draw = random.Random(seed)
    return [[draw.randrange(vocab) for _ in range(draw.randint(1, 24))] for _ in range(count)]


def tree(paths: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Parents of the nodes that these ranks lead to."""
    ordered = sorted(paths, key=lambda path: (len(path), path))
    return tuple(ordered.index(path[:-1]) if len(path) > 1 else -1 for path in ordered)


def product(*widths: int) -> list[tuple[int, ...]]:
    level: list[tuple[int, ...]] = [()]
    paths = []
    for width in widths:
        level = [(*path, rank) for path in level for rank in range(width)]
        paths += level
    return paths


TREES = {
    "chain": tree(product(1, 1, 1)),
    "sparse": tree([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 1, 0)]),
    "cartesian": tree(product(2, 2, 2)),
    "large": tree(product(3, 4, 4)),  # 63 nodes
}


class Nothing:
    """Guesses nothing, and remembers the hidden states behind every text."""

    nodes = 0

    def __init__(self) -> None:
        self.hidden: dict[tuple[int, int], torch.Tensor] = {}

    def remember(self, front: Front) -> None:
        for row, text, hidden in zip(front.rows, front.texts, front.hidden, strict=True):
            self.hidden[row, len(text)] = hidden.clone()

    def propose(self, front: Front) -> Draft:
        self.remember(front)
        return Draft.chains([()] * len(front.rows))


class Guesses(Nothing):
    """A tree whose tokens a function chooses: ``token(row, position in the text, node)``."""

    def __init__(self, parents: Sequence[int], token: Callable[[int, int, int], int]) -> None:
        super().__init__()
        self.parents, self.token, self.nodes = tuple(parents), token, len(parents)
        self.depths: list[int] = []
        for parent in self.parents:
            self.depths.append(0 if parent < 0 else self.depths[parent] + 1)

    def propose(self, front: Front) -> Draft:
        self.remember(front)
        tokens = [
            [self.token(row, len(text) + depth, node) for node, depth in enumerate(self.depths)]
            for row, text in zip(front.rows, front.texts, strict=True)
        ]
        return Draft(torch.tensor(tokens), self.parents)


def guesses(kind: str, parents: Sequence[int], texts: Sequence[Sequence[int]], vocab: int) -> Guesses:
    """``right``, ``wrong``, ``random``, or ``mixed``: each node right or missing or anything.

    Args:
        texts: prompt and greedy output of every row.
    """
    draw = random.Random(1)
    heights = [1] * len(parents)
    for node in reversed(range(len(parents))):
        if parents[node] >= 0:
            heights[parents[node]] = max(heights[parents[node]], heights[node] + 1)
    # Of siblings the last one with the most below it is right, so that kept paths have gaps.
    chosen = {
        max(
            (other for other in range(len(parents)) if parents[other] == parent),
            key=lambda o: (heights[o], o),
        )
        for parent in parents
    }

    def right(row: int, position: int) -> int:
        return texts[row][position] if position < len(texts[row]) else 0

    def token(row: int, position: int, node: int) -> int:
        if kind == "mixed":
            return draw.choice([right(row, position), right(row, position), draw.randrange(vocab), 0, -1])
        if kind == "random":
            return draw.randrange(vocab)
        wrong = kind == "wrong" or node not in chosen
        return (right(row, position) + wrong) % vocab

    return Guesses(parents, token)
