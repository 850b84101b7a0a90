"""What a step with several tokens costs on this machine, next to a plain step."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from tradeoff.core.timing import Clock, ProcessorClock, side_by_side
from tradeoff.nn.decoder import Decoder, Tree

from .errors import InvalidSetting
from .heads import MedusaHeads

ROWS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 17, 25, 33)


@dataclass(frozen=True)
class StepCost:
    """Time of a step over that of a plain one.

    Attributes:
        rows: tokens in the pass, increasing, from 1.
        ratio: time of such a pass with heads over that of one token without.
        plain_seconds: of the latter.
    """

    rows: tuple[int, ...]
    ratio: tuple[float, ...]
    plain_seconds: float

    def with_nodes(self, nodes: int) -> float:
        """With a tree of so many nodes behind the root; between measured sizes on a line. 1 without nodes."""
        if nodes == 0:
            return 1.0
        if nodes + 1 > self.rows[-1]:
            raise InvalidSetting(
                f"the cost of {nodes + 1} rows was not measured; the most is {self.rows[-1]}"
            )
        return float(np.interp(nodes + 1, self.rows, self.ratio))


@torch.inference_mode()
def measure_cost(
    model: Decoder,
    heads: MedusaHeads,
    *,
    context: int = 96,
    max_nodes: int = 32,
    rounds: int = 7,
    clock: Clock | None = None,
) -> StepCost:
    """Time plain steps and steps with trees of several sizes by turns, heads included.

    Args:
        model: the backbone, with the kernels to decode with.
        heads: any of it; their weights do not matter.
        context: tokens in the cache.
        max_nodes: of the largest tree.
        rounds: samples of each size.
        clock: processor time if not given, so that other work on the machine matters less.
    """
    rows = sorted({row for row in ROWS if row <= max_nodes} | {max_nodes + 1})
    device = model.embedding.weight.device
    cache = model.new_cache(1, context + max_nodes + 1)
    model.hidden(torch.zeros(1, context, dtype=torch.int64, device=device), cache=cache)

    def plain() -> None:
        model.logits(model.hidden(torch.zeros(1, 1, dtype=torch.int64, device=device), cache=cache)).argmax(
            -1
        )
        cache.rollback(1)

    def step(count: int) -> Callable[[], None]:
        ids = torch.zeros(1, count, dtype=torch.int64, device=device)
        tree = Tree.from_parents([-1, *(0 for _ in range(count - 1))])

        def run() -> None:
            hidden = model.hidden(ids, mask=tree, cache=cache)
            model.logits(hidden).argmax(-1)
            heads.guesses(hidden[:, -1], min(10, heads.table.shape[-2]))
            cache.select([0])
            cache.rollback(1)

        return run

    calls = {"plain": plain, **{str(count): step(count) for count in rows}}
    timed = side_by_side(calls, rounds=rounds, clock=clock or ProcessorClock(), threads=None)
    ratio = [timed.ratio(str(count), "plain")[0] for count in rows]
    ratio = np.maximum.accumulate(ratio).tolist()  # a larger pass is not cheaper; noise is
    return StepCost(tuple(rows), tuple(ratio), timed.timings["plain"].median)
