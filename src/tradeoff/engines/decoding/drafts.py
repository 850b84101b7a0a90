"""Drafts: trees of guessed tokens, and what makes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tradeoff.engines.decoding.errors import InvalidDraft
from tradeoff.nn.decoder import Tree


@dataclass(frozen=True, eq=False)
class Front:
    """Where the rows of a batch stand before a step.

    Attributes:
        hidden: final hidden state of the last token that the model has read; the root was chosen from its
            logits, so a guess at depth k of a draft lies k + 1 tokens behind it.
        roots: the token chosen last in every row, which the step will read.
        texts: prompt and output of every row up to the root, which is the last token.
        rows: index of every row among the prompts as given; rows that are done are left out.
    """

    hidden: Float[Tensor, "rows dim"]
    roots: tuple[int, ...]
    texts: Sequence[Sequence[int]]
    rows: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Draft:
    """Guesses of what follows the root: one tree shape for all rows, each with its own tokens.

    Attributes:
        tokens: of the nodes, without the root; -1 where a row has no guess.
        parents: of the nodes: an earlier node, or -1 for the root.
    """

    tokens: Int[Tensor, "rows nodes"]
    parents: Sequence[int]

    @classmethod
    def chains(cls, guesses: Sequence[Sequence[int]]) -> "Draft":
        """One guess after the other in every row; rows may have different numbers."""
        length = max(map(len, guesses))
        padded = [[*guess, *[-1] * (length - len(guess))] for guess in guesses]
        return cls(torch.tensor(padded, dtype=torch.int64).view(len(guesses), length), range(-1, length - 1))


class Proposer(Protocol):
    """Guesses what comes next."""

    nodes: int
    """Nodes that a draft has at most, the root not counted."""

    def propose(self, front: Front) -> Draft:
        """Guesses behind the roots; a draft without nodes makes the next step a plain one."""
        ...


class PromptLookup:
    """Guesses that the text goes on as it did after the last words' previous occurrence (Apoorv Saxena,
    "Prompt Lookup Decoding", 2023): good where outputs repeat inputs, free where they do not.

    Args:
        nodes: tokens to guess.
        longest: tokens that must occur before; if there is no such place fewer are tried, down to one.

    Raises:
        InvalidDraft: a negative number of tokens to guess, or no token that must occur before.
    """

    def __init__(self, nodes: int = 5, longest: int = 3) -> None:
        if nodes < 0 or longest < 1:
            raise InvalidDraft(f"{nodes} guesses behind {longest} tokens that occurred before")
        self.nodes = nodes
        self.longest = longest

    def propose(self, front: Front) -> Draft:
        """See :class:`Proposer`."""
        return Draft.chains([self._continuation(text) for text in front.texts])

    def _continuation(self, text: Sequence[int]) -> Sequence[int]:
        for length in range(min(self.longest, len(text) - 1), 0, -1):
            tail = text[-length:]
            for start in range(len(text) - length - 1, -1, -1):
                if text[start : start + length] == tail:
                    return text[start + length : start + length + self.nodes]
        return ()


class Oracle:
    """Guesses what it was told: with the text that will come out, the upper bound of every proposer.

    Args:
        texts: prompt and output of every row.
        nodes: tokens to guess at a time.
    """

    def __init__(self, texts: Sequence[Sequence[int]], nodes: int) -> None:
        self.texts = [list(text) for text in texts]
        self.nodes = nodes

    def propose(self, front: Front) -> Draft:
        """See :class:`Proposer`."""
        return Draft.chains(
            [
                self.texts[row][len(text) : len(text) + self.nodes]
                for row, text in zip(front.rows, front.texts, strict=True)
            ]
        )


@dataclass(frozen=True, eq=False)
class Topology:
    """The shape of a draft below its root, which is node 0 here; node i of the draft is node i + 1.

    Attributes:
        parents: of all nodes; -1 for the root.
    """

    parents: tuple[int, ...]

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(parents: tuple[int, ...]) -> "Topology":
        """The topology of a draft with these parents.

        Raises:
            InvalidDraft: a parent that does not come before its child.
        """
        for node, parent in enumerate(parents):
            if not -1 <= parent < node:
                raise InvalidDraft(f"node {node} of a draft has parent {parent}; expected -1 to {node - 1}")
        return Topology((-1, *(parent + 1 for parent in parents)))

    @cached_property
    def mask(self) -> Tree:
        """Which node sees which."""
        return Tree.from_parents(self.parents)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """The children of every node, in order."""
        below: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents[1:], start=1):
            below[parent].append(node)
        return tuple(map(tuple, below))

    def path(self, node: int) -> list[int]:
        """Nodes from the first one below the root to ``node``."""
        nodes = []
        while node > 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]


def prepared(draft: Draft, rows: int, deepest: int, vocab: int) -> tuple[Topology, list[list[int]]]:
    """A draft's shape and tokens, root left out, without nodes that no row can use.

    Args:
        draft: of a proposer.
        rows: that it was asked about.
        deepest: how many tokens behind the root are wanted at most.
        vocab: of the model.

    Raises:
        InvalidDraft: no tree, another number of rows, or a token that is not in the vocabulary.
    """
    if tuple(draft.tokens.shape) != (rows, len(draft.parents)):
        raise InvalidDraft(
            f"the draft has tokens {tuple(draft.tokens.shape)} for {rows} rows of {len(draft.parents)} nodes"
        )
    tokens: list[list[int]] = draft.tokens.tolist()
    for row in tokens:
        for node, token in enumerate(row):
            if not -1 <= token < vocab:
                raise InvalidDraft(f"node {node} of a draft is token {token}; expected -1 to {vocab - 1}")
    whole = Topology.of(tuple(draft.parents))
    depths, kept = [0], [0]
    for node, parent in enumerate(whole.parents[1:], start=1):
        depths.append(depths[parent] + 1)
        if depths[node] <= deepest and parent in kept and any(row[node - 1] >= 0 for row in tokens):
            kept.append(node)
    if len(kept) == len(whole.parents):
        return whole, tokens
    parents = tuple(kept.index(whole.parents[node]) - 1 for node in kept[1:])
    return Topology.of(parents), [[row[node - 1] for node in kept[1:]] for row in tokens]
