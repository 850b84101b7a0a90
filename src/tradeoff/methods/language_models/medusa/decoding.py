"""Decoding with heads: they propose, the engine verifies, accepts and compacts its cache."""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from tradeoff.engines.decoding import (
    Acceptance,
    Draft,
    Front,
    Generation,
    Greedy,
    generate,
    generate_batch,
    stream,
)
from tradeoff.nn.decoder import Decoder

from .heads import MedusaHeads
from .tree import Path, check_paths


class MedusaProposer:
    """Fills a candidate tree with the heads' guesses from the state of the last accepted token.

    Args:
        heads: of the backbone that decodes.
        paths: the tree; see :func:`check_paths`.

    Attributes:
        nodes: of the tree, its root not counted.
        calls: how often the heads were evaluated.

    Raises:
        InvalidTree: the paths are no tree, or go beyond the heads.
    """

    def __init__(self, heads: MedusaHeads, paths: Sequence[Path]) -> None:
        self.heads = heads
        self.paths = check_paths(paths, heads.num_heads, heads.table.shape[-2])
        self.nodes = len(self.paths)
        self.calls = 0
        place = {path: node for node, path in enumerate(self.paths)}
        self.parents = tuple(place.get(path[:-1], -1) for path in self.paths)
        depth = max((len(path) for path in self.paths), default=0)
        self._top = [
            1 + max(path[level] for path in self.paths if len(path) == level + 1) for level in range(depth)
        ]
        starts = [sum(self._top[:level]) for level in range(depth)]
        self._columns = torch.tensor([starts[len(path) - 1] + path[-1] for path in self.paths])

    @torch.no_grad()
    def propose(self, front: Front) -> Draft:
        """The guesses for every row of the batch."""
        self.calls += 1
        guesses = torch.cat(self.heads.guesses(front.hidden, self._top), -1)
        return Draft(guesses[:, self._columns.to(guesses.device)], self.parents)


class MedusaDecoder:
    """A backbone with its heads and a tree, ready to write.

    Without nodes in the tree, as :func:`calibrate_tree` answers where no tree pays, it decodes plainly, and
    no head is evaluated.

    Args:
        model: the backbone, with the kernels to decode with.
        heads: that were trained for it.
        paths: the tree.
        acceptance: which guesses are kept; greedy text is the backbone's own, token for token.

    Raises:
        HeadsMismatch: the heads are of another backbone.
        InvalidTree: the paths are no tree, or go beyond the heads.
    """

    def __init__(
        self,
        model: Decoder,
        heads: MedusaHeads,
        paths: Sequence[Path],
        acceptance: Acceptance | None = None,
    ) -> None:
        heads.check(model)
        heads.kernels = model.kernels
        self.model = model
        self.proposer = MedusaProposer(heads, paths) if paths else None
        self.acceptance = acceptance or Greedy()

    def generate(
        self, ids: Sequence[int] | Tensor, max_new_tokens: int, *, eos: Collection[int] = (), seed: int = 0
    ) -> Generation:
        """Continue one prompt; see :func:`tradeoff.engines.decoding.generate`."""
        return generate(
            self.model,
            ids,
            max_new_tokens,
            proposer=self.proposer,
            acceptance=self.acceptance,
            eos=eos,
            seed=seed,
        )

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        eos: Collection[int] = (),
        seed: int = 0,
    ) -> list[Generation]:
        """Continue several prompts at once; every row accepts by itself."""
        return generate_batch(
            self.model,
            prompts,
            max_new_tokens,
            proposer=self.proposer,
            acceptance=self.acceptance,
            eos=eos,
            seed=seed,
        )

    def stream(
        self, ids: Sequence[int] | Tensor, max_new_tokens: int, *, eos: Collection[int] = (), seed: int = 0
    ) -> Iterator[list[int]]:
        """The tokens of every step as soon as they are known."""
        return stream(
            self.model,
            ids,
            max_new_tokens,
            proposer=self.proposer,
            acceptance=self.acceptance,
            eos=eos,
            seed=seed,
        )
