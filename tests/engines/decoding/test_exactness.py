"""Drafts change the time and nothing else: every token, and with native kernels every bit of the states."""

import random
from dataclasses import replace

import pytest
import torch
from decoding_helpers import CONFIG, TREES, Guesses, Nothing, decoder, guesses, prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.engines.decoding import (
    Generation,
    NativeKernels,
    Oracle,
    PromptLookup,
    Sample,
    generate,
    generate_batch,
)
from tradeoff.nn.decoder import Decoder, DecoderConfig, KVCache, MoEConfig, Tree

pytest.importorskip("tradeoff._native")
PROMPTS = prompts(20)
NEW = 64


def native(model: Decoder) -> Decoder:
    model.kernels = NativeKernels()
    return model


MODEL = native(decoder())


@pytest.fixture(scope="module")
def plain() -> tuple[list[list[int]], list[Nothing]]:
    """Texts of the plain loop, prompt by prompt, and the hidden states behind each."""
    texts, states = [], []
    for prompt in PROMPTS:
        states.append(Nothing())
        texts.append(prompt + generate(MODEL, prompt, NEW, proposer=states[-1]).ids)
    return texts, states


def check(out: Generation, prompt: list[int], text: list[int]) -> None:
    assert prompt + out.ids == text
    assert out.finish == "length"
    assert sum(out.accept_lengths) + 1 == len(out.ids) == len(text) - len(prompt)


