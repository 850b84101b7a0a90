"""Rules of acceptance: their distributions against exact enumeration, and against brute force."""

import itertools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from decoding_helpers import TREES, Guesses, decoder, guesses, prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tradeoff.engines.decoding import (
    Acceptance,
    Greedy,
    InvalidRequest,
    NativeKernels,
    Rejection,
    Sample,
    Typical,
    generate,
    generate_batch,
)
from tradeoff.nn.decoder import Decoder, DecoderConfig

TOY = DecoderConfig(vocab=4, dim=16, layers=1, heads=2, max_len=16, init_std=0.5, tie_embeddings=False)
PROMPT = [2, 0, 1]
LENGTH, TEMPERATURE = 4, 0.7


def toy() -> Decoder:
    model = decoder(TOY, seed=4)
    model.kernels = NativeKernels()
    return model


@torch.no_grad()
def exact(model: Decoder) -> dict[tuple[int, ...], float]:
    """The probability of every continuation of four tokens."""
    texts = list(itertools.product(range(4), repeat=LENGTH))
    ids = torch.tensor([[*PROMPT, *text] for text in texts])
    logs = (model(ids)[:, len(PROMPT) - 1 : -1].double() / TEMPERATURE).log_softmax(-1)
    total = logs.gather(2, ids[:, len(PROMPT) :, None]).sum((1, 2)).exp()
    return dict(zip(texts, total.tolist(), strict=True))


def p_value(model: Decoder, rule: Acceptance, count: int) -> float:
    """Of the chi-square test of sampled continuations, with rare ones in one cell."""
    proposer = Guesses(TREES["sparse"], lambda row, position, node: (0, 1, 3, 2, 0, 1, 2, 0)[node])
    found: Counter[tuple[int, ...]] = Counter()
    for start in range(0, count, 2000):
        outs = generate_batch(model, [PROMPT] * 2000, LENGTH, acceptance=rule, proposer=proposer, seed=start)
        found.update(tuple(out.ids) for out in outs)
    expected = {text: count * p for text, p in exact(model).items()}
    common = [text for text, number in expected.items() if number >= 5]
    observed = [found[text] for text in common]
    numbers = [expected[text] for text in common]
    rest = count - sum(observed)
    return float(chisquare([*observed, rest], [*numbers, count - sum(numbers)]).pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Sample(TEMPERATURE), Rejection(TEMPERATURE)], ids=["sample", "rejection"])
def test_samples_have_the_models_distribution(rule: Acceptance) -> None:
    assert p_value(toy(), rule, 20_000) > 0.01


def test_typical_acceptance_has_another_distribution() -> None:
    assert p_value(toy(), Typical(temperature=TEMPERATURE), 2000) < 1e-6


def test_samples_of_another_temperature_are_noticed() -> None:
    assert p_value(toy(), Sample(TEMPERATURE + 0.15), 2000) < 1e-6


@pytest.mark.parametrize("rule", [Sample(), Sample(0.6, 0.8)])
def test_samples_with_and_without_drafts_are_the_same(rule: Sample) -> None:
    model, texts = decoder(), prompts(5)
    model.kernels = NativeKernels()
    plain = [generate(model, text, 32, acceptance=rule, seed=9 + row).ids for row, text in enumerate(texts)]
    assert plain[0] != generate(model, texts[0], 32, acceptance=rule, seed=10).ids
    whole = [text + ids for text, ids in zip(texts, plain, strict=True)]
    for kind in ("right", "mixed"):
        proposer = guesses(kind, TREES["sparse"], whole, 512)
        outs = generate_batch(model, texts, 32, acceptance=rule, proposer=proposer, seed=9)
        assert [out.ids for out in outs] == plain
        assert sum(out.steps for out in outs) < 5 * 31


@dataclass
class Scored:
    """A draft with given scores."""

    parents: tuple[int, ...]
    tokens: tuple[int, ...]
    table: torch.Tensor

    def children(self, node: int):
        return (
            (child, self.tokens[child])
            for child, parent in enumerate(self.parents)
            if parent == node and child > 0
        )

    def scores(self, node: int) -> torch.Tensor:
        return self.table[node]

    def best(self, node: int) -> int:
        return int(self.table[node].argmax())


@st.composite
def drafts(draw: st.DrawFn) -> Scored:
    nodes = draw(st.integers(1, 9))
    parents = (-1, *(draw(st.integers(0, node - 1)) for node in range(1, nodes)))
    tokens = tuple(draw(st.integers(0, 5)) for _ in range(nodes))
    seed = draw(st.integers(0, 999))
    scores = 2 * torch.randn(nodes, 6, generator=torch.Generator().manual_seed(seed))
    return Scored(parents, tokens, scores)


@settings(max_examples=200, deadline=None)
@given(drafts(), st.sampled_from([0.3, 0.7, 1.5]))
def test_typical_acceptance_by_its_definition(draft: Scored, temperature: float) -> None:
    p = (draft.table.double() / temperature).softmax(-1)
    best: tuple[int, float, list[int]] = (0, 0.0, [])
    for last in range(1, len(draft.parents)):
        path = [last]
        while draft.parents[path[0]] > 0:
            path.insert(0, draft.parents[path[0]])
        kept, likelihood = True, 0.0
        for node in path:
            before = p[draft.parents[node]]
            entropy = -(before * before.log()).sum().item()
            chance = before[draft.tokens[node]].item()
            kept &= chance > min(0.09, 0.3 * math.exp(-entropy))
            likelihood += math.log(chance)
        if kept and (len(path), likelihood) > best[:2]:
            best = (len(path), likelihood, path)
    decision = Typical(temperature=temperature).decide(draft, np.random.default_rng(0))
    assert len(decision.path) == best[0]
    assert decision.path == best[2] or [draft.tokens[n] for n in decision.path] == [
        draft.tokens[n] for n in best[2]
    ]
    assert decision.token == draft.best(decision.path[-1] if decision.path else 0)


@given(drafts())
@settings(max_examples=50, deadline=None)
def test_temperature_zero_is_greedy(draft: Scored) -> None:
    random = np.random.default_rng(0)
    greedy = Greedy().decide(draft, random)
    for rule in (Sample(0), Rejection(0), Typical(temperature=0)):
        assert rule.decide(draft, random) == greedy


def test_top_p_keeps_the_likeliest_tokens() -> None:
    draft = Scored((-1,), (0,), torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log())
    random = np.random.default_rng(0)
    for rule in (Sample(1.0, 0.75), Rejection(1.0, 0.75)):
        drawn = Counter(rule.decide(draft, random).token for _ in range(4000))
        assert set(drawn) == {0, 1}
        assert abs(drawn[0] / 4000 - 0.5 / 0.8) < 0.03
    assert {Sample(1.0, 0.01).decide(draft, random).token for _ in range(20)} == {0}


def test_settings_out_of_range() -> None:
    for wrong in (
        lambda: Sample(-1),
        lambda: Sample(float("nan")),
        lambda: Sample(1.0, 0.0),
        lambda: Rejection(1.0, 1.5),
        lambda: Typical(eps=2),
        lambda: Typical(delta=-1),
    ):
        with pytest.raises(InvalidRequest):
            wrong()
