"""The rules against values worked out by hand, against mup, and against a dense layer cut into experts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tradeoff.methods.language_models.complete_mue import (
    Anatomy,
    Base,
    Experts,
    Ratios,
    Role,
    TransferError,
    Tuned,
    make_plan,
    normalized_gates,
    parametrize,
    scaled_betas,
    values,
)
from tradeoff.nn.decoder import Decoder, DecoderConfig, MoEConfig

ETA, DECAY, EPS, SIGMA = 2.0**-6, 0.1, 1e-8, 0.125
S = math.sqrt(0.5)  # of a batch 8 times as large in a training 16 times as long


def tuned(**changes) -> Tuned:
    return Tuned(**{"learning_rate": ETA, "weight_decay": DECAY, "eps": EPS, "init_std": SIGMA, **changes})


def config(**changes) -> DecoderConfig:
    """A decoder that has a tensor of every role that a dense one can have."""
    return DecoderConfig(
        **{
            "dim": 16, "heads": 2, "layers": 2, "hidden": 64, "tie_embeddings": False, "qk_norm": True,
            "norm": "layer", "pos": "learned", "bias": True, "ffn": "gelu", "max_len": 8, **changes,
        }
    )  # fmt: skip


SMALL = config()
LARGE = config(dim=64, heads=8, layers=4, hidden=256)


def base(small: DecoderConfig = SMALL, **changes) -> Base:
    return Base(Decoder(small), tuned(**changes), 1000, 100_000)


def rows(large: DecoderConfig, made: Base, batch: int = 8000, total: int = 1_600_000):
    plan = make_plan(Decoder(large), made, batch_tokens=batch, total_tokens=total)
    units = (SIGMA, ETA * S, DECAY * S, EPS / S)
    return plan, {
        row.name: tuple(
            value / unit
            for value, unit in zip(
                (row.std, row.learning_rate, row.weight_decay, row.eps), units, strict=True
            )
        )
        for row in plan.rows
    }


EMBEDDING, HIDDEN, GAIN = (1, 1, 1, 1 / 4), (1 / 2, 1 / 4, 4, 1 / 8), (0, 1, 0, 1 / 8)
DENSE = {
    "embedding.weight": EMBEDDING,
    "positions.weight": EMBEDDING,
    **{
        f"blocks.*.{norm}.{part}": GAIN
        for norm in ("attention_norm", "ffn_norm")
        for part in ("weight", "bias")
    },
    **{f"blocks.*.attention.{name}.weight": HIDDEN for name in ("query", "key", "value", "output")},
    **{f"blocks.*.attention.{name}.bias": GAIN for name in ("query", "key", "value", "output")},
    **{f"blocks.*.attention.{name}_norm.weight": (0, 1, 0, 1 / 2) for name in ("query", "key")},
    **{f"blocks.*.ffn.{name}.weight": HIDDEN for name in ("up", "down")},
    **{f"blocks.*.ffn.{name}.bias": GAIN for name in ("up", "down")},
    "norm.weight": (0, 1, 0, 1 / 4),
    "norm.bias": (0, 1, 0, 1 / 4),
    "head.weight": EMBEDDING,
}
"""Initial deviation, rate, decay, eps by sigma, eta s, lambda s, eps / s; m_N 4, m_L 2, m_B 8, m_D 16."""


def test_golden_table_of_a_dense_decoder():
    plan, found = rows(LARGE, base())
    assert found.keys() == DENSE.keys()
    for name, wanted in DENSE.items():
        assert found[name] == pytest.approx(wanted, rel=1e-12), name
    assert (plan.residual_multiplier, plan.logits_multiplier) == (1 / 2, 1 / 4)
    assert (plan.attention_multiplier, plan.gate_multiplier, plan.steps_ratio) == (1, 1, 2)
    assert plan.betas == pytest.approx((0.95, 0.975), rel=1e-12)
    assert plan.row("norm.weight").fill == plan.row("blocks.0.ffn_norm.weight").fill == 1
    assert plan.row("norm.bias").fill == plan.row("blocks.0.ffn.up.bias").fill == 0


def test_golden_values_of_the_other_output_form_half_depth_and_vector_decay():
    plan, found = rows(LARGE, base(output="variance", alpha=0.5, vector_decay=DECAY))
    root = math.sqrt(2)
    assert plan.logits_multiplier == 1
    assert plan.residual_multiplier == pytest.approx(1 / root)
    for name, wanted in {
        "head.weight": (1 / 4, 1 / 4, 4, 1),
        "embedding.weight": EMBEDDING,
        "blocks.*.ffn.up.weight": (1 / 2, 1 / 4 / root, 4, 1 / 4 / root),
        "blocks.*.ffn_norm.weight": (0, 1 / root, 1, 1 / 4 / root),
        "blocks.*.attention.key_norm.weight": (0, 1 / root, 0, 1 / root),
        "norm.weight": (0, 1, 0, 1 / 4),
    }.items():
        assert found[name] == pytest.approx(wanted, rel=1e-12), name
    assert rows(LARGE, base(output="variance", output_zero=True))[1]["head.weight"][0] == 0


def test_golden_table_of_a_mixture_whose_active_width_is_not_the_models():
    mixture = MoEConfig(8, 2, 48, shared=1, activation="swiglu")  # active width 144: 2.25 times the base's 64
    small = config(ffn="swiglu", bias=False)
    large = config(ffn=mixture, bias=False, dim=64, heads=8, layers=4, hidden=256)
    plan, found = rows(large, base(small))
    inwards, share = HIDDEN, 1 / 4
    routed = (*inwards[:3], inwards[3] * share)
    for name, wanted in {
        "blocks.*.ffn.router.weight": (1 / 4, 1 / 4, 4, 1 / 2 * share),
        "blocks.*.ffn.experts.gate": routed,
        "blocks.*.ffn.experts.up": routed,
        "blocks.*.ffn.experts.down": (1 / 1.5, 1 / 2.25, 2.25, 1 / 8 * share),
        "blocks.*.ffn.shared.gate.weight": inwards,
        "blocks.*.ffn.shared.up.weight": inwards,
        "blocks.*.ffn.shared.down.weight": (1 / 1.5, 1 / 2.25, 2.25, 1 / 8),
    }.items():
        assert found[name] == pytest.approx(wanted, rel=1e-12), name
    assert plan.gate_multiplier == 2
    assert found.keys() - {name for name in found if ".ffn." in name} == {
        name
        for name in DENSE
        if ".ffn." not in name and not (name.endswith(".bias") and ".attention." in name)
    }
    shifted = rows(large, base(small, residual_shift=0.5))[1]
    assert shifted["blocks.*.ffn.experts.up"][1] == pytest.approx(found["blocks.*.ffn.experts.up"][1] / 2)
    assert shifted["blocks.*.ffn.router.weight"] == found["blocks.*.ffn.router.weight"]


def test_a_target_like_its_base_gets_torchs_own_values():
    torch.manual_seed(0)
    model = Decoder(config(dim=64, heads=8, hidden=256, init_std=SIGMA))
    groups = parametrize(model, Base(Decoder(model.config), tuned(), 1000, 100_000))
    for group in groups:
        assert (group["lr"], group["eps"], group["betas"]) == (ETA, EPS, (0.9, 0.95))
        assert group["weight_decay"] in (0, DECAY)
    fresh = Decoder(model.config)
    for (name, ours), theirs in zip(model.named_parameters(), fresh.parameters(), strict=True):
        if ours.ndim > 1 and "norm" not in name:
            assert float(ours.detach().std()) == pytest.approx(float(theirs.detach().std()), rel=0.1), name
        else:
            assert torch.equal(ours, theirs), name
    assert model.config == fresh.config or model.config.attn_scale == fresh.config.score_scale


def split_weights(dense: Decoder, mixture: Decoder, experts: int) -> None:
    """Cut the hidden units of a dense decoder into experts; all other weights are copied."""
    source = dict(dense.named_parameters())
    with torch.no_grad():
        for name, parameter in mixture.named_parameters():
            if ".ffn.experts." in name:
                whole = source[name.replace("experts.", "") + ".weight"]
                parts = whole.chunk(experts, dim=1 if "down" in name else 0)
                parameter.copy_(torch.stack(parts))
            elif ".router." not in name:
                parameter.copy_(source[name])


@pytest.mark.parametrize("experts", [2, 4, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_a_dense_layer_cut_into_experts_trains_like_the_dense_layer(experts, dtype, tolerance):
    """Bridge I: with equal gates, frozen, and the same weights, outputs and 20 steps are the same.

    In float32 to 1e-5 at first; steps of Adam along tiny gradients make 2e-5 of that in the end.
    """
    common = {"dim": 32, "heads": 4, "layers": 2, "hidden": 128, "tie_embeddings": False}
    dense = Decoder(DecoderConfig(**common)).to(dtype)
    cut = Decoder(DecoderConfig(**common, ffn=MoEConfig(experts, experts, 128 // experts))).to(dtype)
    small = Base(
        Decoder(DecoderConfig(**{**common, "dim": 16, "heads": 2, "hidden": 64})), tuned(), 1000, 100_000
    )
    torch.manual_seed(0)
    groups = [parametrize(model, small) for model in (dense, cut)]
    split_weights(dense, cut, experts)
    for name, parameter in cut.named_parameters():
        if ".router." in name:
            assert not parameter.any()
            parameter.requires_grad_(False)
    optimizers = [torch.optim.AdamW(each) for each in groups]
    ids = torch.randint(256, (21, 2, 12), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(dense(ids[0]), cut(ids[0]), rtol=0, atol=tolerance / 10)
    for batch in ids[1:]:
        for model, optimizer in zip((dense, cut), optimizers, strict=True):
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()
    assert torch.allclose(dense(ids[0]), cut(ids[0]), rtol=0, atol=tolerance)


def test_scaling_an_expert_by_its_own_width_does_not_train_like_the_dense_layer():
    """What the test above must not let pass: values are then others, and others at each granularity."""
    large = config(ffn=MoEConfig(8, 8, 8), bias=False)
    plan, _ = rows(large, base(config(bias=False)), 1000, 100_000)
    row = plan.row("blocks.0.ffn.experts.down")
    assert (row.fan_in, row.base_fan_in, row.learning_rate) == (64, 64, ETA)
    wrong = values(Role.EXPERT_OUT, tuned(), Ratios(), fan=row.shape[-1] / row.base_fan_in)
    assert wrong.learning_rate == 8 * row.learning_rate


def mixture_rows(experts: int, active: int, width: int, batch: int = 1000, total: int = 100_000):
    large = config(ffn=MoEConfig(experts, active, width), bias=False, dim=64, heads=8, hidden=256)
    plan, _ = rows(large, base(config(bias=False)), batch, total)
    return {
        row.name.rpartition(".")[2]: (row.std, row.learning_rate, row.weight_decay, row.eps)
        for row in plan.rows
        if ".experts." in row.name
    }


def test_the_number_of_experts_changes_eps_alone():
    """Bridge II: fewer tokens a step and fewer tokens in all for an expert cancel in rate and decay."""
    made = [mixture_rows(experts, 2, 128) for experts in (8, 16, 64)]
    for name, first in made[0].items():
        for other, factor in ((made[1], 2), (made[2], 8)):
            assert other[name][:3] == first[:3]
            assert first[3] == pytest.approx(factor * other[name][3], rel=1e-12)
    longer = mixture_rows(16, 2, 128, 2000, 800_000)
    for name, first in made[1].items():
        assert longer[name][1] == pytest.approx(
            first[1] / 2, rel=1e-12
        )  # s of the global ratios: sqrt(2 / 8)
        assert longer[name][2] == pytest.approx(first[2] / 2, rel=1e-12)


def test_granularity_changes_nothing():
    coarse, fine, finest = (mixture_rows(8 * g, 2 * g, 128 // g) for g in (1, 2, 4))
    assert coarse == fine == finest


def test_a_base_that_is_a_mixture_itself():
    small, large = (config(ffn=MoEConfig(experts, 2, 32), bias=False, dim=16, heads=2) for experts in (4, 16))
    plan, _ = rows(large, base(small), 1000, 100_000)
    row = plan.row("blocks.0.ffn.experts.down")
    assert (row.share, row.fan_in, row.base_fan_in) == (1 / 4, 64, 64)
    assert row.learning_rate == ETA


@settings(max_examples=50)
@given(st.integers(1, 8), st.integers(0, 2**16), st.sampled_from(["mean", "rms"]))
def test_gates_have_the_size_of_one_expert_each(active, seed, form):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 8, generator=generator, dtype=torch.float64)
    chosen = logits.topk(active).values
    for gates in (chosen.softmax(-1), logits.softmax(-1).topk(active).values, chosen.sigmoid()):
        made = normalized_gates(gates, form=form)
        total = made.sum(-1) if form == "mean" else made.square().sum(-1)
        assert torch.allclose(total, torch.full((7,), float(active), dtype=torch.float64))
    equal = normalized_gates(torch.full((3, active), 0.3, dtype=torch.float64), form=form)
    assert torch.allclose(equal, torch.ones_like(equal))


def test_gates_of_varying_sets_and_bad_ones():
    gates = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    assert torch.allclose(normalized_gates(gates, active=2.5).sum(-1), torch.tensor([2.5, 2.5]))
    assert torch.allclose(normalized_gates(gates).sum(-1), torch.tensor([2.0, 3.0]))
    assert torch.allclose(normalized_gates(gates, 2.5, "rms").square().sum(-1), torch.tensor([2.5, 2.5]))
    for bad, message in (
        ([[0.5, -0.1]], "a gate is -0.1"),
        ([[0.5, math.nan]], "a gate is nan"),
        ([[0.0, 0.0]], "passes no expert"),
    ):
        with pytest.raises(TransferError, match=message):
            normalized_gates(torch.tensor(bad))


@pytest.mark.parametrize("router", ["top_k", "sigmoid", "top_p", "dtop_p"])
@pytest.mark.parametrize("shared", [0, 1])
def test_a_parametrized_mixture_has_gates_of_mean_one(router, shared):
    """Of the active experts; of top-p, of the number that is aimed at. Shared ones have gate 1 anyway."""
    mixture = MoEConfig(8, 4, 64, router=router, shared=shared)
    model = Decoder(DecoderConfig(dim=64, heads=4, hidden=256, ffn=mixture))
    parametrize(model, Base(Decoder(DecoderConfig(dim=64, heads=4, hidden=256)), tuned(), 1000, 100_000))
    layer = model.moe_layers[0]
    routing = layer.router(torch.randn(50, 64))
    assert torch.allclose(routing.weights.sum(-1), torch.tensor(4.0))
    assert model.config.ffn.gate_scale == layer.config.gate_scale == 4


def test_grouped_and_shared_experts_count_what_is_added():
    experts = Experts.grouped([(4, 1), (8, 2)], width=32, shared_width=64)
    assert (experts.total, experts.active, experts.active_width, experts.share) == (12, 3, 160, 1 / 4)
    with pytest.raises(TransferError, match="9 active of 8 experts"):
        Experts(8, 9, 32)


class Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.hidden, self.last = (
            nn.Linear(10, width),
            nn.Linear(width, width),
            nn.Linear(width, 5),
        )


PERCEPTRON = {
    "first.weight": Role.EMBEDDING, "hidden.weight": Role.HIDDEN, "last.weight": Role.OUTPUT,
    "last.bias": Role.FINAL_BIAS, "*.bias": Role.BIAS,
}  # fmt: skip


def test_width_rules_are_those_of_mup():
    """Rates and decays of its groups, for a perceptron and a decoder, at three times the width."""
    mup = pytest.importorskip("mup")
    common = {"layers": 2, "tie_embeddings": False, "ffn": "gelu", "max_len": 8}
    decoders = [Decoder(DecoderConfig(**common, dim=w, hidden=4 * w, heads=w // 8)) for w in (16, 32, 48)]
    anatomies = [Anatomy(width, 1, PERCEPTRON, logits="last") for width in (16, 32, 48)]
    cases = [
        (decoders, [None] * 3),
        ([Perceptron(width) for width in (16, 32, 48)], anatomies),
    ]
    for (small, between, large), (old, _, new) in cases:
        mup.set_base_shapes(large, small, delta=between, do_assert=False, rescale_params=False)
        theirs = {
            id(p): (group["lr"], group["weight_decay"])
            for group in mup.MuAdamW(large.parameters(), lr=ETA, weight_decay=DECAY).param_groups
            for p in group["params"]
        }
        groups = parametrize(
            large,
            Base(small, tuned(vector_decay=DECAY), 1000, 100_000, old),
            anatomy=new,
        )
        for group in groups:
            for parameter in group["params"]:
                rate, decay = theirs.pop(id(parameter))
                assert group["lr"] == pytest.approx(rate)
                if group["weight_decay"]:  # gains before the output have none here
                    assert group["weight_decay"] == pytest.approx(decay)
        assert not theirs


@pytest.mark.parametrize("name", ["width", "depth", "batch", "tokens"])
@pytest.mark.parametrize("ratio", [0, -1, math.nan, math.inf])
def test_ratios_must_mean_something(name, ratio):
    with pytest.raises(TransferError, match=f"the ratio of {name}"):
        Ratios(**{name: ratio})


def test_betas():
    assert scaled_betas((0.9, 0.95), Ratios(batch=2, tokens=2)) == (0.9, 0.95)
    assert scaled_betas((0.9, 0.95), Ratios(batch=4)) == pytest.approx((0.6, 0.8))
    with pytest.raises(
        TransferError, match=r"become -0\.6 and 0\.2 .* lower the batch by 1\.6 times or more"
    ):
        scaled_betas((0.9, 0.95), Ratios(batch=16))
