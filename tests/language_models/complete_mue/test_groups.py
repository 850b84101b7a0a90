"""Parameter groups and plans of real models, files and the command line, and what is refused."""

import json
import warnings

import pytest
import torch
from torch import nn

from tradeoff.methods.language_models.complete_mue import (
    Anatomy,
    Base,
    Experts,
    Plan,
    Role,
    TransferError,
    Tuned,
    UnknownRole,
    anatomy_of,
    make_plan,
    parametrize,
)
from tradeoff.methods.language_models.complete_mue.files import plan_files
from tradeoff.nn.decoder import Decoder, DecoderConfig, MoEConfig

SMALL = DecoderConfig(dim=32, heads=4, layers=2, hidden=64, tie_embeddings=False)
LARGE = DecoderConfig(dim=64, heads=8, layers=4, hidden=128, tie_embeddings=False)
TUNED = Tuned(learning_rate=2**-6, weight_decay=0.1, init_std=0.1)


def base(config: DecoderConfig = SMALL, tuned: Tuned = TUNED) -> Base:
    return Base(Decoder(config), tuned, 1000, 100_000)


def test_the_decoder_gets_its_multipliers_once_however_often_it_is_done():
    model = Decoder(LARGE)
    for _ in range(2):
        groups = parametrize(model, base())
        assert model.config.residual_multiplier == model.blocks[3].multiplier == 1 / 2
        assert model.config.logits_multiplier == 1 / 2
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
    ids = torch.randint(256, (1, 5))
    plain = Decoder(model.config)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(ids), model(ids))  # the configuration says all that the model does


def test_wider_heads_get_smaller_scores():
    model = Decoder(DecoderConfig(dim=64, heads=4, layers=2, hidden=128, tie_embeddings=False))
    groups = parametrize(model, base())
    assert groups.plan.attention_multiplier == 1 / 2  # 16 over 8
    assert model.blocks[0].attention.scale == model.config.score_scale == 8**-0.5 / 2


def test_weights_follow_the_generator_and_the_plan():
    models = [Decoder(LARGE) for _ in range(2)]
    for model in models:
        groups = parametrize(model, base(), generator=torch.Generator().manual_seed(3))
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
        row = groups.plan.row(name)
        if row.std:
            assert float(a.detach().std()) == pytest.approx(row.std, rel=0.15)
        else:
            assert bool((a == row.fill).all())


