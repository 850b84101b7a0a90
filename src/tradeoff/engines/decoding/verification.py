"""What a model says about the drafts of a step."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tradeoff.engines.decoding.drafts import Topology
from tradeoff.engines.decoding.errors import InvalidRequest, NonFiniteLogits
from tradeoff.nn.decoder import KVCache

Processor = Callable[[Int[Tensor, "1 length"], Float[Tensor, "1 vocab"]], Float[Tensor, "1 vocab"]]
"""Changes the scores of the token behind a text, as transformers' ``LogitsProcessor`` does."""


class Step:
    """The logits of all nodes of a step, for all rows.

    Args:
        logits: of every node.
        topology: of the drafts.
        cache: which the model wrote the nodes to; it tells where bad logits come from.
    """

    def __init__(self, logits: Float[Tensor, "rows nodes vocab"], topology: Topology, cache: KVCache) -> None:
        self.logits = logits
        self.topology = topology
        self.cache = cache
        largest, best = logits.max(-1)
        self.finite: list[list[bool]] = largest.isfinite().tolist()  # a NaN is the largest of a row
        self.best: list[list[int]] = best.tolist()


class RowStep:
    """One row of a step, as rules of acceptance read it.

    Args:
        step: of all rows.
        row: which one.
        tokens: of its nodes below the root; -1 for none.
        text: up to the root.
        processors: of scores, called for a node with the text up to that node.
    """

    def __init__(
        self,
        step: Step,
        row: int,
        tokens: Sequence[int],
        text: Sequence[int],
        processors: Sequence[Processor],
    ) -> None:
        self.step, self.row, self.tokens, self.text, self.processors = step, row, tokens, text, processors

    def children(self, node: int) -> Iterator[tuple[int, int]]:
        """Children of a node with their tokens, in the order of the draft."""
        for child in self.step.topology.children[node]:
            if self.tokens[child - 1] >= 0:
                yield child, self.tokens[child - 1]

    def scores(self, node: int) -> Float[Tensor, " vocab"]:
        """Logits of the token behind a node, as the processors left them.

        Raises:
            NonFiniteLogits: they are NaN or infinite, or the processors leave no token.
            InvalidRequest: a processor gave something else than scores of all tokens.
        """
        self._require_finite(node)
        scores = self.step.logits[self.row, node]
        if not self.processors:
            return scores
        text = torch.tensor([[*self.text, *self.path(node)]], device=scores.device)
        for processor in self.processors:
            found = processor(text, scores.view(1, -1).clone())
            if not isinstance(found, Tensor) or found.shape != (1, len(scores)):
                shape = tuple(found.shape) if isinstance(found, Tensor) else found
                raise InvalidRequest(f"a processor of scores gave {shape}; expected (1, {len(scores)})")
            scores = found[0]
        if not scores.max().isfinite():
            raise NonFiniteLogits(f"the logits processors leave no token behind {text.shape[1]} tokens")
        return scores

    def best(self, node: int) -> int:
        """The token with the largest score behind a node; of equals the first."""
        if self.processors:
            return int(self.scores(node).argmax())
        self._require_finite(node)
        return self.step.best[self.row][node]

    def path(self, node: int) -> list[int]:
        """The tokens from below the root to a node."""
        return [self.tokens[child - 1] for child in self.step.topology.path(node)]

    def _require_finite(self, node: int) -> None:
        if self.step.finite[self.row][node]:
            return
        length = len(self.text) + len(self.step.topology.path(node))
        raise NonFiniteLogits(
            f"the logits behind {length} tokens are not finite; {_first_fault(self.step.cache, length)}"
        )


def _first_fault(cache: KVCache, length: int) -> str:
    """Where numbers first stop being finite: a layer caches a projection of what enters it."""
    for layer in range(cache.layers):
        for name, tensor in cache.storage.items():
            if not tensor[layer].narrow(-2, 0, min(length, cache.max_len)).isfinite().all():
                return f"so are the {name} of layer {layer} of {cache.layers} (counted from 0)"
    return f"what the {cache.layers} layers cache is: look at the last block, the final norm and the head"
