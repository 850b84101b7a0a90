"""Ways to decode side by side: every prompt is decoded by each in turn, and each is timed on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tradeoff.core.timing import Clock, ProcessorClock
from tradeoff.engines.decoding import Generation, Proposer, generate
from tradeoff.nn.decoder import Decoder


@dataclass
class Tally:
    """What a way to decode gave on the prompts so far.

    Attributes:
        texts: prompts.
        identical: how many texts were those of the plain loop.
        tokens: written, over all prompts.
        seconds: for everything, the prompts' passes included.
        decode_seconds: behind the prompts' passes.
        steps: passes behind the prompts'; 0 where it is not known.
    """

    texts: int = 0
    identical: int = 0
    tokens: int = 0
    seconds: float = 0.0
    decode_seconds: float = 0.0
    steps: int = 0

    @property
    def tokens_per_step(self) -> float:
        """The first token, which comes from the prompt's pass, left out."""
        return (self.tokens - self.texts) / max(self.steps, 1)


Way = Callable[[Sequence[int], int], tuple[list[int], int]]
"""Prompt and number of new tokens -> tokens and steps."""


def engine_way(model: Decoder, proposer: Proposer | None, end_tokens: Sequence[int]) -> Way:
    """Greedy decoding of this project, with or without a proposer."""

    def decode(prompt: Sequence[int], count: int) -> tuple[list[int], int]:
        out: Generation = generate(model, list(prompt), count, proposer=proposer, eos=tuple(end_tokens))
        return out.ids, out.steps

    return decode


def compare(
    ways: dict[str, Way],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    clock: Clock | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Tally]:
    """Decode every prompt by each way in turn; the first way is the reference of ``identical``.

    The pass over a prompt is timed by writing one token and taken off, since it is the same for all and has
    nothing to do with how text is written behind it.

    Args:
        ways: name -> how.
        prompts: token ids.
        new_tokens: for each.
        clock: processor time if not given, so that other work on the machine matters less; one thread.
        advance: called after each prompt.
    """
    clock = clock or ProcessorClock()
    found = {name: Tally() for name in ways}

    def timed(way: Way, prompt: Sequence[int], count: int) -> tuple[list[int], int, float]:
        started = clock.wall()
        tokens, steps = way(prompt, count)
        return tokens, steps, clock.wall() - started

    for way in ways.values():  # loads and warms up
        way(prompts[0], 2)
    for prompt in prompts:
        reference: list[int] | None = None
        for name, way in ways.items():
            tokens, steps, seconds = timed(way, prompt, new_tokens)
            _, _, prefill = timed(way, prompt, 1)
            if reference is None:
                reference = tokens
            tally = found[name]
            tally.texts += 1
            tally.identical += tokens == reference
            tally.tokens += len(tokens)
            tally.steps += steps
            tally.seconds += seconds
            tally.decode_seconds += seconds - prefill
        advance()
    return found
