"""Gates, architectures, costs and the bilevel step."""

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from tradeoff.data.devices import fpga_latency
from tradeoff.nn.fit import Callback, FitConfig, FitState, TrainingDiverged
from tradeoff.nn.latency import FPGALatency, ReleasedProxy
from tradeoff.nn.models import ArchMismatch, build
from tradeoff.nn.plan import UntraceableModel, trace
from tradeoff.nn.polynomial import Polynomial, PolynomialDivergence, StraightThroughQuadratic
from tradeoff.nn.search import (
    Architecture,
    ArchitectureConfig,
    GateConfig,
    GatedActivation,
    LatencySearch,
    NoSearchableSites,
    apply_to_plan,
    comparison_count,
    discretize,
    finalize,
    finetune,
    gates,
    insert_gates,
    recalibrate,
    relu_sites,
    set_architecture,
    site_costs,
)
from tradeoff.nn.search.bilevel import asking, first_order, second_order
from tradeoff.nn.search.gates import channel_groups
from tradeoff.nn.surgery import activation_sites, pooling_sites, replace_sites

SHAPE = (1, 8, 16)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    found = build("pair_pool_cnn", 10, SHAPE)
    with torch.no_grad():
        for module in found.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return found.eval()


def every_identity(model: nn.Module) -> nn.Module:
    return replace_sites(model, {s.name: nn.Identity() for s in activation_sites(model, SHAPE)}, SHAPE)


