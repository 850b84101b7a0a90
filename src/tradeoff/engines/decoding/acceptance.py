"""Which guesses are kept, and which token comes behind them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tradeoff.engines.decoding.errors import InvalidRequest

_Probabilities = NDArray[np.float64]


class Verified(Protocol):
    """One row's draft after the model has read it; node 0 is the root."""

    def children(self, node: int) -> Iterator[tuple[int, int]]:
        """Children of a node with their tokens, in the order of the draft."""
        ...

    def scores(self, node: int) -> Float[Tensor, " vocab"]:
        """Logits of the token behind a node, as the processors left them."""
        ...

    def best(self, node: int) -> int:
        """The token with the largest score behind a node; of equals the first."""
        ...


class Decision(NamedTuple):
    """Nodes that are kept, from below the root on, and the token behind the last of them."""

    path: list[int]
    token: int


class Acceptance(Protocol):
    """A rule of decoding; with a draft of the root alone it simply chooses the next token."""

    def decide(self, draft: Verified, random: np.random.Generator) -> Decision:
        """Which nodes to keep, and what comes next."""
        ...


@dataclass(frozen=True)
class Greedy:
    """The most likely token; a guess is kept if it is that token. A draft changes nothing but the time."""

    def decide(self, draft: Verified, random: np.random.Generator) -> Decision:
        """See :class:`Acceptance`."""
        path: list[int] = []
        node = 0
        while True:
            token = draft.best(node)
            child = _child(draft, node, token)
            if child is None:
                return Decision(path, token)
            path.append(child)
            node = child


@dataclass(frozen=True)
class Sample:
    """Samples from the model; a guess is kept if it is the sample.

    Every token is drawn from the model's own distribution with one random number, so the output has that
    distribution whatever is proposed, and is, for equal seeds, even the same with and without drafts.

    Args:
        temperature: divides the logits; 0 is greedy.
        top_p: only the most likely tokens whose probabilities first reach this sum (Holtzman et al., 2020).
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        _check_sampling(self.temperature, self.top_p)

    def decide(self, draft: Verified, random: np.random.Generator) -> Decision:
        """See :class:`Acceptance`."""
        if self.temperature == 0:
            return Greedy().decide(draft, random)
        path: list[int] = []
        node = 0
        while True:
            token = _draw(_probabilities(draft.scores(node), self.temperature, self.top_p), random)
            child = _child(draft, node, token)
            if child is None:
                return Decision(path, token)
            path.append(child)
            node = child


@dataclass(frozen=True)
class Rejection:
    """Samples from the model by trying guess after guess (Leviathan et al., 2023, for several candidates that
    were not drawn but chosen).

    A child x is kept with its probability p(x); if it is rejected, p(x) becomes 0 and p is normalized anew
    for the next. If none is left the token is drawn from what remains. The output has the model's
    distribution.

    Args:
        temperature: divides the logits; 0 is greedy.
        top_p: as in :class:`Sample`.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        _check_sampling(self.temperature, self.top_p)

    def decide(self, draft: Verified, random: np.random.Generator) -> Decision:
        """See :class:`Acceptance`."""
        if self.temperature == 0:
            return Greedy().decide(draft, random)
        path: list[int] = []
        node: int | None = 0
        while node is not None:
            left = _probabilities(draft.scores(node), self.temperature, self.top_p)
            node = self._accepted(draft, node, left, random)
            if node is not None:
                path.append(node)
        return Decision(path, _draw(left, random))

    @staticmethod
    def _accepted(
        draft: Verified, node: int, left: _Probabilities, random: np.random.Generator
    ) -> int | None:
        for child, token in draft.children(node):
            if random.random() * left.sum() < left[token]:
                return child
            left[token] = 0.0
        return None


@dataclass(frozen=True)
class Typical:
    """Keeps guesses that are plausible to the model (Tianle Cai et al., "Medusa", 2024, section 2.3.1).

    Token x behind a text with distribution p is kept iff ``p(x) > min(eps, delta exp(-H(p)))``, with the
    entropy H in nats. The longest kept path wins, of equals the likeliest; behind it comes the most likely
    token. The output does *not* have the model's distribution.

    Args:
        eps: probability from which on every guess is kept.
        delta: the same, relative to ``exp(-H)``.
        temperature: divides the logits; 0 is greedy.
    """

    eps: float = 0.09
    delta: float = 0.3
    temperature: float = 0.7

    def __post_init__(self) -> None:
        _check_sampling(self.temperature, 1.0)
        if not (0 <= self.eps <= 1 and self.delta >= 0):
            raise InvalidRequest(f"eps {self.eps} and delta {self.delta}; expected 0 to 1 and at least 0")

    def decide(self, draft: Verified, random: np.random.Generator) -> Decision:
        """See :class:`Acceptance`."""
        if self.temperature == 0:
            return Greedy().decide(draft, random)
        path = max(self._paths(draft, 0, [], 0.0), key=lambda found: (len(found[0]), found[1]))[0]
        return Decision(path, draft.best(path[-1] if path else 0))

    def _paths(
        self, draft: Verified, node: int, path: list[int], likelihood: float
    ) -> Iterator[tuple[list[int], float]]:
        """Every kept path with the sum of its tokens' log probabilities."""
        yield path, likelihood
        children = list(draft.children(node))
        if not children:
            return
        p = _probabilities(draft.scores(node), self.temperature, 1.0)
        positive = p[p > 0]
        threshold = min(self.eps, self.delta * math.exp((positive * np.log(positive)).sum()))
        for child, token in children:
            if p[token] > threshold:
                yield from self._paths(draft, child, [*path, child], likelihood + math.log(p[token]))


def _child(draft: Verified, node: int, token: int) -> int | None:
    return next((child for child, guess in draft.children(node) if guess == token), None)


def _probabilities(scores: Float[Tensor, " vocab"], temperature: float, top_p: float) -> _Probabilities:
    """Softmax in float64, cut to the likeliest tokens that reach ``top_p`` together; not normalized then."""
    p: _Probabilities = torch.softmax(scores.double() / temperature, 0).numpy(force=True)
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0.0
    return p


def _draw(p: _Probabilities, random: np.random.Generator) -> int:
    """A token with probability proportional to p, from one random number."""
    sums = np.cumsum(p)
    token = int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
    return token if token < len(p) else int(p.nonzero()[0][-1])


def _check_sampling(temperature: float, top_p: float) -> None:
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise InvalidRequest(f"temperature {temperature}; expected a finite number of at least 0")
    if not 0 < top_p <= 1:
        raise InvalidRequest(f"top_p {top_p}; expected above 0, up to 1")
