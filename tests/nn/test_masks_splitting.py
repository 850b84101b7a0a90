"""ADMM and SLR against an independent script, and their effect on a convex problem."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tradeoff.nn.fit import FitConfig, fit
from tradeoff.nn.masks import ADMM, SLR, MaskError


def quadratic(target: np.ndarray) -> nn.Linear:
    """A layer whose weight stands for W in f = ||W - T||^2 / 2."""
    layer = nn.Linear(len(target), 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(target))
    return layer


def minimize(splitting: ADMM, target: torch.Tensor) -> float:
    """Set W to the exact minimum of f plus the penalty; return f there."""
    (weight,) = splitting.weights.values()
    with torch.no_grad():
        anchor = splitting.z["weight"] - splitting.u["weight"]
        weight.copy_((target + splitting.rho * anchor) / (1 + splitting.rho))
        return float((weight - target).square().sum() / 2)


def project(w: np.ndarray, count: int) -> np.ndarray:
    kept = np.argsort(-np.abs(w), kind="stable")[:count]
    z = np.zeros_like(w)
    z[kept] = w[kept]
    return z


def slr_by_the_equations(
    target: np.ndarray, count: int, rho: float, sigma: float, epochs: int, m: float = 200, r: float = 0.1
) -> list[tuple[float, float]]:
    """Sigma and ||W - Z|| after each epoch, W minimized exactly in each."""
    w = target.copy()
    z, multipliers = project(w, count), np.zeros_like(w)
    w_old, z_old, f_old, c = w.copy(), z.copy(), 0.0, 1
    trace = []

    def lag(a: np.ndarray, b: np.ndarray, f: float) -> float:
        u = multipliers / rho
        return float(f + rho / 2 * (np.sum((a - b + u) ** 2) + np.sum(u**2)))

    for _ in range(epochs):
        w = (target + rho * (z - multipliers / rho)) / (1 + rho)
        f = float(np.sum((w - target) ** 2) / 2)
        p = 1 - 1 / c**r
        alpha = 1 - 1 / (m * c**p)
        if c == 1 or lag(w, z_old, f) < lag(w_old, z_old, f_old):
            c += 1
            before, after = np.linalg.norm(w_old - z_old), np.linalg.norm(w - z_old)
            if before and after:
                sigma *= alpha * before / after
            multipliers = multipliers + sigma * (w - z_old)
            w_old, z_old, f_old = w.copy(), z.copy(), f
        z = project(w + multipliers / rho, count)
        if c == 1 or lag(w, z, f) < lag(w, z_old, f):
            p = 1 - 1 / c**r
            alpha = 1 - 1 / (m * c**p)
            c += 1
            before, after = np.linalg.norm(w_old - z_old), np.linalg.norm(w - z)
            if before and after:
                sigma *= alpha * before / after
            multipliers = multipliers + sigma * (w - z)
            w_old, z_old, f_old = w.copy(), z.copy(), f
        trace.append((sigma, float(np.linalg.norm(w - z))))
    return trace


@pytest.mark.parametrize(("rho", "sigma"), [(2.0, 0.3), (0.5, 0.1), (0.01, 0.01)])
def test_slr_follows_the_recursion_of_an_independent_script(rho: float, sigma: float) -> None:
    """Also on a target that is sparse itself, where the optimum is."""
    for seed in range(3):
        target = np.random.default_rng(seed).normal(size=60)
        if seed == 2:
            target = project(target, 6) + 1e-3 * target
        slr = SLR(quadratic(target), {"weight": 6}, rho, sigma=sigma)
        trace = slr_by_the_equations(target, 6, rho, sigma, epochs=20)
        for expected_sigma, expected_residual in trace:
            slr.update(minimize(slr, torch.from_numpy(target)))
            assert slr.sigma == pytest.approx(expected_sigma, rel=1e-12)
            assert slr.residual == pytest.approx(expected_residual, rel=1e-9, abs=1e-12)


def test_slr_remembers_copies() -> None:
    target = np.random.default_rng(0).normal(size=40)
    layer = quadratic(target)
    slr = SLR(layer, {"weight": 4}, 1.0, sigma=0.5)
    slr.update(minimize(slr, torch.from_numpy(target)))
    w, z = slr.w_previous["weight"].clone(), slr.z_previous["weight"].clone()
    with torch.no_grad():
        layer.weight.add_(1)
        slr.z["weight"].add_(1)
    assert torch.equal(slr.w_previous["weight"], w)
    assert torch.equal(slr.z_previous["weight"], z)


@pytest.mark.parametrize("seed", range(6))
def test_splitting_brings_weights_to_the_constraint(seed: int) -> None:
    target = np.random.default_rng(seed).normal(size=200)
    residuals = {}
    for splitting in (
        SLR(quadratic(target), {"weight": 20}, 2.0, sigma=1.0),
        ADMM(quadratic(target), {"weight": 20}, 2.0),
    ):
        before = splitting.residual
        for _ in range(20):
            splitting.update(minimize(splitting, torch.from_numpy(target)))
        residuals[type(splitting).__name__] = splitting.residual / before
    assert residuals["SLR"] <= 1 / 2
    assert residuals["ADMM"] <= 1e-6


def test_a_penalty_far_below_the_curvature_does_not_get_there() -> None:
    """With rho = 0.01 both raise the distance: rho has to match the curvature of f, which is 1."""
    target = np.random.default_rng(0).normal(size=200)
    for splitting in (
        SLR(quadratic(target), {"weight": 20}, 0.01, sigma=1.0),
        ADMM(quadratic(target), {"weight": 20}, 0.01),
    ):
        before = splitting.residual
        for _ in range(20):
            splitting.update(minimize(splitting, torch.from_numpy(target)))
        assert splitting.residual > before


def regression() -> tuple[nn.Sequential, TensorDataset]:
    torch.manual_seed(0)
    x = torch.randn(128, 10)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3)), TensorDataset(x, x[:, :3].argmax(1))


@pytest.mark.parametrize("kind", ["admm", "slr"])
def test_a_resumed_splitting_ends_as_an_uninterrupted_one(tmp_path: Path, kind: str) -> None:
    counts = {"0.weight": 20, "2.weight": 10}
    cross_entropy = lambda m, x, y: nn.functional.cross_entropy(m(x), y)  # noqa: E731

    def train(steps: int, checkpoint: Path | None) -> ADMM:
        model, train = regression()
        splitting = ADMM(model, counts, 0.1) if kind == "admm" else SLR(model, counts, 0.1, sigma=0.1)
        config = FitConfig(steps=steps, batch_size=32, checkpoint_seconds=0, schedule="constant")
        with splitting.in_state_dict():
            fit(
                model,
                train,
                None,
                config,
                loss=splitting.loss(cross_entropy),
                callbacks=[splitting],
                checkpoint=checkpoint,
            )
        return splitting

    whole, file = train(20, None), tmp_path / "c.safetensors"
    train(20, file)
    again = train(20, file)  # complete: nothing runs, all is restored
    assert again.state_dict() == whole.state_dict()
    for name, weight in whole.weights.items():
        assert torch.equal(weight, again.weights[name])
        assert torch.equal(whole.u[name], again.u[name])


def test_layers_without_constraint_are_left_alone() -> None:
    model, train = regression()
    plain, _ = regression()
    config = FitConfig(steps=8, batch_size=32)
    slr = SLR(model, {"0.weight": 160, "2.weight": 48}, 0.1, sigma=0.1)
    loss = slr.loss(lambda m, x, y: nn.functional.cross_entropy(m(x), y))
    fit(model, train, None, config, loss=loss, callbacks=[slr])
    fit(plain, train, None, config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert slr.residual == 0


def test_bad_settings_are_named() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(MaskError, match="rho must be positive"):
        ADMM(layer, {"weight": 3}, 0)
    with pytest.raises(MaskError, match="cannot keep 17 weights of weight"):
        ADMM(layer, {"weight": 17}, 1)
    with pytest.raises(MaskError, match="cannot keep 2 weights of bias2"):
        ADMM(layer, {"bias2": 2}, 1)
    with pytest.raises(MaskError, match="sigma, m and r"):
        SLR(layer, {"weight": 3}, 1, sigma=0)
