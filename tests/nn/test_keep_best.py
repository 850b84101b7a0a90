"""The best epoch's weights come back, also after an interruption between that epoch and the end."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tradeoff.nn.fit import Callback, FitConfig, FitState, fit
from tradeoff.nn.keep_best import KeepBest

SCORES: list[float | None] = [0.3, 0.9, None, float("nan"), 0.9, 0.5]
"""By epoch: the best is the second, and the first of two equal ones."""
BEST = 2


class Interruption(Exception):
    """What a test raises to stop a training."""


class Watch(Callback):
    """Keeps the weights of each epoch, and stops at the end of one."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.weights: list[Tensor] = []

    def on_epoch_end(self, state: FitState) -> None:
        assert isinstance(state.model, nn.Linear)
        self.weights.append(state.model.weight.detach().clone())

    def on_step_begin(self, state: FitState) -> None:
        if state.epoch == self.stop_after:
            raise Interruption


Train = Callable[..., tuple[nn.Linear, KeepBest, Watch]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train six epochs, going on from the checkpoint of that name."""
    data = TensorDataset(torch.randn(20, 3), torch.arange(20) % 2)
    config = FitConfig(epochs=len(SCORES), batch_size=10, checkpoint_seconds=0)

    def run(name: str = "whole", stop_after: int | None = None) -> tuple[nn.Linear, KeepBest, Watch]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        best = KeepBest(lambda state: SCORES[state.epoch - 1])
        watch = Watch(stop_after)
        fit(model, data, None, config, callbacks=[watch, best], checkpoint=tmp_path / name)
        best.restore(model)
        return model, best, watch

    return run


def test_first_of_the_best_epochs_is_restored(train: Train) -> None:
    model, best, watch = train()
    assert (best.value, best.epoch) == (0.9, BEST)
    assert torch.equal(model.weight, watch.weights[BEST - 1])
    assert not torch.equal(model.weight, watch.weights[-1])


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_best_weights_outlive_an_interruption(train: Train, stop_after: int) -> None:
    """After four epochs no later one is better, so the weights can come from the checkpoint only."""
    whole, *_ = train()
    with pytest.raises(Interruption):
        train("interrupted", stop_after)
    model, best, watch = train("interrupted")
    assert len(watch.weights) == len(SCORES) - stop_after
    assert (best.value, best.epoch) == (0.9, BEST)
    assert torch.equal(model.weight, whole.weight)


def test_finished_training_is_restored_again(train: Train) -> None:
    first, again = train()[0], train()[0]
    assert torch.equal(first.weight, again.weight)


def test_without_a_score_the_model_keeps_its_weights() -> None:
    model, best = nn.Linear(3, 2), KeepBest(lambda state: None)
    before = model.weight.detach().clone()
    best.restore(model)
    assert best.value is None
    assert torch.equal(model.weight, before)