def test_tied_embeddings_are_one_tensor():
    tied = [DecoderConfig(dim=w, heads=w // 8, layers=2, hidden=2 * w) for w in (32, 64)]
    model = Decoder(tied[1])
    groups = parametrize(model, base(tied[0]))
    assert sum(p is model.embedding.weight for group in groups for p in group["params"]) == 1
    assert groups.plan.row("embedding.weight").role is Role.EMBEDDING
    assert groups.plan.logits_multiplier == 1 / 2
    with pytest.raises(TransferError, match="tied embeddings have one variance"):
        make_plan(model, base(tied[0], TUNED.model_copy(update={"output": "variance"})))


@pytest.mark.parametrize(
    ("attention", "sizes"),
    [("mla", {"kv_rank": 16, "q_rank": 24}), ("mlra4", {"kv_rank": 32}), ("gla2", {"kv_rank": 16})],
)
def test_every_kind_of_attention_has_roles(attention, sizes):
    common = {"layers": 1, "attention": attention, "nope_dim": 8, "rope_dim": 4, "attention_gate": True}
    small, large = (
        DecoderConfig(**common, dim=w, heads=4 * w // 32, **{k: v * w // 32 for k, v in sizes.items()})
        for w in (32, 64)
    )
    plan = make_plan(Decoder(large), base(small))
    assert plan.row("blocks.0.attention.latent_down.weight").learning_rate == TUNED.learning_rate / 2
    up = next(row for row in plan.rows if "latent_up" in row.name)
    assert (up.fan_in / up.base_fan_in, up.learning_rate) == (2, TUNED.learning_rate / 2)


@pytest.mark.parametrize("router", ["top_k", "top_p", "dtop_p", "sigmoid", "expert_choice"])
def test_every_router_has_roles(router):
    large = DecoderConfig(
        dim=64,
        heads=8,
        layers=2,
        tie_embeddings=False,
        hidden=128,
        ffn=MoEConfig(4, 2, router=router, shared=1),
    )
    plan = make_plan(Decoder(large), base())
    assert plan.row("blocks.0.ffn.router.weight").role is Role.ROUTER
    assert plan.row("blocks.0.ffn.experts.down").fan_in == 2 * 64 + 64


def hugging_face(kind: str, width: int, **changes):
    transformers = pytest.importorskip("transformers")
    config = {
        "vocab_size": 64, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": width // 8, "num_key_value_heads": width // 16, "head_dim": 8,
        "tie_word_embeddings": False, **changes,
    }  # fmt: skip
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**config))


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_models_of_transformers_get_the_values_of_the_decoder(kind):
    small, large = hugging_face(kind, 32), hugging_face(kind, 64, num_hidden_layers=4)
    groups = parametrize(large, Base(small, TUNED, 1000, 100_000))
    ours = make_plan(Decoder(LARGE), base())
    for theirs, name in {
        "model.embed_tokens.weight": "embedding.weight",
        "model.layers.0.self_attn.q_proj.weight": "blocks.0.attention.query.weight",
        "model.layers.3.mlp.down_proj.weight": "blocks.0.ffn.down.weight",
        "model.layers.3.input_layernorm.weight": "blocks.0.attention_norm.weight",
        "model.norm.weight": "norm.weight",
        "lm_head.weight": "head.weight",
    }.items():
        a, b = groups.plan.row(theirs), ours.row(name)
        assert (a.role, a.std, a.learning_rate, a.weight_decay, a.eps) == (
            b.role, b.std, b.learning_rate, b.weight_decay, b.eps,
        )  # fmt: skip
    ids = torch.arange(6)[None]
    scaled = large(ids).logits
    for handle in groups.multipliers:
        handle.remove()
    assert len(groups.multipliers) == 4 * 2 + 1
    assert not torch.allclose(large(ids).logits, scaled)


def test_a_mixture_of_transformers_gets_gates_of_size_one():
    small = hugging_face("Llama", 32)
    large = hugging_face("Mixtral", 32, num_local_experts=4, num_experts_per_tok=2, intermediate_size=32)
    groups = parametrize(large, Base(small, TUNED, 1000, 100_000))
    assert anatomy_of(large).experts == Experts(4, 2, 32)
    plan = groups.plan
    assert plan.row("model.layers.0.mlp.experts.down_proj").fan_in == 64
    assert plan.row("model.layers.0.mlp.experts.gate_up_proj").role is Role.EXPERT_IN
    assert plan.row("model.layers.0.mlp.gate.weight").role is Role.ROUTER
    block, x = large.model.layers[0].mlp, torch.randn(1, 3, 32)
    doubled = block(x)
    for handle in groups.multipliers:
        handle.remove()
    first = block(x)
    first, doubled = (out[0] if isinstance(out, tuple) else out for out in (first, doubled))
    assert torch.allclose(doubled, 2 * first)


class Tiny(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner, self.odd = nn.Linear(width, width), nn.Parameter(torch.zeros(width))


def test_tensors_without_a_role_are_listed():
    roles = {"inner.weight": Role.HIDDEN, "inner.bias": Role.BIAS}
    with pytest.raises(UnknownRole, match=r"1 tensors have no role: odd \(8,\)"):
        Base(Tiny(), TUNED, 10, 100, Anatomy(8, 1, roles))
    with pytest.raises(UnknownRole, match=r"odd \(8,\), which is no matrix but hidden"):
        Base(Tiny(), TUNED, 10, 100, Anatomy(8, 1, {**roles, "odd": Role.HIDDEN}))
    with pytest.raises(UnknownRole, match="Tiny is no model whose tensors are known"):
        Base(Tiny(), TUNED, 10, 100)


def test_models_that_do_not_fit_together():
    with pytest.raises(TransferError, match=r"only the base \[\], only the target .*query_norm"):
        make_plan(Decoder(DecoderConfig(dim=32, heads=4, qk_norm=True, tie_embeddings=False)), base())
    roles = {"inner.weight": Role.EXPERT_OUT, "inner.bias": Role.BIAS, "odd": Role.BIAS}
    small = Base(Tiny(), TUNED, 10, 100, Anatomy(8, 1, {**roles, "inner.weight": Role.FFN_OUT}))
    with pytest.raises(TransferError, match="belongs to experts, but the anatomy has none"):
        make_plan(Tiny(), small, anatomy=Anatomy(8, 1, roles))
    small = Base(Tiny(), TUNED, 10, 100, Anatomy(8, 1, {**roles, "inner.weight": Role.FFN_IN}))
    with pytest.raises(TransferError, match="no tensor of the role 'ffn out'"):
        make_plan(Tiny(), small, anatomy=Anatomy(8, 1, roles, experts=Experts(2, 1, 8)))
    plain = {"inner.weight": Role.HIDDEN, "inner.bias": Role.BIAS, "odd": Role.BIAS}
    small = Base(Tiny(), TUNED, 10, 100, Anatomy(8, 1, plain))
    with pytest.raises(TransferError, match=r"residual branches must be scaled by 0\.5"):
        parametrize(Tiny(), small, anatomy=Anatomy(8, 2, plain))


@pytest.mark.parametrize(("batch", "total"), [(0, 10), (-1, 10), (20, 10), (float("nan"), 10)])
def test_numbers_of_tokens(batch, total):
    with pytest.raises(TransferError, match="expected 0 < step <= training"):
        Base(Decoder(SMALL), TUNED, batch, total)


def test_a_large_batch_is_warned_of_and_then_refused():
    with pytest.warns(UserWarning, match=r"the first beta becomes 0\.4"):
        make_plan(Decoder(SMALL), base(), batch_tokens=6000)
    with pytest.raises(TransferError, match="lower the batch"):
        make_plan(Decoder(SMALL), base(), batch_tokens=20_000)


def test_optimizers_are_checked():
    model = Decoder(LARGE)
    early = torch.optim.AdamW(model.parameters(), lr=0.1)
    groups = parametrize(model, base())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups.check(torch.optim.AdamW(groups))
    with pytest.raises(TransferError, match=r"has lr 0\.1 where the rules give"):
        groups.check(early)
    with pytest.raises(TransferError, match="of which 0 are among the"):
        groups.check(torch.optim.AdamW(Decoder(LARGE).parameters()))
    with pytest.warns(UserWarning, match="Adam does not decouple decay"):
        groups.check(torch.optim.Adam([dict(group) for group in groups]))


BASE_FILE = """\
model: {dim: 64, heads: 4, layers: 2, hidden: 256, tie_embeddings: false}
tuned: {learning_rate: 0.015625, weight_decay: 0.1}
batch_tokens: 16384
total_tokens: 16777216
"""
TARGET_FILE = """\
model:
  {dim: 4096, heads: 256, layers: 48, hidden: 16384, tie_embeddings: false,
   ffn: {experts: 64, active: 4, hidden: 4096}}
batch_tokens: 32768
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE_FILE)
    (tmp_path / "target.yaml").write_text(TARGET_FILE)
    return tmp_path


def test_a_plan_of_files_without_weights_round_trips(files):
    plan = plan_files(files / "base.yaml", files / "target.yaml")
    row = plan.row("blocks.7.ffn.experts.up")
    assert row.shape == (64, 4096, 4096)
    assert row.learning_rate == pytest.approx(2**-6 * 2**0.5 / 64)
    assert (plan.width_ratio, plan.depth_ratio, plan.batch_ratio, plan.tokens_ratio) == (64, 24, 2, 1)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hidden: 16384", "hiden: 16384", r"target\.yaml: model: unknown key 'hiden'; did you mean 'hidden'"),
        ("active: 4", "activ: 4", r"model\.ffn: unknown key 'activ'"),
        ("active: 4", "active: 65", r"model\.ffn: 65 active of 64 experts"),
        ("batch_tokens: 32768", "batch_tokens: many", "batch_tokens is 'many'; it must be a number"),
        ("batch_tokens: 32768", "batch_tokens: -1", "expected 0 < step <= training"),
        ("batch_tokens: 32768", "tuned: {}", "unknown key 'tuned'"),
        ("model:", "modl:", "unknown key 'modl'"),
        ("dim: 4096", "dim: wide", "dim is 'wide'"),
        ("dim: 4096", "dim: 1048576000000", "no tensor can be as large"),
        ("dim: 4096", "rope_scaling: {type: yarn}, dim: 4096", "it is a RopeScaling"),
    ],
)
def test_target_files_that_are_wrong(files, old, new, message):
    (files / "target.yaml").write_text(TARGET_FILE.replace(old, new))
    with pytest.raises(TransferError, match=message):
        plan_files(files / "base.yaml", files / "target.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("learning_rate: 0.015625", "learning_rate: -1", "tuned: learning_rate"),
        ("learning_rate: 0.015625, ", "", "tuned: learning_rate: Field required"),
        ("total_tokens: 16777216\n", "", "has no total_tokens"),
        ("tuned: {learning_rate: 0.015625, weight_decay: 0.1}", "tuned: 3", "tuned"),
        ("model:", "model: [", "not valid YAML"),
    ],
)
def test_base_files_that_are_wrong(files, old, new, message):
    (files / "base.yaml").write_text(BASE_FILE.replace(old, new))
    with pytest.raises(TransferError, match=message):
        plan_files(files / "base.yaml", files / "target.yaml")


def test_the_command_prints_the_same_table_each_time_and_a_document(files, tradeoff):
    words = ("complete-mue", "plan", "--base", "base.yaml", "--target", "target.yaml")
    first, second, document = (
        tradeoff(*words, *more, cwd=files, env={"COLUMNS": "160"}) for more in ((), (), ("--json",))
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert "blocks.*.ffn.experts.down" in first.stdout
    plan = Plan.model_validate(json.loads(document.stdout))
    assert plan == plan_files(files / "base.yaml", files / "target.yaml")
    failed = tradeoff(*words[:4], "--target", "absent.yaml", cwd=files)
    assert failed.returncode == 2
    assert "cannot read absent.yaml" in failed.stderr
    assert "Traceback" not in failed.stderr
