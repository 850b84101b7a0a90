"""Decoding with heads: the text is the backbone's own, whatever heads, tree, batch and family."""

from pathlib import Path

import pytest
import torch
import transformers

from tradeoff.core.errors import DataError
from tradeoff.engines.decoding import (
    Acceptance,
    Greedy,
    NativeKernels,
    Rejection,
    Sample,
    Typical,
    generate,
    generate_batch,
)
from tradeoff.methods.language_models.medusa import (
    Distilled,
    HeadsMismatch,
    InvalidTree,
    MedusaDecoder,
    MedusaHeads,
    MedusaProposer,
    StepCost,
    calibrate_tree,
    cartesian,
    frequent_tokens,
    guess_ranks,
    head_training,
    load_backbone,
    measure_cost,
    self_distill,
    train_heads,
)
from tradeoff.methods.language_models.medusa.prompts import KINDS, encode_prompts, make_prompts
from tradeoff.methods.language_models.medusa.tree import grow, joint_score, replay
from tradeoff.nn.decoder import Decoder, DecoderConfig
from tradeoff.nn.decoder.loading import from_pretrained

TREES = {
    "chain": [(0,), (0, 0), (0, 0, 0)],
    "sparse": [(0,), (1,), (2,), (3,), (0, 0), (0, 1), (1, 0), (0, 0, 0)],
    "cartesian": list(cartesian([2, 2, 2])),
    "wide": list(cartesian([3, 4, 4])),  # 63 nodes
}


KNOWN: dict[str, dict[str, torch.Tensor]] = {}
"""Weights of heads that were trained before; the same training gives the same ones."""


def trained(model: Decoder, data: Distilled, epochs: int = 80) -> MedusaHeads:
    """Heads that know their text well, over a part of the vocabulary."""
    tokens = frequent_tokens(data.tokens, model.config.vocab, min(50, model.config.vocab))
    heads = MedusaHeads.from_backbone(model, 3, draft_tokens=tokens)
    key = f"{heads.config} {data.replies} {epochs}"
    if key not in KNOWN:
        train_heads(heads, data, head_training(epochs, batch_size=64, learning_rate=5e-2))
        KNOWN[key] = heads.state_dict()
    heads.load_state_dict(KNOWN[key])
    return heads


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("kind", ["trained", "as they start"])
def test_greedy_text_is_the_plain_loops(model: Decoder, data: Distilled, tree: str, kind: str) -> None:
    heads = trained(model, data) if kind == "trained" else MedusaHeads.from_backbone(model, 3)
    model.kernels = NativeKernels()
    decoder = MedusaDecoder(model, heads, TREES[tree])
    several = 0
    for prompt in data.prompts[:6]:
        plain, ours = generate(model, list(prompt), 24), decoder.generate(list(prompt), 24)
        assert ours.ids == plain.ids
        several += plain.steps - ours.steps
    assert several > 30 if kind == "trained" else several >= 0


@pytest.fixture(scope="module")
def larger() -> tuple[Decoder, Distilled, list[list[int]]]:
    """A decoder over 512 tokens, what it wrote behind 20 prompts, and its plain text of 64 tokens."""
    config = DecoderConfig(vocab=512, dim=64, layers=2, heads=4, max_len=128, init_std=0.3)
    model = Decoder(config, torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(512, (1 + i,), generator=generator).tolist() for i in range(20)]
    data = self_distill(model, prompts, 64)
    model.kernels = NativeKernels()
    return model, data, [out.ids for out in generate_batch(model, prompts, 64)]


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("kind", ["trained", "as they start"])
def test_twenty_texts_are_the_plain_loops(
    larger: tuple[Decoder, Distilled, list[list[int]]], tree: str, kind: str
) -> None:
    model, data, texts = larger
    heads = trained(model, data, epochs=20) if kind == "trained" else MedusaHeads.from_backbone(model, 3)
    outs = MedusaDecoder(model, heads, TREES[tree]).generate_batch(list(map(list, data.prompts)), 64)
    assert [out.ids for out in outs] == texts
    assert kind != "trained" or sum(out.steps for out in outs) < 0.7 * 20 * 63


def test_rows_of_a_batch_are_the_rows_alone(model: Decoder, data: Distilled) -> None:
    model.kernels = NativeKernels()
    decoder = MedusaDecoder(model, trained(model, data), TREES["sparse"])
    prompts = [list(prompt) for prompt in data.prompts[:5]]
    assert len({len(prompt) for prompt in prompts}) > 1
    end = data.replies[0][7]
    together = decoder.generate_batch(prompts, 24, eos=(end,))
    alone = [decoder.generate(prompt, 24, eos=(end,)) for prompt in prompts]
    assert [out.ids for out in together] == [out.ids for out in alone]
    assert [out.accept_lengths for out in together] == [out.accept_lengths for out in alone]
    assert "eos" in {out.finish for out in alone}