@pytest.mark.parametrize("kind", ["right", "wrong", "random", "mixed"])
@pytest.mark.parametrize("shape", TREES)
def test_greedy_drafts_give_the_plain_text_bit_for_bit(plain, shape: str, kind: str) -> None:
    texts, states = plain
    proposer = guesses(kind, TREES[shape], texts, CONFIG.vocab)
    outs = generate_batch(MODEL, PROMPTS, NEW, proposer=proposer)
    for out, prompt, text in zip(outs, PROMPTS, texts, strict=True):
        check(out, prompt, text)
    for (row, length), hidden in proposer.hidden.items():
        if length < len(texts[row]) - 1:  # alone, a row asks for no guess before its last token
            assert torch.equal(hidden, states[row].hidden[0, length])
    if kind == "wrong":
        assert all(out.steps == NEW - 1 for out in outs)
    if kind == "right":
        depth = max(proposer.depths) + 1
        assert all(out.steps == -(-(NEW - 1) // (depth + 1)) for out in outs)
    if kind == "mixed":
        assert all(out.tokens_per_step > 1.1 for out in outs)


def test_one_row_is_the_row_of_a_batch(plain) -> None:
    texts, _ = plain
    for row, prompt in enumerate(PROMPTS[:5]):
        one = guesses("mixed", TREES["sparse"], [texts[row]], CONFIG.vocab)
        check(generate(MODEL, prompt, NEW, proposer=one), prompt, texts[row])


def test_proposers_of_the_engine(plain) -> None:
    texts, _ = plain
    for out, prompt, text in zip(
        generate_batch(MODEL, PROMPTS, NEW, proposer=Oracle(texts, 4)), PROMPTS, texts, strict=True
    ):
        check(out, prompt, text)
        assert out.steps == 13
    phrase = [5, 6, 7, 8, 9, 10]
    repeated = [*phrase, 3, *phrase, 3, 5, 6]
    lookup = PromptLookup(nodes=4)
    check(
        generate(MODEL, repeated, 9, proposer=lookup), repeated, repeated + generate(MODEL, repeated, 9).ids
    )


@pytest.mark.parametrize("shape", TREES)
def test_in_float64_torchs_products_give_the_plain_text(shape: str) -> None:
    model = decoder().double()
    texts = [
        prompt + out.ids
        for prompt, out in zip(PROMPTS[:4], generate_batch(model, PROMPTS[:4], 24), strict=True)
    ]
    for kind in ("right", "random", "mixed"):
        proposer = guesses(kind, TREES[shape], texts, CONFIG.vocab)
        outs = generate_batch(model, PROMPTS[:4], 24, proposer=proposer)
        assert [prompt + out.ids for prompt, out in zip(PROMPTS[:4], outs, strict=True)] == texts


@torch.no_grad()
def test_with_torchs_products_texts_differ_at_near_ties_only() -> None:
    model = decoder()
    for prompt in PROMPTS[:6]:
        text = prompt + generate(model, prompt, 32).ids
        other = (
            prompt + generate(model, prompt, 32, proposer=guesses("mixed", TREES["sparse"], [text], 512)).ids
        )
        if other != text:
            first = next(place for place in range(len(text)) if text[place] != other[place])
            top = model(torch.tensor([text[:first]]))[0, -1].topk(2).values
            assert top[0] - top[1] < 1e-3


LATENT = replace(CONFIG, attention="mlra2", kv_rank=32, kv_heads=None, nope_dim=8, rope_dim=8)
MOE = replace(CONFIG, ffn=MoEConfig(experts=4, active=2, hidden=24, shared=1))
VARIANTS = {
    "experts": MOE,
    "layer norm": replace(CONFIG, pos="learned", norm="layer", ffn="gelu", bias=True, tie_embeddings=False),
    "norms of heads": replace(CONFIG, qk_norm=True, residual_multiplier=0.5, logits_multiplier=2.0),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_other_decoders_are_exact_too(name: str) -> None:
    model = native(decoder(VARIANTS[name]))
    state = Nothing()
    prompt = PROMPTS[3]
    text = prompt + generate(model, prompt, 32, proposer=state).ids
    proposer = guesses("mixed", TREES["sparse"], [text], CONFIG.vocab)
    assert prompt + generate(model, prompt, 32, proposer=proposer).ids == text
    for key, hidden in proposer.hidden.items():
        assert torch.equal(hidden, state.hidden[key])


def test_latents_in_float64() -> None:
    model = native(decoder(LATENT).double())
    text = PROMPTS[3] + generate(model, PROMPTS[3], 32).ids
    proposer = guesses("mixed", TREES["sparse"], [text], CONFIG.vocab)
    assert PROMPTS[3] + generate(model, PROMPTS[3], 32, proposer=proposer).ids == text


@settings(max_examples=25, deadline=None)
@given(st.data())
@torch.no_grad()
def test_nodes_have_the_bits_of_their_paths_and_a_kept_path_those_of_its_text(data: st.DataObject) -> None:
    prompt = torch.tensor([data.draw(st.lists(st.integers(0, 511), min_size=1, max_size=40))])
    size = data.draw(st.integers(1, 12))
    tree = Tree.from_parents([-1, *(data.draw(st.integers(0, node - 1)) for node in range(1, size))])
    nodes = torch.tensor([data.draw(st.lists(st.integers(0, 511), min_size=size, max_size=size))])
    cache = MODEL.new_cache(max_len=prompt.shape[1] + size)
    MODEL.hidden(prompt, cache=cache)
    hidden = MODEL.hidden(nodes, mask=tree, cache=cache)
    last = data.draw(st.integers(0, size - 1))
    path = tree.ancestors[last].nonzero().flatten().tolist()
    text = torch.cat((prompt, nodes[:, path]), 1)
    steps = MODEL.new_cache(max_len=text.shape[1])
    for token in text.split(1, 1):
        state = MODEL.hidden(token, cache=steps)
    assert torch.equal(hidden[0, last], state[0, 0])
    assert torch.equal(hidden[0, last], MODEL.hidden(text)[0, -1])
    cache.select(path)
    assert cache.lengths == steps.lengths
    for name, kept in cache.storage.items():
        assert torch.equal(kept[..., : cache.length, :], steps.storage[name])


TOY = DecoderConfig(vocab=5, dim=16, layers=1, heads=2, max_len=2100, init_std=0.4, tie_embeddings=False)


def test_a_toy_with_a_frequent_token_zero() -> None:
    """Padding of drafts is made of zeros inside: a zero that nobody proposed must never be kept."""
    model = native(decoder(TOY))

    def often_zero(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, 0] += 4.0
        return scores

    draw = random.Random(3)
    proposer = Guesses(TREES["sparse"], lambda row, position, node: draw.choice([-1, -1, 0, 1, 2, 3, 4]))
    rule, processors = Sample(temperature=0.7), [often_zero]
    text = generate(model, [1], 2000, acceptance=rule, processors=processors, seed=7).ids
    out = generate(model, [1], 2000, acceptance=rule, processors=processors, seed=7, proposer=proposer)
    assert out.ids == text
    assert 0.3 < text.count(0) / 2000 < 0.9
    assert len(set(text)) == 5
    assert out.tokens_per_step > 1.3


def test_a_broken_compaction_is_noticed(plain, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, _ = plain
    select = KVCache.select
    monkeypatch.setattr(
        KVCache, "select", lambda cache, paths: select(cache, [list(range(len(path))) for path in paths])
    )
    proposer = guesses("right", TREES["cartesian"], texts, CONFIG.vocab)
    outs = generate_batch(MODEL, PROMPTS, NEW, proposer=proposer)
    assert any(prompt + out.ids != text for out, prompt, text in zip(outs, PROMPTS, texts, strict=True))


def test_products_that_depend_on_the_rows_are_noticed(plain) -> None:
    texts, _ = plain
    model = decoder()
    state, proposer = Nothing(), guesses("right", TREES["chain"], texts[:1], CONFIG.vocab)
    generate(model, PROMPTS[0], NEW, proposer=state)
    generate(model, PROMPTS[0], NEW, proposer=proposer)
    same = [torch.equal(hidden, state.hidden[key]) for key, hidden in proposer.hidden.items()]
    assert not all(same)