class Functional(nn.Module):
    """Functional, shared, in-place and method calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = functional.max_pool2d(functional.relu(x), 2)
        x = torch.max_pool2d(self.relu(x).relu_(), kernel_size=(1, 2), stride=2)
        return x.flatten(1)


# --- sites -----------------------------------------------------------------------------------------------


def test_pooling_sites_are_modules_and_functions(network: nn.Module) -> None:
    assert [(s.name, s.shape, s.input_shape) for s in pooling_sites(network, SHAPE)] == [
        ("pool1", (8, 4, 8), (8, 8, 16)),
        ("pool2", (16, 2, 4), (16, 4, 8)),
    ]
    found = pooling_sites(Functional(), SHAPE)
    assert [(s.name, s.kernel, s.stride) for s in found] == [
        ("max_pool2d", (2, 2), (2, 2)),
        ("max_pool2d_2", (1, 2), (2, 2)),
    ]
    others = nn.Sequential(nn.MaxPool2d(2, dilation=2), nn.MaxPool2d(2, ceil_mode=True))
    assert pooling_sites(others, SHAPE) == []


def test_every_call_is_a_site_of_its_own() -> None:
    model = Functional().eval()
    gated = insert_gates(model, SHAPE)
    assert len(gates(gated)) == 6
    x = torch.randn(3, *SHAPE)
    hard = discretize(gated, Architecture.uniform(gated, "relu", "max"))
    assert torch.equal(hard.eval()(x), model(x))


def test_networks_without_sites_and_untraceable_ones_are_refused() -> None:
    with pytest.raises(NoSearchableSites, match="Linear"):
        insert_gates(nn.Linear(3, 3), (3,))

    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(x) if x.sum() > 0 else x

    with pytest.raises(UntraceableModel):
        insert_gates(Hidden(), SHAPE)


# --- straight-through quadratics -------------------------------------------------------------------------


def test_identity_start_passes_a_trained_network_through(network: nn.Module) -> None:
    gated = insert_gates(network, SHAPE, GateConfig(start=(0.0, 1.0, 0.0)))
    swapped = discretize(gated, Architecture.uniform(gated, "poly", "max")).eval()
    x = torch.randn(5, *SHAPE)
    torch.testing.assert_close(swapped(x), every_identity(network)(x), rtol=1e-6, atol=1e-6)
    broken = insert_gates(network, SHAPE, GateConfig(start=(1.0, 0.0, 0.0)))
    naive = discretize(broken, Architecture.uniform(broken, "poly", "max")).eval()
    assert (naive(x) - every_identity(network)(x)).abs().max() > 1


def test_gradient_of_the_square_scales_with_its_factor() -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    gradients = {}
    for constant in (1.0, 10.0):
        module = StraightThroughQuadratic((3, 5, 5), scale="sqrt_n", constant=constant).double()
        module(x).sum().backward()
        gradients[constant] = float(module.weights.grad[2])
        assert module.factor == pytest.approx(constant / 75**0.5)
        assert gradients[constant] == pytest.approx(constant / 75**0.5 * float((x**2).sum()))
    assert gradients[10.0] == pytest.approx(10 * gradients[1.0])


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_gradients_of_the_quadratic(per_channel: bool, clip: float | None) -> None:
    module = StraightThroughQuadratic((3, 2, 2), start=(0.1, 0.9, 0.2), clip=clip, per_channel=per_channel)
    module.double()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))
    plain = Polynomial(module.effective_coefficients())
    torch.testing.assert_close(plain(x), module(x))


def test_quadratic_ramps_and_clips() -> None:
    module = StraightThroughQuadratic((1, 1, 1), start=(1.0, 0.0, 0.0), ramp_steps=4, clip=0.6).train()
    x = torch.full((1, 1, 1, 1), 2.0)
    assert [float(module(x).detach()) for _ in range(5)] == pytest.approx([1.0, 2.0, 2.4, 2.4, 2.4])
    for bad in ({"scale": 0.0}, {"clip": -1.0}, {"ramp_steps": -1}, {"scale": "sqrt_n", "constant": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            StraightThroughQuadratic((1, 1, 1), **bad)  # type: ignore[arg-type]


# --- gates and architectures ------------------------------------------------------------------------------


def test_mixture_is_the_weighted_sum_of_its_branches(network: nn.Module) -> None:
    config = GateConfig(identity=True, groups=3, start=(0.3, 0.5, 0.1))
    site = activation_sites(network, SHAPE)[0]
    gate = GatedActivation(site, config)
    with torch.no_grad():
        gate.alpha.normal_()
    x = torch.randn(2, *site.shape)
    parts = gate.parts()
    slow = torch.zeros_like(x)
    for channel, group in enumerate([0, 0, 0, 1, 1, 1, 2, 2]):
        t, part = parts[group], x[:, channel]
        slow[:, channel] = t[0] * part.relu() + t[1] * (0.3 * part**2 + 0.5 * part + 0.1) + t[2] * part
    torch.testing.assert_close(gate(x), slow)


def test_one_group_is_the_choice_of_a_site_bit_for_bit(network: nn.Module) -> None:
    """With groups that agree, outputs and costs are those of a choice by site; one group is that choice."""
    plan, model = trace(network, SHAPE), FPGALatency(base_latency=1e-3)
    single, grouped = insert_gates(network, SHAPE), insert_gates(network, SHAPE, GateConfig(groups=1))
    x = torch.randn(2, *SHAPE)
    assert torch.equal(single(x), grouped(x))
    costs = [site_costs(plan, gated, model).expected(gated) for gated in (single, grouped)]
    assert torch.equal(*costs)
    many = insert_gates(network, SHAPE, GateConfig(groups=4))
    torch.testing.assert_close(many(x), single(x))


def test_discretized_networks_of_every_kind_equal_their_plain_form(network: nn.Module) -> None:
    gated = insert_gates(network, SHAPE, GateConfig(identity=True, groups=2, start=(0.02, 0.9, 0.1)))
    names = list(gates(gated))
    chosen = Architecture.uniform(gated, "relu", "average")
    for site, choice in zip(
        [name for name in names if name.startswith("relu")],
        itertools.cycle(itertools.product(("relu", "poly", "identity"), repeat=2)),
        strict=False,
    ):
        chosen = chosen.with_choice(site, *choice)
    hard = discretize(gated, chosen).eval()
    plain = finalize(hard, SHAPE)
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(plain(x), hard(x))
    plan = trace(plain, SHAPE)
    np.testing.assert_allclose(plan.evaluate(x.numpy()), hard(x).detach().numpy(), atol=1e-4)
    predicted = apply_to_plan(trace(network, SHAPE), chosen)
    assert predicted.relu_count == plan.relu_count
    assert relu_sites(predicted) == relu_sites(plan) == chosen.relu_sites
    model = FPGALatency(base_latency=1e-3)
    assert model.network(predicted).seconds == pytest.approx(model.network(plan).seconds)


def test_no_branch_of_the_search_is_left(network: nn.Module) -> None:
    gated = insert_gates(network, SHAPE)
    hard = discretize(gated, Architecture.uniform(gated, "poly", "average"))
    assert not any(isinstance(module, nn.ReLU | nn.MaxPool2d | GatedActivation) for module in hard.modules())


def test_architecture_files(network: nn.Module, tmp_path: Path) -> None:
    gated = insert_gates(network, SHAPE, GateConfig(groups=2))
    chosen = Architecture.uniform(gated, "poly", "max").with_choice("relu3", "relu", "poly")
    chosen.save(tmp_path / "a.json")
    loaded = Architecture.load(tmp_path / "a.json")
    assert loaded == chosen
    set_architecture(gated, loaded)
    assert {name: gate.choice() for name, gate in gates(gated).items()} == chosen.choices
    with pytest.raises(ArchMismatch, match="relu9"):
        set_architecture(gated, chosen.with_choice("relu9", "relu"))
    with pytest.raises(ArchMismatch, match="relu3"):
        discretize(gated, chosen.with_choice("relu3", "relu", "poly", "poly"))
    with pytest.raises(ArchMismatch, match="relu9"):
        apply_to_plan(trace(network, SHAPE), chosen.with_choice("relu9", "relu"))
    good = json.loads((tmp_path / "a.json").read_text())
    for bad, message in (
        ([], "no architecture"),
        (good | {"format": "x"}, "no architecture"),
        (good | {"choices": {"relu1": ["rule"]}}, "relu1"),
        (good | {"choices": {"relu1": []}}, "relu1"),
        (good | {"choices": {"pool1": ["max", "average"]}}, "pool1"),
    ):
        (tmp_path / "b.json").write_text(json.dumps(bad))
        with pytest.raises(ArchMismatch, match=message):
            Architecture.load(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ArchMismatch):
        Architecture.load(tmp_path / "b.json")


def test_channel_groups_are_neighbors_of_equal_size() -> None:
    assert channel_groups(8, 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert channel_groups(4, 1).tolist() == [0] * 4


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "vgg16", "mobilenet_v2"])
def test_relu_count_is_what_a_forward_pass_computes(arch: str) -> None:
    shape = (3, 32, 32)
    with torch.random.fork_rng():
        model = build(arch, 10, shape).eval()
    counted = 0

    def note(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        nonlocal counted
        counted += inputs[0][0].numel()

    for module in model.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.register_forward_hook(note)
    model(torch.zeros(1, *shape))
    expected = counted
    search = LatencySearch(model, ReleasedProxy(), shape, 0.0)
    full = Architecture.uniform(search.network, "relu", "max")
    assert search.hard_plan(full).relu_count == expected
    if arch == "resnet18":
        assert expected == 557_056
    if arch == "vgg16":
        outputs = [512, 128 * 64, 256 * 16, 512 * 4]
        assert comparison_count(search.hard_plan(full)) == 3 * (64 * 256 + sum(outputs))
    assert search.hard_plan(Architecture.uniform(search.network, "poly", "average")).relu_count == 0


# --- latency in the loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [FPGALatency(base_latency=2e-3), ReleasedProxy()], ids=str)
def test_hard_latency_is_the_sum_of_operators_and_the_limit_of_the_soft_one(
    network: nn.Module, model: FPGALatency | ReleasedProxy
) -> None:
    search = LatencySearch(network, model, SHAPE, 1e-3)
    generator = np.random.default_rng(0)
    for _ in range(20):
        chosen = Architecture.uniform(search.network, "poly", "average")
        for name, gate in gates(search.network).items():
            chosen = chosen.with_choice(name, str(generator.choice(gate.choices)))
        hard = search.hard_latency(chosen)
        assert hard.seconds == sum(row.seconds for row in hard.rows)
        assert search.costs.of(chosen) == pytest.approx(hard.seconds, rel=1e-9)
        set_architecture(search.network, chosen, confidence=20.0)
        soft = float(search.costs.expected(search.network))
        assert soft == pytest.approx(hard.seconds, rel=1e-3)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("identity", [False, True])
def test_gradient_of_the_latency(network: nn.Module, groups: int, identity: bool) -> None:
    config = GateConfig(groups=groups, identity=identity)
    gated = insert_gates(network.double(), SHAPE, config)
    costs = site_costs(trace(network, SHAPE), gated, FPGALatency(base_latency=1e-4))
    alphas = [gate.alpha for gate in gates(gated).values()]
    with torch.no_grad():
        for alpha in alphas:
            alpha.normal_()
    with asking(alphas):
        exact = torch.autograd.grad(costs.expected(gated), alphas)
    for alpha, gradient in zip(alphas, exact, strict=True):
        for place in itertools.product(*map(range, alpha.shape)):
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    alpha[place] += sign * 1e-5
                    sides.append(float(costs.expected(gated)))
                    alpha[place] -= sign * 1e-5
            assert float(gradient[place]) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4, abs=1e-12)


def test_a_group_with_a_relu_makes_its_site_pay_all_rounds(network: nn.Module) -> None:
    gated = insert_gates(network, SHAPE, GateConfig(groups=4))
    search = LatencySearch(network, FPGALatency(base_latency=1.0), SHAPE, 0, GateConfig(groups=4))
    del gated
    poly = Architecture.uniform(search.network, "poly", "average")
    one = poly.with_choice("relu1", "relu", "poly", "poly", "poly")
    full = poly.with_choice("relu1", *["relu"] * 4)
    extra = [search.costs.of(each) - search.costs.floor for each in (one, full)]
    assert extra[0] == pytest.approx(extra[1], rel=1e-3)
    set_architecture(search.network, one, confidence=20.0)
    assert float(search.costs.expected(search.network)) == pytest.approx(search.costs.of(one), rel=1e-3)


def test_no_penalty_leaves_the_gradient_of_the_cross_entropy(network: nn.Module) -> None:
    x, y = torch.randn(16, *SHAPE), torch.arange(16) % 10
    found = {}
    for penalty in (0.0, 1.0):
        search = LatencySearch(network, FPGALatency(base_latency=0.01), SHAPE, penalty)
        alphas = [gate.alpha for gate in gates(search.network).values()]
        found[penalty] = first_order(search.network.eval(), alphas, search.objective, (x, y))
        plain = first_order(search.network.eval(), alphas, search.training_objective, (x, y))
        same = all(torch.equal(a, b) for a, b in zip(found[penalty], plain, strict=True))
        assert same == (penalty == 0)


def test_second_order_gradient_is_that_of_autograd() -> None:
    """Through one step of the weights, on a network small enough to differentiate twice."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).double()
    gated = insert_gates(network, (1, 4, 4), GateConfig(start=(0.3, 0.7, 0.0)))
    (alpha,) = (gate.alpha for gate in gates(gated).values())
    batches = [(torch.randn(12, 1, 4, 4).double(), torch.arange(12) % 3) for _ in range(2)]
    step = 0.5

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x), y)

    weights = {name: p for name, p in gated.named_parameters() if p.requires_grad}
    before = copy.deepcopy(gated.state_dict())
    with asking([alpha]):
        inner = functional.cross_entropy(gated(batches[1][0]), batches[1][1])
        gradients = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        moved = {name: p - step * g for (name, p), g in zip(weights.items(), gradients, strict=True)}
        outer = functional.cross_entropy(
            torch.func.functional_call(gated, moved, (batches[0][0],)), batches[0][1]
        )
        (exact,) = torch.autograd.grad(outer, [alpha])
    (found,) = second_order(gated, [alpha], loss, loss, batches[0], batches[1], step)
    (first,) = first_order(gated, [alpha], loss, batches[0])
    assert (found - exact).norm() / exact.norm() < 0.01
    assert (first - exact).norm() / exact.norm() > 0.02, "else the test could not tell the two apart"
    assert all(torch.equal(before[name], value) for name, value in gated.state_dict().items())


