"""Selection against brute force, mixtures against dense layers and transformers, routers by name."""

from dataclasses import replace

import pytest
import torch

from tradeoff.methods.language_models.dtop_p import ControlError
from tradeoff.methods.language_models.dtop_p.routers import RouterChoice
from tradeoff.nn.decoder import DTopP, MoE, MoEConfig, Routing, TopP

THRESHOLDS = (0.0, 1e-9, 0.1007, 0.25, 0.5, 0.7547, 0.9031, 0.999, 1.0)
KINDS = ("random", "ties", "one-hot", "uniform", "peaked")
CASES = 10_000


class Given(TopP):
    """Top-p of given probabilities."""

    def distribution(self, logits):
        return logits.log()


def distributions(kind: str, rows: int, experts: int, generator: torch.Generator) -> torch.Tensor:
    """Random probabilities of a kind, float64."""
    if kind == "one-hot":
        chosen = torch.randint(experts, (rows,), generator=generator)
        return torch.nn.functional.one_hot(chosen, experts).double()
    if kind == "uniform":
        return torch.full((rows, experts), 1 / experts, dtype=torch.float64)
    values = torch.randn(rows, experts, generator=generator, dtype=torch.float64)
    if kind == "ties":
        values = values.round()
    return (values * (5 if kind == "peaked" else 1)).softmax(-1)


def smallest_set(probabilities: list[float], threshold: float) -> list[int]:
    """Most probable first, of equals the lower index, until the mass is reached; never none."""
    order = sorted(range(len(probabilities)), key=lambda expert: (-probabilities[expert], expert))
    chosen, mass = [], 0.0
    for expert in order:
        if chosen and mass >= threshold:
            break
        chosen.append(expert)
        mass += probabilities[expert]
    return chosen


def test_ten_thousand_selections_equal_brute_force():
    generator = torch.Generator().manual_seed(0)
    seen = 0
    while seen < CASES:
        for kind in KINDS:
            for threshold in THRESHOLDS:
                experts = int(torch.randint(1, 17, (), generator=generator))
                router = Given(1, MoEConfig(experts, active=1, router="top_p")).double()
                router.threshold.fill_(threshold)
                routing: Routing = router.choose(distributions(kind, 32, experts, generator))
                for row in range(32):
                    expected = smallest_set(routing.probabilities[row].tolist(), float(router.threshold))
                    assert routing.indices[row][routing.mask[row]].tolist() == expected, (kind, threshold)
                    seen += 1


def test_dropping_the_expert_that_crosses_the_threshold_is_found():
    """The rule with the sum behind an expert in place of that before it differs from brute force."""

    class Late(Given):
        def choose(self, logits):
            routing = super().choose(logits)
            values = routing.probabilities.gather(1, routing.indices)
            return replace(routing, mask=values.cumsum(-1) <= self.threshold)

    router = Late(1, MoEConfig(4, active=1, router="top_p", threshold=0.5)).double()
    routing = router.choose(torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64))
    assert routing.indices[0][routing.mask[0]].tolist() != smallest_set([0.4, 0.3, 0.2, 0.1], 0.5)


def test_all_experts_make_the_dense_mixture():
    torch.manual_seed(0)
    layer = MoE(8, MoEConfig(4, active=4, hidden=6, router="dtop_p", threshold=0.999)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.5)
        layer.router.gain.fill_(1.0)
        x = torch.randn(20, 8, dtype=torch.float64)
        logits = x @ layer.router.weight.T
        normalized = (logits - logits.mean(1, keepdim=True)) / (
            logits.std(1, correction=0, keepdim=True) + 1e-6
        )
        weights = normalized.softmax(1)
        expected = sum(weights[:, e, None] * layer.experts.run(e, x) for e in range(4))
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)
        layer.router.gain.fill_(1e4)
        first = logits.argmax(1)
        expected = torch.stack(
            [layer.experts.run(int(e), row[None])[0] for e, row in zip(first, x, strict=True)]
        )
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dispatch", ["grouped", "loop", "dense"])
def test_top_k_equals_the_block_of_transformers(dispatch):
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=12,
        num_local_experts=6,
        num_experts_per_tok=2,
        router_jitter_noise=0.0,
    )
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    block = MixtralSparseMoeBlock(config).eval()
    layer = MoE(16, MoEConfig(6, active=2, hidden=12, dispatch=dispatch))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3)
        block.gate.weight.copy_(layer.router.weight)
        block.experts.gate_up_proj.copy_(torch.cat([layer.experts.gate, layer.experts.up], 1))
        block.experts.down_proj.copy_(layer.experts.down)
        x = torch.randn(3, 9, 16)
        out = block(x)
    torch.testing.assert_close(layer(x), out[0] if isinstance(out, tuple) else out, rtol=0, atol=1e-5)


def test_a_threshold_of_its_own_and_gradients_reach_gain_and_gates():
    layer = MoE(8, MoEConfig(4, active=2, hidden=6, router="dtop_p", threshold=0.8))
    layer(torch.randn(20, 8)).square().sum().backward()
    assert isinstance(layer.router, DTopP)
    assert float(layer.router.gain.grad.abs()) > 0
    assert float(layer.router.weight.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("text", "router"),
    [
        ("topk", "top_k"),
        ("topp:0.4", "top_p"),
        ("pi", "top_p"),
        ("pi:layer", "top_p"),
        ("dtop_p", "dtop_p"),
        (" dtop_p:layer ", "dtop_p"),
        ("sigmoid", "sigmoid"),
    ],
)
def test_routers_by_name(text, router):
    choice = RouterChoice.parse(text)
    assert str(choice) == text.strip()
    mixture = choice.mixture(16, 4, 8, 0.1, 0.2)
    assert (mixture.router, mixture.threshold) == (router, 0.4 if text == "topp:0.4" else None)
    assert (mixture.balance > 0) == (text != "sigmoid")
    assert (mixture.entropy > 0) == (router in ("top_p", "dtop_p"))
    control = choice.control
    assert (control is None) == (not choice.is_controlled)
    assert control is None or control.control == ("layer" if "layer" in text else "global")


def test_dense_is_no_mixture():
    assert RouterChoice.parse("dense").mixture(16, 4, 8, 0.1, 0.2) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hash", "no router 'hash'; there are topk"),
        ("topp", "needs a threshold"),
        ("topp:high", "needs a threshold"),
        ("topp:0", r"lies in \(0, 1\]"),
        ("topp:nan", r"lies in \(0, 1\]"),
        ("topk:layer", "only pi:layer and dtop_p:layer"),
        ("dtop_p:expert", "only pi:layer"),
    ],
)
def test_bad_names(text, words):
    with pytest.raises(ControlError, match=words):
        RouterChoice.parse(text)
