"""The training loop: it learns, schedules are right, and an interrupted run goes on bit for bit."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tradeoff.data import images
from tradeoff.nn.checkpoint import CheckpointInUse
from tradeoff.nn.fit import (
    Callback,
    CheckpointMismatch,
    FitConfig,
    FitState,
    TrainingDiverged,
    evaluate,
    fit,
)
from tradeoff.nn.models import build


class Interruption(Exception):
    """What a test raises to stop a training."""


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, state: FitState) -> None:
        if state.step == self.step:
            raise Interruption


class Keep(Callback):
    """Stands where StopAt stood, so that both runs have the same callbacks."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_step_end(self, state: FitState) -> None:
        self.rates.append([group["lr"] for group in state.optimizer.param_groups])


@pytest.fixture(scope="module")
def digits() -> images.ImageData:
    return images.load("digits")


def network(dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(256, 10),
    )


def test_small_cnn_learns_digits(digits):
    torch.manual_seed(0)
    model = build("small_cnn", 10, digits.input_shape)
    config = FitConfig(epochs=12, batch_size=50, optimizer="adam", learning_rate=3e-3)
    history = fit(model, digits.train, digits.validation, config)
    assert evaluate(model, digits.test) > 0.93
    assert history.column("loss")[-1] < history.column("loss")[0] / 5
    assert history.column("step") == [20.0 * (i + 1) for i in range(12)]


@pytest.mark.parametrize("stop", [7, 10, 23])
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "learning_rate": 0.05, "crop_padding": 1, "flip": True, "lookahead": 3},
        {"optimizer": "adam", "learning_rate": 1e-3, "clip_norm": 1.0, "weight_decay": 1e-4},
    ],
)
def test_interrupted_run_goes_on_bit_for_bit(digits, tmp_path: Path, stop, options):
    config = FitConfig(epochs=3, batch_size=100, checkpoint_seconds=0, seed=3, **options)
    whole = network()
    history = fit(whole, digits.train, digits.validation, config)

    path = tmp_path / "fit.safetensors"
    with pytest.raises(Interruption):
        fit(network(), digits.train, digits.validation, config, callbacks=[StopAt(stop)], checkpoint=path)
    resumed = network()
    with torch.no_grad():
        resumed[5].weight.zero_()  # a fresh process does not hold the weights of the interrupted one
    again = fit(resumed, digits.train, digits.validation, config, callbacks=[StopAt(-1)], checkpoint=path)

    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert again.column("loss") == history.column("loss")
    assert again.column("validation_accuracy") == history.column("validation_accuracy")


def test_two_processes_do_not_train_with_one_checkpoint(digits, tmp_path: Path):
    config, path = FitConfig(epochs=1, batch_size=100), tmp_path / "fit.safetensors"
    hold = "import sys, pathlib; from tradeoff.nn.checkpoint import hold_checkpoint\n"
    hold += "with hold_checkpoint(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointInUse, match=r"another process is training with .*fit\.safetensors"):
            fit(network(), digits.train, None, config, checkpoint=path)
    finally:
        other.kill()
        other.communicate()
    fit(network(), digits.train, None, config, checkpoint=path)  # a killed process holds nothing
    assert path.exists()


def test_random_layers_follow_the_seed_and_leave_torchs_generator_alone(digits):
    config, results = FitConfig(steps=4, batch_size=100, seed=5), []
    for start in (1, 2):
        torch.manual_seed(start)
        before = torch.get_rng_state()
        model = network(dropout=0.5)
        torch.set_rng_state(before)
        fit(model, digits.train, None, config)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(model[5].weight)
    assert torch.equal(*results)


def test_finished_run_is_not_repeated(digits, tmp_path: Path):
    config, path = FitConfig(epochs=1, batch_size=100), tmp_path / "fit.safetensors"
    first = network()
    fit(first, digits.train, None, config, checkpoint=path)
    second, counter = network(), Keep()
    history = fit(second, digits.train, None, config, checkpoint=path)
    assert len(history.epochs) == 1
    assert torch.equal(first[5].weight, second[5].weight)
    assert not counter.rates


def test_checkpoint_of_another_training_is_refused(digits, tmp_path: Path):
    path = tmp_path / "fit.safetensors"
    fit(network(), digits.train, None, FitConfig(epochs=1), checkpoint=path)
    with pytest.raises(CheckpointMismatch, match="configuration"):
        fit(network(), digits.train, None, FitConfig(epochs=2), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointMismatch, match="damaged"):
        fit(network(), digits.train, None, FitConfig(epochs=1), checkpoint=path)


