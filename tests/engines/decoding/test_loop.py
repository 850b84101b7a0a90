"""Ends, limits, streams, processors of scores and faults."""

from dataclasses import replace

import pytest
import torch
from decoding_helpers import CONFIG, TREES, Guesses, decoder, guesses, prompts

from tradeoff.engines.decoding import (
    Draft,
    InvalidDraft,
    InvalidRequest,
    NativeKernels,
    NonFiniteLogits,
    Oracle,
    PromptLookup,
    Sample,
    generate,
    generate_batch,
    step_seconds,
    stream,
)
from tradeoff.nn.decoder import CacheOverflow, Decoder, DecoderConfig

MODEL = decoder()
MODEL.kernels = NativeKernels()
PROMPT = prompts(1)[0]
PLAIN = generate(MODEL, PROMPT, 40).ids


def test_the_plain_loop_is_the_argmax_of_a_whole_pass() -> None:
    text = list(PROMPT)
    for _ in range(12):
        text.append(int(MODEL(torch.tensor([text]))[0, -1].argmax()))
    assert PROMPT + PLAIN[:12] == text


@pytest.mark.parametrize("nodes", [0, 3, 8])
@pytest.mark.parametrize("end", [0, 1, 5, 8, 39])
def test_an_end_token_ends_the_text_also_within_a_kept_path(end: int, nodes: int) -> None:
    first = PLAIN.index(PLAIN[end])
    proposer = Oracle([PROMPT + PLAIN], nodes) if nodes else None
    out = generate(MODEL, PROMPT, 40, eos=PLAIN[end], proposer=proposer)
    assert out.ids == PLAIN[: first + 1]
    assert out.finish == "eos"
    assert sum(out.accept_lengths) == first
    assert generate(MODEL, PROMPT, 40, eos={PLAIN[end], 511}, proposer=proposer).ids == out.ids


@pytest.mark.parametrize("wanted", [1, 2, 3, 7])
def test_the_wanted_number_is_never_exceeded(wanted: int) -> None:
    out = generate(MODEL, PROMPT, wanted, proposer=Oracle([PROMPT + PLAIN], 4))
    assert out.ids == PLAIN[:wanted]
    assert out.finish == "length"
    assert out.steps == -(-(wanted - 1) // 5)
    assert (out.tokens_per_step > 0) == (wanted > 1)
    assert 0 < out.prefill_seconds <= out.seconds


def test_rows_leave_a_batch_when_they_are_done() -> None:
    texts = prompts(6, seed=5)
    alone = [generate(MODEL, text, 30).ids for text in texts]
    ends = {ids[3 * row + 2] for row, ids in enumerate(alone)}
    expected = [generate(MODEL, text, 30, eos=ends) for text in texts]
    assert len({len(out.ids) for out in expected}) > 3
    outs = generate_batch(MODEL, texts, 30, eos=ends)
    assert [(out.ids, out.finish) for out in outs] == [(out.ids, out.finish) for out in expected]
    whole = [text + ids for text, ids in zip(texts, alone, strict=True)]
    seen = []

    class Watched(Oracle):
        def propose(self, front):
            seen.append(front.rows)
            assert all(text[-1] == root for text, root in zip(front.texts, front.roots, strict=True))
            return super().propose(front)

    outs = generate_batch(MODEL, texts, 30, eos=ends, proposer=Watched(whole, 2))
    assert [out.ids for out in outs] == [out.ids for out in expected]
    assert len(seen[-1]) < len(seen[0])


def test_a_stream_gives_what_generate_gives() -> None:
    proposer = Oracle([PROMPT + PLAIN], 3)
    parts = list(stream(MODEL, PROMPT, 40, proposer=proposer))
    out = generate(MODEL, PROMPT, 40, proposer=proposer)
    assert [token for part in parts for token in part] == PLAIN
    assert tuple(map(len, parts)) == (1, *out.accept_lengths)
    begun = stream(MODEL, PROMPT, 40)
    assert next(begun) == PLAIN[:1]
    begun.close()
    with pytest.raises(InvalidRequest):
        stream(MODEL, [], 40)  # at once, not when the first token is asked for


def test_a_context_is_filled_to_its_end() -> None:
    """Rows that near the model's last position get shallow drafts, even beside rows that do not."""
    model = decoder(replace(CONFIG, max_len=24, pos="learned"))
    model.kernels = NativeKernels()
    texts = [[1, 2, 3], list(range(12))]
    alone = [generate(model, text, 12).ids for text in texts]
    whole = [text + ids for text, ids in zip(texts, alone, strict=True)]
    wrong_in_the_short = Oracle([[0] * 30, whole[1]], 5)
    assert [out.ids for out in generate_batch(model, texts, 12, proposer=wrong_in_the_short)] == alone


def unrepeated(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """No token twice: the longer the text, the more is forbidden."""
    scores[0, ids[0]] = -torch.inf
    return scores


@pytest.mark.parametrize("rule", [None, Sample()])
def test_processors_see_the_path_of_every_node(rule: Sample | None) -> None:
    settings = {} if rule is None else {"acceptance": rule}
    plain = generate(MODEL, PROMPT, 40, processors=[unrepeated], **settings)
    assert len({*PROMPT, *plain.ids}) == len({*PROMPT}) + 40
    for kind in ("right", "mixed"):
        proposer = guesses(kind, TREES["sparse"], [PROMPT + plain.ids], 512)
        out = generate(MODEL, PROMPT, 40, processors=[unrepeated], proposer=proposer, **settings)
        assert out.ids == plain.ids
        assert out.steps < 39


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda ids, scores: scores[:, :3], r"gave \(1, 3\); expected \(1, 512\)"),
        (lambda ids, scores: None, "gave None"),
    ],
)
def test_processors_that_give_no_scores(wrong, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        generate(MODEL, PROMPT, 4, processors=[wrong])


def test_processors_that_leave_nothing() -> None:
    with pytest.raises(NonFiniteLogits, match="leave no token behind"):
        generate(MODEL, PROMPT, 4, processors=[lambda ids, scores: scores - torch.inf])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.1.attention.key.weight", "the keys of layer 1 of 2"),
        ("blocks.0.ffn.down.weight", "the keys of layer 1 of 2"),
        ("embedding.weight", "the keys of layer 0 of 2"),
        ("blocks.1.ffn.up.weight", "the last block"),
    ],
)
def test_logits_that_are_no_numbers(name: str, message: str) -> None:
    model = decoder()
    model.kernels = NativeKernels()
    with torch.no_grad():
        model.get_parameter(name)[3, 2] = torch.nan
    if name == "embedding.weight":
        with pytest.raises(NonFiniteLogits, match=message):
            generate(model, [3], 8)
    else:
        with pytest.raises(NonFiniteLogits, match=f"behind {len(PROMPT)} tokens are not finite.*{message}"):
            generate(model, PROMPT, 8)


