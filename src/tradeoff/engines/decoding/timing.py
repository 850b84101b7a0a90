"""What a pass of so many rows costs."""

from collections.abc import Callable, Sequence

import torch

from tradeoff.core.timing import ProcessorClock, SideBySide, side_by_side
from tradeoff.nn.decoder import Decoder, Tree


def step_timings(model: Decoder, rows: Sequence[int], context: int = 200, rounds: int = 10) -> SideBySide:
    """Verification passes of several sizes, by turns: hidden states and logits behind a text.

    Args:
        model: with its kernels.
        rows: how many tokens a pass reads: the root and its guesses.
        context: tokens of the text before.
        rounds: samples of each.

    Returns:
        Processor seconds, so use one thread; the names are the numbers of rows.
    """
    cache = model.new_cache(max_len=context + max(rows))
    with torch.inference_mode():
        model.hidden(torch.arange(context)[None] % model.config.vocab, cache=cache)

    def verify(count: int) -> Callable[[], None]:
        ids = torch.zeros(1, count, dtype=torch.int64)
        tree = Tree.from_parents([-1] + [0] * (count - 1))

        @torch.inference_mode()
        def run() -> None:
            model.logits(model.hidden(ids, mask=tree, cache=cache))

        return run

    return side_by_side({str(count): verify(count) for count in rows}, rounds=rounds, clock=ProcessorClock())


def step_seconds(
    model: Decoder, rows: Sequence[int], context: int = 200, rounds: int = 10
) -> dict[int, float]:
    """Median processor seconds of a verification pass by its number of rows; see :func:`step_timings`."""
    timed = step_timings(model, rows, context, rounds)
    return {count: timed.timings[str(count)].median for count in rows}
