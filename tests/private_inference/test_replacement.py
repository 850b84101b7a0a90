"""Sites, counts, positions and the finished network, without training."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.methods.private_inference.autorep import (
    AutoReP,
    NoReLUSites,
    ReplaceableReLU,
    ReplacementConfig,
    density,
    excess_flips,
    finalize,
    layerwise_positions,
    project,
    random_positions,
    relu_count,
    relu_table,
    replace_relus,
    restore,
    set_positions,
)
from tradeoff.methods.private_inference.autorep.replacement import sites
from tradeoff.nn.models import build
from tradeoff.nn.plan import MaskedReLU, Polynomial, ReLU, trace
from tradeoff.nn.polynomial import SiteShapeMismatch, distribution_aware, evaluate

SHAPE, TOTAL = (1, 8, 16), 4096


def images(count: int = 6, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("arch", "shape"), [("pair_cnn", SHAPE), ("resnet18", (3, 16, 16))])
def test_all_ones_mask_equals_the_base_network_bit_for_bit(arch: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    base = build(arch, 10, shape).eval()
    replaced = replace_relus(base, shape)
    expected = base(images(3, shape))
    assert torch.equal(replaced.eval()(images(3, shape)), expected)
    assert torch.equal(finalize(replaced)(images(3, shape)), expected)
    assert sum(row.total for row in relu_table(replaced, shape)) == relu_count(replaced)


def test_all_zeros_mask_leaves_no_relu_in_the_plan(fresh: nn.Module) -> None:
    replaced = replace_relus(fresh, SHAPE)
    project(replaced, 0)
    plan = trace(finalize(replaced), SHAPE)
    kinds = [type(operator) for operator in plan]
    assert ReLU not in kinds
    assert MaskedReLU not in kinds
    assert kinds.count(Polynomial) == 5
    assert plan.relu_count == 0


@pytest.mark.parametrize("budget", [0, 1, TOTAL // 100, TOTAL // 10, TOTAL])
def test_count_meets_the_budget_and_equals_what_runs(fresh: nn.Module, budget: int) -> None:
    replaced = replace_relus(fresh, SHAPE)
    dropped = project(replaced, budget)
    assert dropped == TOTAL - budget
    net = finalize(replaced)
    assert relu_count(replaced) == relu_count(net, SHAPE) == trace(net, SHAPE).relu_count == budget
    assert sum(row.total for row in relu_table(net, SHAPE)) == TOTAL
    # Count by behavior: positions whose output for a negative input is exactly zero.
    behaves = 0
    for module in net.modules():
        if hasattr(module, "mask"):
            y = module(-torch.ones(1, *module.mask.shape))
            behaves += int((y == 0).sum())
    pure = sum(row.total for row in relu_table(net, SHAPE) if row.kept == row.total)
    assert behaves + pure == budget


def test_projection_drops_the_smallest_scores(fresh: nn.Module) -> None:
    replaced = replace_relus(fresh, SHAPE)
    scores = torch.cat([site.gate.scores.detach().flatten() for site in sites(replaced).values()])
    project(replaced, 100)
    kept = torch.cat([site.mask.flatten() for site in sites(replaced).values()])
    assert scores[kept].min() > scores[~kept].max()
    assert excess_flips(replaced) == 0
    assert project(replaced, 100) == 0


def test_unused_budget_brings_the_largest_scores_back(fresh: nn.Module) -> None:
    replaced = replace_relus(fresh, SHAPE)
    project(replaced, 100)
    before = torch.cat([site.mask.flatten() for site in sites(replaced).values()])
    assert restore(replaced, 100) == 0
    assert restore(replaced, 130) == 30
    scores = torch.cat([site.gate.scores.detach().flatten() for site in sites(replaced).values()])
    kept = torch.cat([site.mask.flatten() for site in sites(replaced).values()])
    assert int(kept.sum()) == relu_count(replaced) == 130
    assert bool(kept[before].all())
    assert scores[kept].min() > scores[~kept].max()
    assert excess_flips(replaced) == 0
    assert restore(replaced, 10**9) == kept.numel() - 130


def test_gradient_of_the_scores_is_the_weighted_sum_of_both_paths(fresh: nn.Module) -> None:
    """Acceptance: softplus(score) * (sum over the batch of g (ReLU - p) + penalty / total)."""
    method = AutoReP(fresh.double(), 400, SHAPE, ReplacementConfig(calib_iters=1), penalty=7.0)
    site = sites(method.network)["relu3"]
    seen: dict[str, Tensor] = {}

    def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["x"] = inputs[0].detach()
        output.register_hook(lambda gradient: seen.update(g=gradient))

    handle = site.register_forward_hook(record)
    labels = torch.arange(6) % 10
    with torch.no_grad():
        site.gate.scores -= 0.5  # some dropped
    method.loss(method.network.train(), images().double(), labels).backward()
    handle.remove()
    scores, x, g = site.gate.scores.detach(), seen["x"], seen["g"]
    difference = x.clamp(min=0) - evaluate(x, site.coefficients.detach())
    expected = functional.softplus(scores) * ((g * difference).sum(0) + 7.0 / TOTAL)
    torch.testing.assert_close(site.gate.scores.grad, expected, atol=1e-9, rtol=1e-6)
    assert 0 < int((~site.mask).sum()) < site.mask.numel()
    assert density(method.network).item() == pytest.approx(method.relu_count() / TOTAL)


def test_no_penalty_within_the_budget(fresh: nn.Module) -> None:
    inputs, labels = images(), torch.arange(6) % 10
    losses = []
    for penalty in (0.0, 1e6):
        method = AutoReP(fresh, 400, SHAPE, penalty=penalty)
        project(method.network, 400)
        losses.append(method.loss(method.network.eval(), inputs, labels))
    assert torch.equal(*losses)


def test_evaluation_changes_no_buffer(fresh: nn.Module) -> None:
    replaced = replace_relus(fresh, SHAPE, ReplacementConfig(calib_iters=100, refresh=1))
    replaced.train()(images())
    with torch.no_grad():
        for site in sites(replaced).values():
            site.gate.scores.fill_(-1.0)  # an update would drop everything
    before = copy.deepcopy(replaced.state_dict())
    replaced.eval()(3 * images() + 1)
    after = replaced.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_calibration_measures_the_input_and_stops() -> None:
    site = ReplaceableReLU((2, 4, 4), ReplacementConfig(calib_iters=20, refresh=5), "relu")
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.5])

    def batch() -> Tensor:
        noise = torch.randn(64, 2, 4, 4, generator=generator)
        return noise * std.view(1, 2, 1, 1) + mean.view(1, 2, 1, 1)

    site.train()
    for _ in range(20):
        site(batch())
    torch.testing.assert_close(site.coefficients.detach(), distribution_aware(mean, std), atol=0.02, rtol=0)
    with torch.no_grad():
        site.coefficients.fill_(3.0)
    for _ in range(20):
        site(batch())
    assert bool((site.coefficients == 3.0).all()), "trained coefficients were overwritten after calibration"


def test_released_compatibility_reproduces_its_scaled_start() -> None:
    config = ReplacementConfig(compat="released")
    site = ReplaceableReLU((2, 8, 8), config, "relu").train()
    x = images(32, (2, 8, 8)) * torch.tensor([2.0, 0.1]).view(1, 2, 1, 1)
    site(x)
    variance = x.var((0, 2, 3), correction=0).clamp(min=0.5)
    fitted = distribution_aware(x.mean((0, 2, 3)), variance)
    stored = fitted / torch.tensor([[5.0], [1.0], [10.0]])
    torch.testing.assert_close(site.coefficients.detach(), stored)
    used = stored * torch.tensor([[1.0], [1.0], [0.1]])
    torch.testing.assert_close(site.effective_coefficients().detach(), used)
    with pytest.raises(ValueError, match="released"):
        ReplacementConfig(compat="released", degree=3)


def test_quadratic_is_damped_ramped_and_clipped() -> None:
    config = ReplacementConfig(quad_scale=0.25, ramp_iters=10, calib_iters=1)
    site = ReplaceableReLU((1, 8, 8), config, "relu").train()
    site(images(64, (1, 8, 8)))
    full = site.coefficients.detach()
    scales = []
    for _ in range(12):
        scales.append((site.effective_coefficients()[2] / full[2]).item())
        site(images(64, (1, 8, 8)))
    assert scales == pytest.approx([0.25 + 0.75 * min(1, step / 10) for step in range(1, 13)])
    clipped = ReplaceableReLU((1, 8, 8), ReplacementConfig(clip_c2=0.01), "relu").train()
    clipped(images(64, (1, 8, 8)))
    assert clipped.effective_coefficients()[2].item() == pytest.approx(0.01)
    torch.testing.assert_close(clipped.effective_coefficients()[:2], clipped.coefficients[:2])


def test_constant_channel_is_clamped_with_one_warning() -> None:
    site = ReplaceableReLU((2, 4, 4), ReplacementConfig(refresh=1), "layer1.relu").train()
    x = images(8, (2, 4, 4))
    x[:, 1] = 0.5
    with pytest.warns(UserWarning, match=r"layer1\.relu: channels \[1\]"):
        site(x)
    assert bool(torch.isfinite(site.coefficients).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        site(x)


def test_functional_shared_and_other_activations_are_all_found() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)
            self.down = nn.Conv2d(2, 3, 3, stride=2, padding=1)
            self.act = nn.ReLU()
            self.silu = nn.SiLU()
            self.fc = nn.Linear(3 * 4 * 4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.conv(x))
            x = self.act(self.down(x))  # the same module at another shape
            x = self.silu(self.fc(x.flatten(1)))
            return functional.relu(x)

    replaced = replace_relus(Mixed().eval(), (1, 8, 8))
    assert [row.total for row in relu_table(replaced, (1, 8, 8))] == [128, 48, 5, 5]
    project(replaced, 60)
    assert relu_count(finalize(replaced), (1, 8, 8)) == 60


def test_bad_input_has_its_named_error(fresh: nn.Module) -> None:
    with pytest.raises(NoReLUSites):
        replace_relus(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
    for budget in (-1, 1.5, "9", True):
        with pytest.raises(ValueError, match="budget"):
            AutoReP(fresh, budget, SHAPE)  # type: ignore[arg-type]
    replaced = replace_relus(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), (1, 8, 8))
    with pytest.raises(SiteShapeMismatch, match=r"\(2, 6, 6\).*\(2, 8, 8\)"):
        replaced(images(1, (1, 10, 10)))
    with pytest.raises(SiteShapeMismatch):
        finalize(replace_and_drop(replaced))(images(1, (1, 10, 10)))
    with pytest.raises(ValueError, match="masks do not fit"):
        set_positions(replaced, {"other": torch.ones(2, 6, 6, dtype=torch.bool)})
    for bad in ({"degree": 5}, {"hysteresis": -1}, {"quad_scale": 2.0}, {"unknown": 1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ReplacementConfig(**bad)


def replace_and_drop(replaced: nn.Module) -> nn.Module:
    project(replaced, 7)
    return replaced


def test_budget_above_the_total_warns_and_returns_the_base(fresh: nn.Module) -> None:
    with pytest.warns(UserWarning, match="exceeds the 4096"):
        method = AutoReP(fresh, 5000, SHAPE)
    method.fit(None, None, None)  # type: ignore[arg-type]  (nothing to train)
    assert torch.equal(method.finalize()(images()), fresh(images()))


def test_random_positions_have_the_count_and_depend_on_the_seed(fresh: nn.Module) -> None:
    masks = [random_positions(fresh, SHAPE, 100, seed) for seed in (0, 0, 1)]
    assert all(sum(int(m.sum()) for m in mask.values()) == 100 for mask in masks)
    assert all(torch.equal(masks[0][k], masks[1][k]) for k in masks[0])
    assert not all(torch.equal(masks[0][k], masks[2][k]) for k in masks[0])
    method = AutoReP(fresh, 100, SHAPE, positions=masks[0])
    assert method.relu_count() == 100
    assert method.excess_flips() == 0


def test_layerwise_positions_keep_the_layer_whose_relu_matters() -> None:
    """Only the second layer's ReLU changes the label; it must be the layer that stays."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x + 100.0) - 100.0
            return torch.cat([self.second(x), x * 0 + 0.5], 1).flatten(2).mean(2)

    x = np.random.default_rng(0).standard_normal((300, 1, 2, 2)).astype(np.float32)
    x = torch.from_numpy(x) * 3
    net = Net().eval()
    split = torch.utils.data.TensorDataset(x, net(x).argmax(1))
    masks = layerwise_positions(net, (1, 2, 2), 4, split)
    assert bool(masks["second"].all())
    assert not bool(masks["first"].any())
    thinned = layerwise_positions(build("pair_cnn", 10, SHAPE).eval(), SHAPE, 300, pair_split())
    kept = {name: mask.flatten(1).float().mean(1) for name, mask in thinned.items()}
    assert all(set(share.tolist()) <= {0.0, 1.0} for share in kept.values()), "channels must stay whole"
    assert 0 < sum(int(mask.sum()) for mask in thinned.values()) <= 300


def pair_split() -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(images(60), torch.arange(60) % 10)