def test_replay_predicts_the_steps_exactly(model: Decoder, data: Distilled) -> None:
    heads = trained(model, data)
    ranks = guess_ranks(heads, data)
    tree = grow(joint_score(ranks), 6, depth=3)
    model.kernels = NativeKernels()
    decoder = MedusaDecoder(model, heads, tree)
    outs = [decoder.generate(list(prompt), 24) for prompt in data.prompts]
    measured = sum(len(out.ids) - 1 for out in outs) / sum(out.steps for out in outs)
    # heads train and count with torch's kernels, which may order nearly equal guesses otherwise
    assert replay(ranks, data, tree) == pytest.approx(measured, rel=0.02)
    assert measured > 1.5


@pytest.mark.parametrize("acceptance", [Sample(0.8), Sample(1.0, top_p=0.7)], ids=["all", "nucleus"])
def test_sampled_text_is_the_plain_loops_for_equal_seeds(
    model: Decoder, data: Distilled, acceptance: Acceptance
) -> None:
    model.kernels = NativeKernels()
    decoder = MedusaDecoder(model, trained(model, data), TREES["sparse"], acceptance)
    for seed, prompt in enumerate(data.prompts[:5]):
        plain = generate(model, list(prompt), 20, acceptance=acceptance, seed=seed)
        assert decoder.generate(list(prompt), 20, seed=seed).ids == plain.ids


def test_rejection_keeps_the_backbones_distribution(model: Decoder, data: Distilled) -> None:
    """The second new token given the first, of many texts, against the exact probabilities."""
    heads = trained(model, data)
    model.kernels = NativeKernels()
    prompt, samples = list(data.prompts[0]), 900
    decoder = MedusaDecoder(model, heads, TREES["sparse"], Rejection(0.5))
    counts: dict[int, dict[int, int]] = {}
    for out in decoder.generate_batch([prompt] * samples, 2):
        row = counts.setdefault(out.ids[0], {})
        row[out.ids[1]] = row.get(out.ids[1], 0) + 1
    first, row = max(counts.items(), key=lambda item: sum(item[1].values()))
    with torch.no_grad():
        exact = (model(torch.tensor([[*prompt, first]]))[0, -1] / 0.5).softmax(-1)
    total = sum(row.values())
    large = [token for token in range(64) if exact[token] * total >= 5]
    observed = [row.get(token, 0) for token in large]
    expected = [float(exact[token]) * total for token in large]
    observed.append(total - sum(observed))
    expected.append(total - sum(expected))
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True) if e > 1)
    from scipy.stats import chi2

    assert total > 100
    assert chi2.sf(statistic, len(large)) > 0.01


def test_typical_acceptance_without_temperature_is_greedy(model: Decoder, data: Distilled) -> None:
    heads = trained(model, data)
    model.kernels = NativeKernels()
    prompt = list(data.prompts[0])
    typical = MedusaDecoder(model, heads, TREES["sparse"], Typical(temperature=0.0)).generate(prompt, 24)
    assert typical.ids == generate(model, prompt, 24).ids


def test_the_stream_is_the_text(model: Decoder, data: Distilled) -> None:
    model.kernels = NativeKernels()
    decoder = MedusaDecoder(model, trained(model, data), TREES["chain"])
    prompt = list(data.prompts[2])
    parts = list(decoder.stream(prompt, 24))
    assert [token for part in parts for token in part] == decoder.generate(prompt, 24).ids
    assert max(map(len, parts)) > 1


