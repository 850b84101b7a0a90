"""Masks while a network trains: exactness against a slow reference, invariants, resume, bad input."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tradeoff.nn.checkpoint import CheckpointMismatch
from tradeoff.nn.fit import Callback, FitConfig, FitState, fit
from tradeoff.nn.masks import (
    SET,
    DropAndGrow,
    Explore,
    FlopMeter,
    Layer,
    MaskError,
    MaskSet,
    NonFiniteGradient,
    RigL,
    SparseMomentum,
    SparseTraining,
    Static,
    active_counts,
    drop_and_grow,
    fit_sparse,
    forward_flops,
    layer_rows,
    maskable_weights,
    training_flops,
)
from tradeoff.nn.masks.mask_set import keyed_generator

Optimizer = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}

RULES: dict[str, DropAndGrow] = {
    "set": SET(density=0.1, update_every=3),
    "rigl": RigL(density=0.1, update_every=3, allow_regrow=False),
    "momentum": SparseMomentum(density=0.1, update_every=3),
    "explore": Explore(density=0.1, update_every=3, bonus=0.01, decay=0.9),
}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    linear = nn.Linear(96, 30), nn.ReLU(), nn.Linear(30, 5)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), *linear)


def data(count: int = 256, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 6, 6, generator=generator)
    teacher = torch.randn(36, 5, generator=generator)
    return TensorDataset(x, (x.flatten(1) @ teacher).argmax(1))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, each: Callable[[], None]) -> None:
    x, y = data()[:64]
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        each()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
def test_counts_never_change_and_inactive_weights_and_state_are_zero(rule: str, optimizer: str) -> None:
    model = network()
    training = SparseTraining.start(model, RULES[rule], total_steps=30)
    built = OPTIMIZERS[optimizer](model.parameters())
    training.attach(built)
    expected = active_counts({n: w.shape for n, w in maskable_weights(model).items()}, 0.1)
    first = training.masks.clone()
    used = [first]  # by the current step

    def check() -> None:
        assert training.masks.counts() == expected
        for name, weight in training.weights.items():
            inactive = ~training.masks[name]
            assert not weight[inactive].any()
            assert not weight.grad[~used[-1][name]].any()
            for value in built.state[weight].values():
                if value.shape == weight.shape:
                    assert not value[inactive].any()
        used.append(training.masks.clone())

    steps(model, built, 30, check)
    assert training.updates == 7  # after steps 3, 6, ..., 21 of the first 22.5
    assert any(not torch.equal(first[name], training.masks[name]) for name in first)
    assert training.itop_rate > training.masks.density


class NumpyTraining:
    """One layer's masks moved as the equations say, by sorting tuples."""

    def __init__(self, training: SparseTraining, name: str) -> None:
        self.rule, self.name, self.total = training.rule, name, training.total_steps or 0
        self.seed = training.seed
        mask = training.masks[name]
        self.mask = mask.numpy().flatten().copy()
        self.visits = self.mask.astype(np.int64)
        order = torch.randperm(mask.numel(), generator=keyed_generator(self.seed, name, "ties"))
        self.rank = order.numpy()

    def update(self, step: int, weight: np.ndarray, gradient: np.ndarray, momentum: np.ndarray) -> np.ndarray:
        rule = self.rule
        assert rule is not None
        zeta = rule.drop / 2 * (1 + math.cos(math.pi * step / (rule.end * self.total)))
        moved = min(math.floor(zeta * self.mask.sum()), int((~self.mask).sum()))
        before = self.mask.copy()
        active = sorted(np.flatnonzero(before), key=lambda i: (abs(weight[i]), self.rank[i]))
        for position in active[:moved]:
            self.mask[position] = False
        scores = self.scores(step, gradient, momentum)
        free = ~self.mask if rule.allow_regrow else ~before
        grown = sorted(np.flatnonzero(free), key=lambda i: (-scores[i], self.rank[i]))[:moved]
        self.mask[grown] = True
        self.visits += self.mask
        return np.where(self.mask & before, weight, 0)

    def scores(self, step: int, gradient: np.ndarray, momentum: np.ndarray) -> np.ndarray:
        match self.rule:
            case RigL():
                return np.abs(gradient)
            case SparseMomentum():
                return np.abs(momentum)
            case Explore(bonus=bonus, eps=eps, decay=decay, update_every=every):
                bonus = bonus * decay ** (step // every - 1)
                visits = torch.from_numpy(self.visits.astype(np.int32))
                return np.abs(gradient) + (bonus * math.log(max(step, 2)) / (visits + eps)).numpy()
        generator = keyed_generator(self.seed, self.name, step)
        return torch.rand(gradient.shape, generator=generator).numpy()


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("allow_regrow", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_updates_equal_a_slow_reference_bit_for_bit(rule: str, allow_regrow: bool, tie: bool) -> None:
    """Weights, masks and visits of 20 updates, also where magnitudes and gradients take few values."""
    chosen = RULES[rule].model_copy(update={"allow_regrow": allow_regrow, "update_every": 1, "drop": 0.5})
    model = nn.ModuleList([nn.Linear(13, 7, bias=False), nn.Conv2d(3, 5, 3, bias=False)])
    training = SparseTraining.start(model, chosen.model_copy(update={"density": 0.3}), total_steps=28, seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    training.attach(optimizer)
    references = {name: NumpyTraining(training, name) for name in training.weights}
    momenta = {name: np.zeros(w.numel(), np.float32) for name, w in training.weights.items()}
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 21):
        for name, weight in training.weights.items():
            noise = torch.randn(weight.shape, generator=generator)
            weight.grad = noise.round() if tie else noise
            gradient = weight.grad.numpy().flatten().copy()
            momenta[name] = np.float32(0.9) * momenta[name] + gradient
            reference = references[name]
            stepped = weight.detach().numpy().flatten() - np.where(reference.mask, gradient, 0)
            expected = reference.update(step, stepped, gradient, momenta[name])
            reference.expected = expected  # type: ignore[attr-defined]
        optimizer.step()
        for name, weight in training.weights.items():
            reference = references[name]
            assert np.array_equal(training.masks[name].numpy().flatten(), reference.mask)
            assert np.array_equal(training.visits[name].numpy().flatten(), reference.visits)
            assert np.array_equal(weight.detach().numpy().flatten(), reference.expected)  # type: ignore[attr-defined]
    assert training.updates == 20


def quadratic_growth(masked_before_growth: bool) -> set[int]:
    """Positions after an update for f = sum(g w) with known g, of a layer whose first four are active."""
    model = nn.Linear(16, 1, bias=False)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, :4] = True
    with torch.no_grad():
        model.weight.copy_(torch.tensor([4.0, 3, 2, 1] + [0] * 12))
    masks = MaskSet({"weight": mask})
    rule = RigL(density=0.25, update_every=1, drop=1, end=1, allow_regrow=False)
    training = SparseTraining(model, masks, rule, total_steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    training.attach(optimizer)
    if masked_before_growth:
        model.weight.register_hook(lambda gradient: gradient * mask)
    gradient = torch.tensor([0.0, 0, 0, 0, 1, 2, 3, 4, 5, 6, -9, 7, 0, 0, 8, 0])
    (model.weight * gradient).sum().backward()
    optimizer.step()
    assert masks.count() == 4
    return set(torch.nonzero(masks["weight"][0]).flatten().tolist())


def test_rigl_grows_where_the_gradient_is_largest_unless_it_was_masked_before() -> None:
    # Half of the four are dropped at step 1 of 2: those of magnitude 2 and 1.
    assert quadratic_growth(masked_before_growth=False) == {0, 1, 10, 14}
    assert quadratic_growth(masked_before_growth=True) != {0, 1, 10, 14}


def test_what_was_dropped_grows_again_only_where_allowed() -> None:
    weight, mask = torch.tensor([3.0, 1, 0, 0]), torch.tensor([True, True, False, False])
    scores, rank = torch.tensor([0.0, 9, 1, 2]), torch.arange(4)
    assert drop_and_grow(weight, mask, scores, 1, rank, True).tolist() == [True, True, False, False]
    assert drop_and_grow(weight, mask, scores, 1, rank, False).tolist() == [True, False, False, True]


def test_regrown_weights_keep_value_and_state() -> None:
    model = nn.Linear(4, 1, bias=False)
    masks = MaskSet({"weight": torch.tensor([[True, True, False, False]])})
    rule = RigL(density=0.5, update_every=1, drop=1, end=1)
    training = SparseTraining(model, masks, rule, total_steps=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    training.attach(optimizer)
    (model.weight * torch.tensor([5.0, 9, 1, 1])).sum().backward()
    optimizer.step()
    assert masks["weight"].tolist() == [[True, True, False, False]]
    assert model.weight.count_nonzero() == 2
    assert optimizer.state[model.weight]["momentum_buffer"].count_nonzero() == 2


def test_exploration_without_bonus_is_rigl_and_with_a_huge_one_visits_the_new() -> None:
    masks = {}
    for name, rule in {
        "rigl": RigL(density=0.1, update_every=2),
        "none": Explore(density=0.1, update_every=2, bonus=0),
        "huge": Explore(density=0.1, update_every=2, bonus=1e9),
    }.items():
        model = network()
        training = SparseTraining.start(model, rule, total_steps=20)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        training.attach(optimizer)
        ever, size = [training.itop_rate], training.masks.size

        def note(training: SparseTraining = training, ever: list[float] = ever, size: int = size) -> None:
            if training.steps % 2 == 0 and training.steps < 15 and isinstance(training.rule, Explore):
                moved = sum(training._moved(name, training.steps) for name in training.masks)
                if training.rule.bonus > 1:
                    assert training.itop_rate == pytest.approx(ever[-1] + moved / size)
                assert training.itop_rate >= ever[-1]
                ever.append(training.itop_rate)

        steps(model, optimizer, 20, note)
        masks[name] = training.masks
    assert all(torch.equal(masks["rigl"][n], masks["none"][n]) for n in masks["rigl"])
    assert not all(torch.equal(masks["rigl"][n], masks["huge"][n]) for n in masks["rigl"])


def test_a_gradient_that_is_not_finite_leaves_the_masks_alone() -> None:
    model = nn.Linear(8, 2, bias=False)
    training = SparseTraining.start(model, RigL(density=0.5, update_every=1), total_steps=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training.attach(optimizer)
    before = training.masks.clone()
    model.weight.grad = torch.full((2, 8), torch.inf).masked_fill(training.masks["weight"], 0.0)
    with pytest.warns(NonFiniteGradient, match="step 1"):
        optimizer.step()
    assert (training.skipped, training.updates) == (1, 0)
    assert torch.equal(before["weight"], training.masks["weight"])
    assert torch.isfinite(model.weight).all()


@pytest.mark.parametrize("rule", [None, *RULES])
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path: Path, rule: str | None) -> None:
    config = FitConfig(steps=24, batch_size=64, learning_rate=0.1, checkpoint_seconds=0, seed=3)

    def train(checkpoint: Path | None, stop_at: int | None = None) -> SparseTraining:
        training = SparseTraining.start(network(), RULES[rule] if rule else Static(density=0.1), seed=1)
        callbacks = [StopAt(stop_at)] if stop_at else []
        fit_sparse(training, data(), None, config, callbacks=[*callbacks, Nothing()], checkpoint=checkpoint)
        return training

    whole = train(None)
    file = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(file, stop_at=10)
    resumed = train_without_stop(file, config, rule)
    assert resumed.state_dict() == whole.state_dict()
    for name in whole.masks:
        assert torch.equal(whole.masks[name], resumed.masks[name])
        assert torch.equal(whole.visits[name], resumed.visits[name])
        assert torch.equal(whole.weights[name], resumed.weights[name])
    assert not [name for name in resumed.model.state_dict() if "mask" in name]


def train_without_stop(file: Path, config: FitConfig, rule: str | None) -> SparseTraining:
    training = SparseTraining.start(network(seed=9), RULES[rule] if rule else Static(density=0.1), seed=1)
    fit_sparse(training, data(), None, config, callbacks=[StopAt(None), Nothing()], checkpoint=file)
    return training


class StopAt(Callback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, state: FitState) -> None:
        if state.step == self.step:
            raise KeyboardInterrupt


class Nothing(Callback):
    pass


def test_checkpoints_of_other_masks_are_refused(tmp_path: Path) -> None:
    config = FitConfig(steps=8, batch_size=64, checkpoint_seconds=0)
    file = tmp_path / "training.safetensors"
    fit_sparse(SparseTraining.start(network(), RULES["rigl"]), data(), None, config, checkpoint=file)
    other = SparseTraining.start(network(), RigL(density=0.2, update_every=3))
    with pytest.raises(CheckpointMismatch, match="active weights, rule differ"):
        fit_sparse(other, data(), None, config, checkpoint=file)
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    with pytest.raises(CheckpointMismatch):
        fit_sparse(SparseTraining.start(narrow, RULES["rigl"]), data(), None, config, checkpoint=file)


def test_density_one_is_dense_training_bit_for_bit() -> None:
    config = FitConfig(steps=12, batch_size=64, momentum=0.9, weight_decay=5e-4)
    dense = network()
    fit(dense, data(), None, config)
    rules = [rule.model_copy(update={"density": 1.0}) for rule in RULES.values()]
    for rule in (Static(density=1, rescale=True), *rules):
        training = SparseTraining.start(network(), rule)
        fit_sparse(training, data(), None, config)
        for name, value in dense.state_dict().items():
            assert torch.equal(value, training.model.state_dict()[name])


def test_optimizers_that_train_other_parameters_are_refused() -> None:
    model = network()
    training = SparseTraining.start(model, RULES["rigl"])
    with pytest.raises(MaskError, match="total_steps"):
        training.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    copies = [p.detach().clone().requires_grad_() for p in model.parameters()]
    with pytest.raises(MaskError, match=r"does not hold 0\.weight"):
        training.attach(torch.optim.SGD(copies, lr=0.1))
    training.total_steps = 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training.attach(optimizer)
    for _ in range(2):
        optimizer.step()
    with pytest.raises(MaskError, match="call backward"):
        optimizer.step()


def test_a_second_training_of_one_model_is_refused() -> None:
    training = SparseTraining.start(network(), RULES["rigl"])
    with training.in_state_dict(), pytest.raises(MaskError, match="another"), training.in_state_dict():
        pass


@pytest.mark.parametrize(
    "change", [{"density": 0}, {"density": 1.5}, {"update_every": 0}, {"drop": 0}, {"bonus": -1}, {"eps": 0}]
)
def test_rules_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(change))):
        Explore(**({"density": 0.1} | change))


def test_weights_are_rescaled_by_the_density_of_their_layer() -> None:
    dense = network()
    training = SparseTraining.start(network(), Static(density=0.2, rescale=True))
    for name, weight in training.weights.items():
        scale = (weight.numel() / training.counts[name]) ** 0.5
        expected = dense.get_parameter(name) * scale * training.masks[name]
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("rule", ["dense", "static", *RULES])
def test_the_meter_counts_what_the_closed_form_says_to_the_unit(rule: str) -> None:
    model, total = network(), 24
    training = None
    if rule != "dense":
        training = SparseTraining.start(model, RULES.get(rule, Static(density=0.1)))
    config = FitConfig(steps=total, batch_size=64)
    with FlopMeter(model, training) as meter:
        if training is None:
            fit(model, data(), data(32), config, callbacks=[meter])
        else:
            fit_sparse(training, data(), data(32), config, callbacks=[meter])
    rows = layer_rows(model, torch.zeros(64, 1, 6, 6))
    assert rows == {"0.weight": 64 * 16, "3.weight": 64, "5.weight": 64}
    dense = forward_flops(model, rows)
    assert dense == 2 * 64 * (16 * 54 + 96 * 30 + 30 * 5)
    growth = {"rigl": 5, "explore": 5, "momentum": 17}.get(rule, 0)
    if training is None:
        assert meter.total == training_flops(dense, dense, total) == 3 * dense * total
        assert meter.training_sparsity == 0
        return
    assert training.growth_steps == growth
    sparse = forward_flops(model, rows, training.masks)
    assert meter.total == training_flops(dense, sparse, total, growth)
    assert meter.total == 3 * sparse * (total - growth) + growth * (2 * sparse + dense)
    assert meter.training_sparsity == pytest.approx(1 - training.masks.density)


def test_rows_of_tied_and_transposed_layers_add_up() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight
            self.up = nn.ConvTranspose1d(6, 3, 4, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.second(self.first(x)).transpose(1, 2))

    assert layer_rows(Tied(), torch.zeros(2, 5, 6)) == {"first.weight": 20, "up.weight": 10}


def test_layers_see_the_dense_gradient_before_masking() -> None:
    """A rule of one's own gets gradients at inactive positions, and decides by any score."""
    seen: list[bool] = []

    class Own(RigL):
        def scores(self, layer: Layer) -> Tensor:
            assert layer.gradient is not None
            seen.append(bool(layer.gradient[layer.weight == 0].any()))
            return layer.gradient

    model = network()
    training = SparseTraining.start(model, Own(density=0.2, update_every=2), total_steps=10)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    training.attach(optimizer)
    steps(model, optimizer, 10, lambda: None)
    assert seen
    assert all(seen)
