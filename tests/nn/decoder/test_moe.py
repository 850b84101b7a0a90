"""Routers against brute force, dispatch against the dense sum, counters and auxiliary losses."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tradeoff.nn.decoder import (
    Decoder,
    DecoderConfig,
    DTopP,
    InvalidConfig,
    InvalidInput,
    MoE,
    MoEConfig,
    Padded,
    TopP,
)

BASE = MoEConfig(experts=6, active=2, hidden=5)
ROUTERS = ("top_k", "top_p", "dtop_p", "expert_choice", "sigmoid")


def make(config: MoEConfig, seed: int = 0) -> tuple[MoE, torch.Tensor]:
    torch.manual_seed(seed)
    layer = MoE(8, config).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.5)
    return layer, torch.randn(3, 7, 8, dtype=torch.float64)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("dispatch", ["loop", "grouped"])
@pytest.mark.parametrize("router", ROUTERS)
def test_dispatch_equals_the_dense_sum(router: str, dispatch: str, activation: str) -> None:
    config = replace(BASE, router=router, activation=activation, shared=1, gate_scale=1.5)
    results = []
    for path in ("dense", dispatch):
        layer, x = make(replace(config, dispatch=path))
        x.requires_grad_()
        out = layer(x)
        out.pow(2).sum().backward()
        results.append([out, x.grad, *(parameter.grad for parameter in layer.parameters())])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_every_expert_is_its_own_network() -> None:
    layer, x = make(BASE)
    routing = layer.router(x.flatten(0, 1))
    expected = torch.zeros(21, 8, dtype=torch.float64)
    for token, row in enumerate(x.flatten(0, 1)):
        for slot in range(2):
            e = routing.indices[token, slot]
            hidden = functional.silu(layer.experts.gate[e] @ row) * (layer.experts.up[e] @ row)
            expected[token] += routing.weights[token, slot] * (layer.experts.down[e] @ hidden)
    torch.testing.assert_close(layer(x).flatten(0, 1), expected, rtol=0, atol=1e-10)


def distributions() -> st.SearchStrategy[list[float]]:
    return (
        st.lists(st.integers(0, 4), min_size=2, max_size=8).filter(any).map(lambda n: [x / sum(n) for x in n])
    )


@settings(max_examples=500, deadline=None)
@given(distributions(), st.sampled_from([1e-9, 0.1007, 0.2513, 0.5011, 0.7547, 0.9031]))
def test_top_p_equals_brute_force(probabilities: list[float], threshold: float) -> None:
    config = MoEConfig(experts=len(probabilities), active=1, router="top_p", threshold=threshold)
    routing = TopP(4, config).double().choose(torch.tensor(probabilities, dtype=torch.float64).log()[None])
    order = sorted(range(len(probabilities)), key=lambda e: (-routing.probabilities[0, e].item(), e))
    chosen, mass = [], 0.0
    for e in order:
        if chosen and mass >= threshold:
            break
        chosen.append(e)
        mass += routing.probabilities[0, e].item()
    assert routing.indices[0][routing.mask[0]].tolist() == chosen
    assert float(routing.weights.sum()) == pytest.approx(1)
    gates = routing.gates()[0]
    assert all(float(gates[e]) == pytest.approx(float(routing.probabilities[0, e]) / mass) for e in chosen)


@pytest.mark.parametrize(("threshold", "size"), [(0.25, 1), (0.5, 2), (0.75, 3), (0.7500001, 4), (1.0, 4)])
def test_top_p_stops_when_the_mass_is_reached(threshold: float, size: int) -> None:
    router = TopP(4, MoEConfig(experts=4, router="top_p", threshold=threshold))
    routing = router.choose(torch.zeros(1, 4))
    assert routing.indices[0][routing.mask[0]].tolist() == list(range(size))


def test_top_p_sets_grow_with_the_threshold() -> None:
    router = TopP(4, replace(BASE, router="top_p"))
    logits = torch.randn(50, 6)
    sizes = []
    for threshold in torch.linspace(0.05, 1, 20):
        router.threshold.fill_(threshold)
        sizes.append(router.choose(logits).mask.sum(1))
    assert all((later >= earlier).all() for earlier, later in itertools.pairwise(sizes))
    router.config = replace(router.config, max_active=3)
    assert int(router.choose(logits).mask.sum(1).max()) == 3


def test_normalized_logits_do_not_know_scale_or_shift() -> None:
    router = DTopP(4, replace(BASE, router="dtop_p")).double()
    logits = torch.randn(50, 6, dtype=torch.float64)
    one, two = router.choose(logits), router.choose(7 * logits - 3)
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(one.indices, two.indices)
    with torch.no_grad():
        router.gain.fill_(1e4)
    assert int(router.choose(logits).mask.sum(1).max()) == 1

    def weight(gain: torch.Tensor) -> torch.Tensor:
        router.gain = torch.nn.Parameter(gain)
        del router._parameters["gain"]
        object.__setattr__(router, "gain", gain)
        return router.choose(logits).weights[:, 0]

    assert torch.autograd.gradcheck(weight, torch.tensor(0.7, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("experts", [1, 6])
def test_equal_logits_have_gradients(experts: int) -> None:
    """As behind a router that starts at zero: the root of their variance has none."""
    layer, x = make(replace(BASE, experts=experts, active=1, router="dtop_p"))
    with torch.no_grad():
        layer.router.weight.zero_()
    layer(x).pow(2).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_expert_choice_fills_every_expert() -> None:
    layer, x = make(replace(BASE, router="expert_choice"))
    layer(x)
    assert layer.slots.tolist() == [7] * 6
    with pytest.raises(InvalidInput, match="cannot decode"):
        layer.eval()(x)


def test_a_bias_evens_out_the_load() -> None:
    layer, x = make(replace(BASE, router="sigmoid"))
    x = x + 1.0  # what tokens have in common makes some experts popular

    def imbalance() -> float:
        layer.reset_counters()
        layer(x)
        return float(layer.slots.max() / layer.slots.double().mean())

    before = imbalance()
    for _ in range(200):
        layer.router.update_bias(layer.slots, 0.02)
        after = imbalance()
    assert after < 1.5 < before


def test_groups_limit_a_set() -> None:
    config = MoEConfig(8, active=3, hidden=4, router="sigmoid", groups=4, groups_kept=2)
    layer, x = make(config)
    chosen = layer.router(x.flatten(0, 1)).indices // 2
    assert all(len(set(row)) <= 2 for row in chosen.tolist())


def test_counters_leave_padding_out() -> None:
    config = DecoderConfig(vocab=20, dim=16, heads=2, ffn=replace(BASE, router="dtop_p", balance=1.0))
    model = Decoder(config)
    ids = torch.randint(20, (2, 6))
    model(ids, mask=Padded((6, 3)))
    layers = model.moe_layers
    assert [int(layer.tokens) for layer in layers] == [9, 9]
    aux = model.aux_loss()
    padded = ids.clone()
    padded[1, 3:] = 0
    counts = [layer.slots.clone() for layer in layers]
    for layer in layers:
        layer.reset_counters()
    model(padded, mask=Padded((6, 3)))
    assert all(torch.equal(layer.slots, count) for layer, count in zip(layers, counts, strict=True))
    torch.testing.assert_close(model.aux_loss(), aux)
    assert model.aux_loss() == 0
    model(ids, mask=Padded((6, 3)))
    assert layers[0].mean_active == int(layers[0].slots.sum()) / 18


def test_auxiliary_losses() -> None:
    factors = {"balance": 0.3, "entropy": 0.5, "z": 0.7}
    layer, x = make(replace(BASE, **factors))
    layer(x)
    logits = x.flatten(0, 1) @ layer.router.weight.T
    q = logits.softmax(-1)
    chosen = q.topk(2).indices
    share = torch.stack([(chosen == e).sum() for e in range(6)]) / 42
    expected = 0.3 * 6 * (share * q.mean(0)).sum() - 0.5 * (q * q.log()).sum(1).mean()
    expected = expected + 0.7 * logits.exp().sum(1).log().pow(2).mean()
    torch.testing.assert_close(layer.aux, expected)
    with torch.no_grad():
        layer.router.weight.zero_()
    layer.config = replace(BASE, balance=1.0)
    layer(x)
    assert layer.aux.item() == pytest.approx(1)
    layer.eval()(x)
    assert layer.aux is None


@pytest.mark.parametrize("router", ["top_k", "top_p", "dtop_p", "sigmoid"])
@torch.no_grad()
def test_one_token_at_a_time_is_routed_alike(router: str) -> None:
    layer, x = make(replace(BASE, router=router))
    together = layer(x)
    alone = torch.stack([layer(row[None]) for row in x.flatten(0, 1)]).view_as(together)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-12)


def test_a_router_of_ones_own() -> None:
    layer, x = make(replace(BASE, router=DTopP))
    assert isinstance(layer.router, DTopP)
    assert layer(x).shape == x.shape


def test_bfloat16_routes_in_float32() -> None:
    layer, x = make(BASE)
    layer.to(torch.bfloat16)
    assert layer.router(x.flatten(0, 1).bfloat16()).probabilities.dtype == torch.float32
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"active": 7}, "7 active of 6 experts"),
        ({"active": 0.5}, "0.5 active"),
        ({"active": 1.5}, "whole number"),
        ({"router": "hash"}, "'hash'"),
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"groups": 4}, "1 of 4 groups of 6"),
        ({"groups": 3, "active": 3}, "3 active experts do not fit 1 groups of 2"),
        ({"max_active": 0}, "max_active is 0"),
        ({"hidden": 0}, "width 0"),
        ({"dispatch": "sorted"}, "'sorted'"),
        ({"balance": -1.0}, "must not be negative"),
        ({"gate_scale": float("nan")}, "gate_scale is nan"),
        ({"router": None}, "router is None"),
        ({"hidden": 2.5}, "width 2.5"),
        ({"experts": 6.0}, "6.0 experts"),
    ],
)
def test_bad_configs(change: dict, words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        replace(BASE, **change)


def test_bad_logits_name_the_layer() -> None:
    model = Decoder(DecoderConfig(vocab=20, dim=16, heads=2, ffn=BASE))
    with torch.no_grad():
        model.blocks[1].ffn.router.weight[0, 0] = float("nan")
    with pytest.raises(InvalidInput, match="layer 1 are not finite"):
        model(torch.tensor([[1, 2]]))
    with pytest.raises(InvalidInput, match="hidden="):
        MoE(8, MoEConfig(4))
