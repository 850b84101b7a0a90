"""Decoding: the plain loop, and the same with drafts that a step verifies."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tradeoff.engines.decoding.acceptance import Acceptance, Greedy
from tradeoff.engines.decoding.drafts import Front, Proposer, Topology, prepared
from tradeoff.engines.decoding.errors import InvalidRequest
from tradeoff.engines.decoding.verification import Processor, RowStep, Step
from tradeoff.nn.decoder import Decoder, Padded

GREEDY = Greedy()
Prompt = Sequence[int] | Tensor
"""Token ids; a tensor has one dimension."""


@dataclass(frozen=True)
class Generation:
    """What came out behind a prompt, and what it took.

    Attributes:
        ids: the new tokens; an end token is the last of them.
        accept_lengths: tokens that each step gave: the guesses kept, and one behind them. The very first
            token comes with the prompt, so these sum to one less than there are ids.
        finish: ``"eos"``, or ``"length"`` where the wanted number was reached.
        prefill_seconds: until the first token was chosen; of the whole batch.
        seconds: until the row was done, the prompt included; of the whole batch.
    """

    ids: list[int]
    accept_lengths: tuple[int, ...]
    finish: str
    prefill_seconds: float
    seconds: float

    @property
    def steps(self) -> int:
        """Passes of the model behind the prompt."""
        return len(self.accept_lengths)

    @property
    def tokens_per_step(self) -> float:
        """Mean of the accept lengths; nan if there was no step."""
        return sum(self.accept_lengths) / self.steps if self.steps else float("nan")


def generate(
    model: Decoder,
    prompt: Prompt,
    max_new_tokens: int,
    *,
    proposer: Proposer | None = None,
    acceptance: Acceptance = GREEDY,
    eos: int | Collection[int] = (),
    processors: Sequence[Processor] = (),
    seed: int = 0,
) -> Generation:
    """Continue a text.

    Args:
        model: any decoder; with :class:`NativeKernels` greedy output is bit for bit that of the plain loop.
        prompt: the text.
        max_new_tokens: wanted at most.
        proposer: guesses tokens that a step verifies together; None for the plain loop.
        acceptance: how tokens are chosen and guesses kept.
        eos: tokens that end the text.
        processors: change the scores before a token is chosen, each called with the text before it.
        seed: of the random numbers.

    Raises:
        InvalidRequest: an empty prompt, tokens outside the vocabulary, or more text than the model's context.
        InvalidDraft: the proposer gave no tree over the vocabulary.
        CacheOverflow: a draft has more nodes than the proposer announced.
        NonFiniteLogits: the model's or the processors' scores decide nothing.
    """
    return generate_batch(
        model,
        [prompt],
        max_new_tokens,
        proposer=proposer,
        acceptance=acceptance,
        eos=eos,
        processors=processors,
        seed=seed,
    )[0]


def generate_batch(
    model: Decoder,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    proposer: Proposer | None = None,
    acceptance: Acceptance = GREEDY,
    eos: int | Collection[int] = (),
    processors: Sequence[Processor] = (),
    seed: int = 0,
) -> list[Generation]:
    """Continue several texts in the same passes; each keeps its own guesses, and leaves when it is done.

    Row r draws its random numbers from ``seed + r``. See :func:`generate`, whose output for every prompt
    alone this is.
    """
    run = _Run(model, prompts, max_new_tokens, proposer, acceptance, eos, processors, seed)
    run.prefill()
    while run.live:
        run.step()
    return [row.result(run.prefill_seconds) for row in run.rows]


def stream(
    model: Decoder,
    prompt: Prompt,
    max_new_tokens: int,
    *,
    proposer: Proposer | None = None,
    acceptance: Acceptance = GREEDY,
    eos: int | Collection[int] = (),
    processors: Sequence[Processor] = (),
    seed: int = 0,
) -> Iterator[list[int]]:
    """The tokens of :func:`generate` as they are known: those of the prompt's pass, then step by step."""
    run = _Run(model, [prompt], max_new_tokens, proposer, acceptance, eos, processors, seed)
    return _tokens(run)


def _tokens(run: "_Run") -> Iterator[list[int]]:
    (row,) = run.rows
    run.prefill()
    yield list(row.new)
    while run.live:
        known = len(row.new)
        run.step()
        yield row.new[known:]


class _Row:
    """One text that grows."""

    def __init__(self, index: int, prompt: list[int], wanted: int, seed: int) -> None:
        self.index = index
        self.text = prompt
        self.prompt_length = len(prompt)
        self.wanted = wanted
        self.random = np.random.default_rng(seed)
        self.accept_lengths: list[int] = []
        self.finish: str | None = None
        self.seconds = 0.0

    @property
    def new(self) -> list[int]:
        return self.text[self.prompt_length :]

    @property
    def remaining(self) -> int:
        return self.wanted - (len(self.text) - self.prompt_length)

    def add(self, tokens: list[int], eos: Collection[int]) -> int:
        """Take tokens up to an end token or the wanted number; returns how many."""
        tokens = tokens[: self.remaining]
        end = next((place for place, token in enumerate(tokens) if token in eos), None)
        if end is not None:
            tokens = tokens[: end + 1]
        self.text.extend(tokens)
        if end is not None:
            self.finish = "eos"
        elif self.remaining == 0:
            self.finish = "length"
        return len(tokens)

    def result(self, prefill_seconds: float) -> Generation:
        assert self.finish is not None
        return Generation(self.new, tuple(self.accept_lengths), self.finish, prefill_seconds, self.seconds)


