"""What a step with several tokens costs on this machine, next to a plain step."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from tradeoff.core.timing import ProcessorClock, side_by_side
from tradeoff.engines.decoding import step_seconds
from tradeoff.nn.decoder import Decoder

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

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidSetting: rows do not increase from 1, or a ratio is not positive and finite.
        """
        steps = zip(self.rows, self.rows[1:], strict=False)
        if self.rows[:1] != (1,) or not all(a < b for a, b in steps) or len(self.ratio) != len(self.rows):
            raise InvalidSetting(f"costs {self.ratio} of {self.rows} rows; rows increase from 1")
        if not all(0 < ratio < math.inf for ratio in self.ratio):
            raise InvalidSetting(f"costs {self.ratio}; they are positive")

    def with_nodes(self, nodes: int) -> float:
        """With a tree of so many nodes behind the root; between measured sizes on a line. 1 without nodes."""
        if nodes == 0:
            return 1.0
        if nodes + 1 > self.rows[-1]:
            raise InvalidSetting(f"the cost of {nodes + 1} rows was not measured, at most {self.rows[-1]}")
        return float(np.interp(nodes + 1, self.rows, self.ratio))


def measure_cost(
    model: Decoder, heads: MedusaHeads, *, context: int = 96, max_nodes: int = 32, rounds: int = 5
) -> StepCost:
    """Processor time of passes of several sizes, and of the heads, next to that of a plain step.

    Args:
        model: the backbone, with the kernels to decode with.
        heads: of the shapes to decode with; their weights do not matter.
        context: tokens in the cache.
        max_nodes: of the largest tree.
        rounds: samples of each size.
    """
    rows = sorted({row for row in ROWS if row <= max_nodes} | {1, max_nodes + 1})
    seconds = step_seconds(model, rows, context=context, rounds=rounds)
    state = torch.zeros(1, model.config.dim).to(heads.table)
    top = min(10, heads.table.shape[-2])

    @torch.inference_mode()
    def guess() -> None:
        heads.guesses(state, top)

    timed = side_by_side({"heads": guess}, rounds=rounds, threads=None, clock=ProcessorClock())
    ratio = [(seconds[row] + timed.timings["heads"].median) / seconds[1] for row in rows]
    steady = np.maximum.accumulate(ratio).tolist()  # a larger pass is not cheaper; noise is
    return StepCost(tuple(rows), tuple(steady), seconds[1])