def test_plain_decoding_is_chosen_and_no_head_is_evaluated(
    model: Decoder, data: Distilled, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = MedusaHeads.from_backbone(model)
    with torch.no_grad():
        heads.blocks[0][0].linear.weight.normal_(0, 3, generator=torch.Generator().manual_seed(0))
    found = calibrate_tree(heads, data, StepCost((1, 33), (1.3, 3.0), 1.0))
    assert found.paths == ()

    def never(*_: object) -> None:
        raise AssertionError("a head was evaluated")

    monkeypatch.setattr(MedusaHeads, "guesses", never)
    decoder = MedusaDecoder(model, heads, found.paths)
    assert decoder.generate([1, 2, 3], 10).ids == generate(model, [1, 2, 3], 10).ids


def test_the_proposer_fills_the_tree(model: Decoder, data: Distilled) -> None:
    from tradeoff.engines.decoding import Front

    heads = trained(model, data, epochs=2)
    proposer = MedusaProposer(heads, TREES["sparse"])
    hidden = torch.randn(2, 32)
    draft = proposer.propose(Front(hidden, (1, 2), [[1], [2]], (0, 1)))
    guesses = heads.guesses(hidden, 4)
    for node, path in enumerate(proposer.paths):
        assert torch.equal(draft.tokens[:, node], guesses[len(path) - 1][:, path[-1]])
        parent = draft.parents[node]
        assert path[:-1] == (() if parent == -1 else proposer.paths[parent])
    assert proposer.calls == 1
    assert proposer.nodes == 8


def test_what_does_not_fit_is_refused(model: Decoder, data: Distilled) -> None:
    heads = MedusaHeads.from_backbone(model, 2)
    with pytest.raises(InvalidTree, match="2 heads"):
        MedusaDecoder(model, heads, TREES["chain"])
    other = Decoder(model.config, torch.Generator().manual_seed(3))
    with pytest.raises(HeadsMismatch, match="trained for the backbone"):
        MedusaDecoder(other, heads, [(0,)])
    decoder = MedusaDecoder(model, heads, [(0,)])
    with pytest.raises(ValueError, match="at least one token"):
        decoder.generate([], 4)
    with pytest.raises(ValueError, match="256"):
        decoder.generate([1] * 250, 10)
    with torch.no_grad():
        model.blocks[1].ffn.down.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        MedusaDecoder(model, MedusaHeads.from_backbone(model, 2), [(0,)]).generate([1], 4)


def test_the_cost_of_a_step_is_measured(model: Decoder) -> None:
    model.kernels = NativeKernels()
    cost = measure_cost(model, MedusaHeads.from_backbone(model), context=16, max_nodes=8, rounds=2)
    assert cost.rows == (1, 2, 3, 4, 5, 6, 7, 9)
    assert list(cost.ratio) == sorted(cost.ratio)
    assert cost.ratio[0] > 1
    assert cost.plain_seconds > 0


FAMILIES = {
    "llama": (transformers.LlamaConfig, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "mistral": (transformers.MistralConfig, {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, {}),
    "smollm2": (transformers.LlamaConfig, {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_heads_and_decodes_its_own_text(family: str, tmp_path: Path) -> None:
    kind, extra = FAMILIES[family]
    config = kind(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
        **extra,
    )
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    model = from_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(96, (4,), generator=generator).tolist() for _ in range(6)]
    data = self_distill(model, prompts, 20)
    heads = trained(model, data, epochs=60)
    model.kernels = NativeKernels()
    decoder = MedusaDecoder(model, heads, TREES["sparse"])
    saved = 0
    for prompt in prompts:
        plain, ours = generate(model, prompt, 20), decoder.generate(prompt, 20)
        assert ours.ids == plain.ids
        saved += plain.steps - ours.steps
        ids = torch.tensor([prompt])
        reference = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
        )
        assert reference[0, 4:].tolist() == plain.ids
    assert saved > 5


@pytest.mark.slow
@pytest.mark.timeout(2400)  # two minutes of one core, which a busy machine may take long for
def test_smollm2_decodes_its_own_text() -> None:
    try:
        backbone = load_backbone("smollm2")
    except DataError as error:
        pytest.skip(str(error))
    model = backbone.model

    def texts(split: str, count: int, tokens: int) -> Distilled:
        prompts = [
            ids
            for kind in KINDS
            for ids in encode_prompts(make_prompts(kind, count, split), kind, backbone.tokenizer)
        ]
        return self_distill(model, prompts, tokens, end_tokens=backbone.end_tokens)

    data, held_out = texts("train", 8, 32), texts("held-out", 2, 32)
    heads = MedusaHeads.from_backbone(
        model, 3, draft_tokens=frequent_tokens(data.tokens, model.config.vocab, 1024)
    )
    untrained = (guess_ranks(heads, held_out)[:, 0] == 0).float().mean()
    train_heads(heads, data, head_training(6, batch_size=128))
    accuracy = (guess_ranks(heads, held_out)[:, 0] == 0).float().mean()
    assert accuracy > untrained
    model.kernels = NativeKernels()
    tree = calibrate_tree(heads, held_out, StepCost((1, 33), (1.05, 1.5), 1.0)).paths
    decoder = MedusaDecoder(model, heads, tree)
    saved = 0
    for prompt in held_out.prompts:
        plain = generate(model, list(prompt), 32, eos=backbone.end_tokens)
        ours = decoder.generate(list(prompt), 32, eos=backbone.end_tokens)
        assert ours.ids == plain.ids
        saved += plain.steps - ours.steps
    assert saved > 0
    assert isinstance(decoder.acceptance, Greedy)