class _Run:
    """The state of a batch between two steps: texts, cache and the last hidden states."""

    hidden: Tensor

    def __init__(
        self,
        model: Decoder,
        prompts: Sequence[Prompt],
        wanted: int,
        proposer: Proposer | None,
        acceptance: Acceptance,
        eos: int | Collection[int],
        processors: Sequence[Processor],
        seed: int,
    ) -> None:
        _check(model, wanted, seed)
        texts = [_prompt(model, prompt, wanted, row) for row, prompt in enumerate(prompts)]
        if not texts:
            raise InvalidRequest("there is no prompt")
        self.started = time.perf_counter()
        self.model, self.proposer, self.acceptance, self.processors = model, proposer, acceptance, processors
        self.eos = frozenset((eos,) if isinstance(eos, int) else eos)
        self.rows = [_Row(index, text, wanted, seed + index) for index, text in enumerate(texts)]
        self.live = list(self.rows)
        slots = max(map(len, texts)) + wanted + (proposer.nodes if proposer else 0)
        self.cache = model.new_cache(len(texts), slots)
        self.device = model.embedding.weight.device
        self.prefill_seconds = 0.0

    @torch.inference_mode()
    def prefill(self) -> None:
        """Read the prompts and choose the first tokens."""
        lengths = [len(row.text) for row in self.live]
        ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
        for row, text in zip(ids, (row.text for row in self.live), strict=True):
            row[: len(text)] = torch.tensor(text)
        mask = Padded(tuple(lengths)) if len(lengths) > 1 else None
        hidden = self.model.hidden(ids.to(self.device), mask=mask, cache=self.cache)
        self.hidden = hidden[range(len(lengths)), [length - 1 for length in lengths]]
        step = Step(self.model.logits(self.hidden)[:, None], Topology.of(()), self.cache)
        for place, row in enumerate(self.live):
            decision = self.acceptance.decide(self._of_row(step, place, ()), row.random)
            row.add([decision.token], self.eos)
        self.prefill_seconds = time.perf_counter() - self.started
        self._drop_finished()

    @torch.inference_mode()
    def step(self) -> None:
        """Read every row's last token with the guesses behind it; keep what is accepted."""
        topology, guesses = self._draft()
        ids = torch.tensor(
            [
                [row.text[-1], *(max(0, token) for token in tokens)]
                for row, tokens in zip(self.live, guesses, strict=True)
            ],
            device=self.device,
        )
        plain = ids.shape[1] == 1
        hidden = self.model.hidden(ids, mask=None if plain else topology.mask, cache=self.cache)
        step = Step(self.model.logits(hidden), topology, self.cache)
        paths = []
        for place, (row, tokens) in enumerate(zip(self.live, guesses, strict=True)):
            decision = self.acceptance.decide(self._of_row(step, place, tokens), row.random)
            found = [*(tokens[node - 1] for node in decision.path), decision.token]
            row.accept_lengths.append(row.add(found, self.eos))
            paths.append([0, *decision.path])
        if not plain:
            self.cache.select(paths)
        self.hidden = hidden[range(len(paths)), [path[-1] for path in paths]]
        self._drop_finished()

    def _draft(self) -> tuple[Topology, list[list[int]]]:
        wanted = max(row.remaining for row in self.live) - 1
        room = self.model.config.max_len - max(len(row.text) for row in self.live)
        deepest = min(wanted, room)
        if self.proposer is None or deepest == 0:
            return Topology.of(()), [[]] * len(self.live)
        front = Front(
            self.hidden,
            tuple(row.text[-1] for row in self.live),
            [row.text for row in self.live],
            tuple(row.index for row in self.live),
        )
        draft = self.proposer.propose(front)
        return prepared(draft, len(self.live), deepest, self.model.config.vocab)

    def _of_row(self, step: Step, place: int, tokens: Sequence[int]) -> RowStep:
        return RowStep(step, place, tokens, self.live[place].text, self.processors)

    def _drop_finished(self) -> None:
        """Rows that are done leave the batch."""
        kept = [place for place, row in enumerate(self.live) if row.finish is None]
        if len(kept) == len(self.live):
            return
        for row in self.live:
            if row.finish is not None:
                row.seconds = time.perf_counter() - self.started
        self.live = [self.live[place] for place in kept]
        if kept:
            self.cache = self.cache.batch_select(kept)
            self.hidden = self.hidden[kept]


def _check(model: Decoder, wanted: int, seed: int) -> None:
    if not isinstance(wanted, int) or wanted < 1:
        raise InvalidRequest(f"max_new_tokens is {wanted}; expected a whole number of at least 1")
    if seed < 0:
        raise InvalidRequest(f"the seed is {seed}; expected at least 0")
    if model.training and model.config.dropout > 0:
        raise InvalidRequest("the model is in training mode and would drop units; call model.eval()")


def _prompt(model: Decoder, prompt: Prompt, wanted: int, row: int) -> list[int]:
    ids = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
    if not ids or not all(isinstance(token, int) for token in ids):
        raise InvalidRequest(f"prompt {row} is {ids!r:.60}; expected at least one token id, in one dimension")
    if not all(0 <= token < model.config.vocab for token in ids):
        raise InvalidRequest(
            f"prompt {row} has token ids {min(ids)} to {max(ids)}; the vocabulary has {model.config.vocab}"
        )
    if len(ids) + wanted > model.config.max_len:
        raise InvalidRequest(
            f"prompt {row} of {len(ids)} tokens and {wanted} new ones exceed the model's context of "
            f"{model.config.max_len}"
        )
    return ids