class Fixed:
    """Gives one draft, and announces some number of nodes."""

    def __init__(self, tokens: list[list[int]], parents: list[int], nodes: int = 64) -> None:
        self.draft, self.nodes = Draft(torch.tensor(tokens), parents), nodes

    def propose(self, front):
        return self.draft


@pytest.mark.parametrize(
    ("proposer", "message"),
    [
        (Fixed([[1, 2]], [-1, 1]), "node 1 of a draft has parent 1; expected -1 to 0"),
        (Fixed([[1, 2]], [-1, -2]), "node 1 of a draft has parent -2"),
        (Fixed([[1, 512]], [-1, 0]), "node 1 of a draft is token 512; expected -1 to 511"),
        (Fixed([[1, -2]], [-1, 0]), "token -2"),
        (Fixed([[1, 2], [3, 4]], [-1, 0]), r"\(2, 2\) for 1 rows of 2 nodes"),
        (Fixed([[1, 2]], [-1]), r"\(1, 2\) for 1 rows of 1 nodes"),
    ],
)
def test_drafts_that_are_no_trees(proposer: Fixed, message: str) -> None:
    with pytest.raises(InvalidDraft, match=message):
        generate(MODEL, PROMPT, 40, proposer=proposer)


def test_more_nodes_than_announced_overflow_the_cache_before_anything_is_written() -> None:
    with pytest.raises(CacheOverflow, match="exceed the cache's"):
        generate(MODEL, PROMPT, 6, proposer=Fixed([[1] * 30], [-1] * 30, nodes=1))


def test_drafts_without_nodes_are_plain_steps() -> None:
    assert generate(MODEL, PROMPT, 40, proposer=PromptLookup(nodes=0)).ids == PLAIN
    missing = Guesses(TREES["cartesian"], lambda row, position, node: -1)
    out = generate(MODEL, PROMPT, 40, proposer=missing)
    assert out.ids == PLAIN
    assert out.steps == 39


@pytest.mark.parametrize(
    ("prompt", "wanted", "message"),
    [
        ([], 4, "prompt 0 is"),
        ([1, 512], 4, "token ids 1 to 512; the vocabulary has 512"),
        ([-1], 4, "token ids -1 to -1"),
        ([0.5], 4, "at least one token id"),
        (torch.ones(1, 3, dtype=torch.int64), 4, "in one dimension"),
        ([1] * 200, 57, "prompt 0 of 200 tokens and 57 new ones exceed the model's context of 256"),
        ([1], 0, "max_new_tokens is 0"),
        ([1], 2.5, "max_new_tokens is 2.5"),
    ],
)
def test_requests_that_cannot_start(prompt, wanted: int, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        generate(MODEL, prompt, wanted)


def test_seeds_and_lookups_out_of_range() -> None:
    with pytest.raises(InvalidRequest, match="the seed is -1"):
        generate(MODEL, PROMPT, 4, seed=-1)
    for wrong in ({"nodes": -1}, {"longest": 0}):
        with pytest.raises(InvalidDraft, match="guesses behind"):
            PromptLookup(**wrong)


def test_no_prompts_and_models_in_training() -> None:
    with pytest.raises(InvalidRequest, match="no prompt"):
        generate_batch(MODEL, [], 4)
    training = Decoder(DecoderConfig(vocab=8, dim=8, layers=1, heads=1, dropout=0.1))
    with pytest.raises(InvalidRequest, match=r"model.eval\(\)"):
        generate(training, [1], 4)
    assert len(generate(training.eval(), torch.tensor([1, 2]), 4).ids) == 4


def test_a_model_can_be_trained_after_decoding() -> None:
    model = decoder()
    model.kernels = NativeKernels()
    generate(model, PROMPT, 4)
    model.loss(torch.tensor([PROMPT, PROMPT])).backward()
    assert model.embedding.weight.grad.isfinite().all()


def test_the_cost_of_steps() -> None:
    seconds = step_seconds(MODEL, (1, 5), context=20, rounds=2)
    assert list(seconds) == [1, 5]
    assert all(value > 0 for value in seconds.values())