def test_global_random_state_and_mode_are_left_alone(digits):
    model = network().eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(model, digits.train, None, FitConfig(steps=2))
    assert torch.equal(torch.rand(3), expected)
    assert not model.training


def test_nan_loss_is_a_clear_error(digits):
    config = FitConfig(epochs=5, learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match="lower learning_rate or set clip_norm"):
        fit(network(), digits.train, None, config)


def test_schedules_and_groups(digits):
    model, keep = network(), Keep()
    config = FitConfig(
        steps=8, optimizer="adam", learning_rate=1e-3, final_learning_rate=1e-5, weight_decay=0.1
    )
    groups = [
        {"params": model[5].bias, "learning_rate": 0.5, "schedule": "constant", "weight_decay": 0.0},
        {"params": list(model[0].parameters()), "schedule": "one_cycle", "learning_rate": 0.1},
    ]
    fit(model, digits.train, None, config, parameter_groups=groups, callbacks=[keep])
    constant, one_cycle, cosine = zip(*keep.rates, strict=True)
    assert set(constant) == {0.5}
    assert max(one_cycle) == one_cycle[2] == pytest.approx(0.1)
    assert one_cycle[0] < one_cycle[1]
    assert cosine == pytest.approx([1e-5 + 0.99e-3 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)])


@pytest.mark.parametrize("nesterov", [False, True])
def test_loop_equals_a_handwritten_one(digits, nesterov):
    """Without shuffling effects: one batch holds all images, so that only the optimizer's path counts."""
    split = digits.train.take(64)
    ours, theirs = network(dropout=0), network(dropout=0)
    config = FitConfig(
        epochs=4,
        batch_size=64,
        learning_rate=0.1,
        momentum=0.8,
        nesterov=nesterov,
        weight_decay=0.01,
        schedule="constant",
    )
    fit(ours, split, None, config)
    optimizer = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.01
    )
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(split.x), split.y).backward()
        optimizer.step()
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_weight_decay_spares_its_group():
    """With zero inputs only decay moves the weights."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    data = torch.utils.data.TensorDataset(torch.zeros(16, 1, 2, 2), torch.zeros(16, dtype=torch.int64))
    before = [model[i].weight.detach().clone() for i in (1, 2)]
    groups = [{"params": model[1].weight, "weight_decay": 0.0}]
    config = FitConfig(steps=1, learning_rate=0.1, weight_decay=0.5)
    fit(model, data, None, config, parameter_groups=groups)
    assert torch.equal(model[1].weight, before[0])
    assert torch.allclose(model[2].weight, before[1] * 0.95)


def test_bad_groups_and_lengths_are_refused(digits):
    with pytest.raises(ValueError, match="exactly one of epochs and steps"):
        FitConfig()
    with pytest.raises(ValueError, match="no trained parameter"):
        fit(network(), digits.train, None, FitConfig(steps=1), parameter_groups=[{"params": torch.ones(1)}])
    with pytest.raises(ValueError, match="unknown keys"):
        fit(network(), digits.train, None, FitConfig(steps=1), parameter_groups=[{"params": [], "lr": 1}])
    with pytest.raises(ValueError, match="empty"):
        fit(network(), digits.train.take(0), None, FitConfig(steps=1))


def test_mixed_precision_on_cpu_and_back(digits):
    """bf16 changes the result, and leaves neither the model nor the next training in bf16."""
    plain, mixed = network(), network()
    fit(plain, digits.train, None, FitConfig(epochs=1))
    fit(mixed, digits.train, None, FitConfig(epochs=1, mixed_precision="bf16"))
    assert not torch.equal(plain[5].weight, mixed[5].weight)
    assert mixed[5].weight.dtype == torch.float32
    again = network()
    fit(again, digits.train, None, FitConfig(epochs=1))
    assert torch.equal(plain[5].weight, again[5].weight)
    mixed.eval()
    x = digits.test.x[:5]
    assert torch.equal(mixed(x), nn.Sequential(*mixed.children())(x))  # forward is its own again


def test_own_loss_and_stop(digits):
    class StopAfterFive(Callback):
        def on_step_end(self, state: FitState) -> None:
            state.stop = state.step == 5

    seen = []

    def loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs))
        return nn.functional.mse_loss(model(inputs), nn.functional.one_hot(targets, 10).float())

    history = fit(network(), digits.train, None, FitConfig(epochs=9), loss=loss, callbacks=[StopAfterFive()])
    assert seen == [128] * 5
    assert history.column("step") == [5]
