"""Training under a budget: effects at small scale, interruption, divergence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tradeoff.data.images import ImageData
from tradeoff.methods.private_inference.autorep import (
    AutoReP,
    ReplacementConfig,
    SelectiveLinearization,
    random_positions,
    relu_count,
)
from tradeoff.nn import polynomial
from tradeoff.nn.checkpoint import CheckpointMismatch
from tradeoff.nn.fit import Callback, FitConfig, FitState, evaluate
from tradeoff.nn.models import build
from tradeoff.nn.polynomial import PolynomialDivergence

SHAPE, TOTAL = (1, 8, 16), 4096
TWO_PERCENT, TEN_PERCENT = TOTAL * 2 // 100, TOTAL // 10
SCORE_RATE = 0.03


def phases(replacement: int = 150, finetuning: int = 100, **changes: Any) -> tuple[FitConfig, FitConfig]:
    common = {
        "batch_size": 64,
        "optimizer": "adam",
        "learning_rate": 0.003,
        "checkpoint_seconds": 0,
    } | changes
    first = FitConfig(steps=replacement, schedule="constant", **common)
    return first, FitConfig(steps=finetuning, seed=1, final_learning_rate=1e-5, **common)


def compressed(trained: nn.Module, pairs: ImageData, budget: int, kind: str, **options: Any) -> float:
    """Train with one kind of polynomial and return the accuracy on the validation pairs."""
    config = ReplacementConfig(polynomial=kind, calib_iters=60, hysteresis=SCORE_RATE)  # type: ignore[arg-type]
    method = AutoReP(trained, budget, SHAPE, config, penalty=100.0, **options)
    first, second = phases()
    if "positions" in options:
        second = second.model_copy(update={"steps": 250})
    method.fit(pairs.train, None, first, second, score_learning_rate=SCORE_RATE)
    assert method.relu_count() <= budget
    return evaluate(method.finalize(), pairs.validation)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the replacement phase")
def test_distribution_aware_polynomials_beat_identity_at_two_percent(
    trained: nn.Module, pairs: ImageData
) -> None:
    ours = compressed(trained, pairs, TWO_PERCENT, "dapa")
    identity = compressed(trained, pairs, TWO_PERCENT, "identity")
    assert ours - identity >= 0.15
    assert evaluate(trained, pairs.validation) - ours <= 0.04


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the replacement phase")
def test_learned_positions_beat_random_ones_unless_the_gradient_is_broken(
    trained: nn.Module, pairs: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = random_positions(trained, SHAPE, TEN_PERCENT)
    baseline = compressed(trained, pairs, TEN_PERCENT, "identity", positions=random)
    assert compressed(trained, pairs, TEN_PERCENT, "identity") - baseline >= 0.04
    correct: Callable[..., Any] = polynomial._GatedReLU.backward

    def flipped(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        grad_x, grad_gate, *rest = correct(ctx, gradient)
        return (grad_x, None if grad_gate is None else -grad_gate, *rest)

    monkeypatch.setattr(polynomial._GatedReLU, "backward", staticmethod(flipped))
    assert compressed(trained, pairs, TEN_PERCENT, "identity") - baseline < 0.04


@pytest.mark.slow
def test_snl_beats_random_positions(trained: nn.Module, pairs: ImageData) -> None:
    random = random_positions(trained, SHAPE, TEN_PERCENT)
    baseline = compressed(trained, pairs, TEN_PERCENT, "identity", positions=random)
    method = SelectiveLinearization(trained, TEN_PERCENT, SHAPE, penalty=30.0)
    method.fit(pairs.train, None, *phases(), score_learning_rate=SCORE_RATE)
    net = method.finalize()
    assert method.relu_count() == relu_count(net, SHAPE) <= TEN_PERCENT
    assert evaluate(net, pairs.validation) - baseline >= 0.04


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the replacement phase")
def test_excess_flips_fall_with_the_hysteresis_band(trained: nn.Module, pairs: ImageData) -> None:
    flips = []
    for band in (0.0, 0.003, 0.03):
        config = ReplacementConfig(hysteresis=band, calib_iters=50)
        method = AutoReP(trained, TWO_PERCENT, SHAPE, config, penalty=100.0)
        method.fit(pairs.train, None, *phases(120, 1), score_learning_rate=SCORE_RATE)
        flips.append(method.excess_flips())
    assert flips[0] > flips[1] > flips[2] > 0


class Interrupt(Callback):
    """Stands for a kill after some steps of a phase; never without arguments."""

    def __init__(self, phase: int = -1, step: int = 0) -> None:
        self.phase, self.step = phase, step

    def on_step_begin(self, state: FitState) -> None:
        if state.config.seed == self.phase and state.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:the replacement phase")
@pytest.mark.parametrize("phase", [0, 1])
def test_interrupted_training_ends_with_the_same_network(
    fresh: nn.Module, pairs: ImageData, tmp_path: Path, phase: int
) -> None:
    def method() -> AutoReP:
        return AutoReP(fresh, 200, SHAPE, ReplacementConfig(calib_iters=8, refresh=3), penalty=50.0)

    def run(method: AutoReP, interrupt: Callback, checkpoint: Path | None = None) -> dict[str, Tensor]:
        train = pairs.train.take(256)
        options = {"score_learning_rate": 0.1, "checkpoint": checkpoint, "callbacks": [interrupt]}
        method.fit(train, pairs.validation.take(100), *phases(12, 8), **options)
        return method.finalize().state_dict()

    straight = run(method(), Interrupt())
    with pytest.raises(KeyboardInterrupt):
        run(method(), Interrupt(phase, 6), checkpoint=tmp_path)
    resumed = run(method(), Interrupt(), checkpoint=tmp_path)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.filterwarnings("ignore:the replacement phase")
def test_checkpoints_of_another_training_are_refused(
    fresh: nn.Module, pairs: ImageData, tmp_path: Path
) -> None:
    """Else the same folder with a smaller budget would quietly give the old training, projected."""
    data = pairs.train.take(128), None

    def autorep(budget: int, penalty: float = 50.0, network: nn.Module = fresh) -> None:
        method = AutoReP(network, budget, SHAPE, ReplacementConfig(calib_iters=1), penalty=penalty)
        method.fit(*data, *phases(2, 1), checkpoint=tmp_path / "autorep")

    def snl(budget: int) -> None:
        method = SelectiveLinearization(fresh, budget, SHAPE)
        method.fit(*data, *phases(2, 1), checkpoint=tmp_path / "snl")

    autorep(200)
    autorep(200)
    with pytest.raises(CheckpointMismatch, match="budget differ"):
        autorep(100)
    with pytest.raises(CheckpointMismatch, match="penalty differ"):
        autorep(200, penalty=1.0)
    with pytest.raises(CheckpointMismatch, match="network, teacher differ"):
        autorep(200, network=build("pair_cnn", 10, SHAPE).eval())
    snl(200)
    with pytest.raises(CheckpointMismatch, match="budget differ"):
        snl(100)


@pytest.mark.filterwarnings("ignore:the replacement phase")
def test_history_tells_counts_and_the_best_epoch_within_the_budget_is_kept(
    fresh: nn.Module, pairs: ImageData
) -> None:
    method = AutoReP(fresh, 300, SHAPE, ReplacementConfig(calib_iters=10), penalty=100.0)
    train, validation = pairs.train.take(640), pairs.validation.take(200)
    common = {"batch_size": 64, "optimizer": "adam", "learning_rate": 0.003}
    history = method.fit(
        train,
        validation,
        FitConfig(epochs=3, **common),
        FitConfig(epochs=3, **common),
        score_learning_rate=0.1,
    )
    counts, accuracy = history.column("relu_count"), history.column("validation_accuracy")
    assert len(counts) == 6
    assert history.column("density") == [count / TOTAL for count in counts]
    assert counts[0] > counts[-1]
    assert counts[3:] == [300] * 3, "what training left unused came back"
    flips = history.column("flips")
    assert flips[:3] == sorted(flips[:3])
    assert flips[3:] == [flips[3]] * 3, "positions are fixed in the second phase"
    best = max(a for a, count in zip(accuracy, counts, strict=True) if count <= 300)
    assert evaluate(method.finalize(), validation) == pytest.approx(best)


def test_missed_budget_is_projected_with_a_warning_and_trained_on(fresh: nn.Module, pairs: ImageData) -> None:
    method = AutoReP(fresh, 10, SHAPE, penalty=0.0)
    first = FitConfig(steps=2, batch_size=64, optimizer="adam", learning_rate=0.001)
    with pytest.warns(UserWarning, match="ended 4086 ReLUs above the budget of 10"):
        history = method.fit(pairs.train.take(128), None, first)
    assert method.relu_count() == 10
    assert len(history.epochs) == 2, "one epoch with the positions fixed follows the projection"


def test_divergence_names_the_site_and_the_channel(fresh: nn.Module, pairs: ImageData) -> None:
    nothing = random_positions(fresh, SHAPE, 0)
    method = AutoReP(fresh, 0, SHAPE, ReplacementConfig(polynomial="square"), positions=nothing)
    with torch.no_grad():
        method.network.get_submodule("bn2").weight[3] = 1e30
    with pytest.raises(PolynomialDivergence, match="relu2, channel 3") as caught:
        method.fit(pairs.train, None, phases()[0])
    assert caught.value.c2 == 1.0


@pytest.mark.parametrize("weight", [1e30, float("nan")])
def test_fitted_polynomials_name_the_channel_that_diverges(fresh: nn.Module, pairs, weight: float) -> None:
    method = AutoReP(fresh, 0, SHAPE)
    with torch.no_grad():
        method.network.get_submodule("bn2").weight[3] = weight
    with pytest.raises(PolynomialDivergence, match="relu2, channel 3"):
        method.fit(pairs.train, None, phases()[0])


def test_weight_decay_spares_scores_and_coefficients(fresh: nn.Module) -> None:
    method = AutoReP(fresh, 100, SHAPE)
    groups = method._parameter_groups(FitConfig(steps=1, weight_decay=0.1), None)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0]
    assert sum(p.numel() for p in groups[0]["params"]) == TOTAL