# --- training --------------------------------------------------------------------------------------------


def random_data(count: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, *SHAPE, generator=generator), torch.arange(count) % 10)


STEPS = FitConfig(steps=6, batch_size=16, optimizer="adam", learning_rate=0.003, checkpoint_seconds=0)


class Stop(KeyboardInterrupt):
    pass


class StopAt(Callback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, state: FitState) -> None:
        if state.step == self.step:
            raise Stop


@pytest.mark.parametrize("order", [1, 2])
def test_interrupted_search_ends_as_if_unbroken(network: nn.Module, tmp_path: Path, order: int) -> None:
    def search(folder: Path | None, stop: int | None) -> LatencySearch:
        found = LatencySearch(
            network,
            FPGALatency(base_latency=1e-3),
            SHAPE,
            1e-3,
            architecture=ArchitectureConfig(learning_rate=0.05, order=order, batch_size=8),  # type: ignore[arg-type]
        )
        found.fit(random_data(), STEPS, checkpoint=folder, callbacks=[StopAt(stop)])
        return found

    whole = search(None, None)
    with pytest.raises(Stop):
        search(tmp_path / "s", 4)
    resumed = search(tmp_path / "s", None)
    for (name, a), b in zip(
        whole.network.state_dict().items(), resumed.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert any(float(gate.alpha.abs().max()) > 0 for gate in gates(whole.network).values())


def test_choices_are_trained_on_the_half_that_weights_never_see(network: nn.Module) -> None:
    seen: dict[str, set[float]] = {"weights": set(), "choices": set()}

    class Spy(LatencySearch):
        def objective(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
            seen["choices"] |= set(inputs[:, 0, 0, 0].tolist())
            return super().objective(model, inputs, targets)

        def training_objective(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
            if not model.training or torch.is_grad_enabled():
                caller = "weights" if not next(iter(gates(model).values())).alpha.requires_grad else "choices"
                seen[caller] |= set(inputs[:, 0, 0, 0].tolist())
            return super().training_objective(model, inputs, targets)

    Spy(network, ReleasedProxy(), SHAPE, 1e-3).fit(random_data(), STEPS)
    assert seen["weights"]
    assert seen["choices"]
    assert not seen["weights"] & seen["choices"]


def test_a_large_penalty_empties_the_network_and_none_leaves_it_alone(network: nn.Module) -> None:
    found = {}
    for penalty in (0.0, 1e4):
        search = LatencySearch(
            network, fpga_latency(), SHAPE, penalty, architecture=ArchitectureConfig(learning_rate=0.2)
        )
        search.fit(random_data(), STEPS)
        found[penalty] = search
    emptied = found[1e4].architecture()
    assert emptied == Architecture.uniform(found[1e4].network, "poly", "average")
    assert found[0.0].hard_latency().seconds > found[1e4].hard_latency().seconds


def test_temperature_falls_over_the_search(network: nn.Module) -> None:
    config = ArchitectureConfig(initial_temperature=5.0, temperature=0.5)
    assert [config.temperature_at(p) for p in (0, 0.5, 1)] == pytest.approx([5, 2.5**0.5, 0.5])
    search = LatencySearch(network, ReleasedProxy(), SHAPE, 0.0, architecture=config)
    search.fit(random_data(), STEPS)
    assert next(iter(gates(search.network).values())).temperature == pytest.approx(5 * 0.1 ** (5 / 6))


def test_batch_statistics_are_measured_anew(network: nn.Module) -> None:
    data = random_data()
    gated = insert_gates(network, SHAPE)
    hard = discretize(gated, Architecture.uniform(gated, "poly", "average"))
    recalibrate(hard, data)
    seen: list[Tensor] = []
    hard.bn5.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    hard.train()(data.tensors[0])
    torch.testing.assert_close(hard.bn5.num_batches_tracked, torch.tensor(2))
    mean = seen[0].mean(dim=(0, 2, 3))
    fresh = copy.deepcopy(hard)
    recalibrate(fresh, data)
    torch.testing.assert_close(fresh.bn5.running_mean, mean)


def test_divergence_names_the_site(network: nn.Module) -> None:
    gated = insert_gates(network, SHAPE, GateConfig(start=(1e38, 1.0, 0.0)))
    hard = discretize(gated, Architecture.uniform(gated, "relu", "max").with_choice("relu4", "poly"))
    with pytest.raises(PolynomialDivergence, match=r"relu4.*(scale|clip)"):
        finetune(hard, random_data(), None, STEPS)
    search = LatencySearch(network, ReleasedProxy(), SHAPE, 0, GateConfig(start=(1e38, 1.0, 0.0)))
    with pytest.raises(PolynomialDivergence, match="relu1"):
        search.fit(random_data(), STEPS)
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.fc.weight.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="nan"):
        finetune(broken, random_data(), None, STEPS)


def test_bad_penalties_are_refused(network: nn.Module) -> None:
    for penalty in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="penalty"):
            LatencySearch(network, ReleasedProxy(), SHAPE, penalty)
