"""What LoT is for, at a scale of seconds, and that broken variants miss it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tradeoff.methods.language_models.lot import LoT
from tradeoff.methods.language_models.lot.experiment import Curve, LoTSettings, PeerSettings, run_variant
from tradeoff.methods.language_models.lot.imitation import imitate
from tradeoff.methods.language_models.lot.tasks import image_task, text_task
from tradeoff.nn.fit import FitConfig

IMITATING = LoTSettings(alpha=1.0, student_steps=1, student_loss="kl")


def training(steps: int, seed: int) -> FitConfig:
    return FitConfig(
        steps=steps,
        batch_size=64,
        optimizer="adamw",
        learning_rate=0.002,
        weight_decay=0.01,
        schedule="constant",
        seed=seed,
    )


def noisy_accuracy(variant: Any, steps: int, seed: int, folder: Path) -> float:
    """After the last step, on digits of which 30 % have random labels."""
    task = image_task("digits", examples=600, noise=0.3, arch="mlp", seed=seed)
    curve, _ = run_variant(
        variant,
        task,
        training(steps, seed),
        lot=IMITATING,
        peers=PeerSettings(),
        every=steps,
        seed=seed,
        folder=folder / f"{variant}-{steps}-{seed}",
    )
    return curve.points[-1].test_accuracy


MARGIN = 0.03
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Accuracies of plain training, by seed."""
    return [noisy_accuracy("plain", 360, seed, tmp_path_factory.mktemp("plain")) for seed in SEEDS]


def gain(plain: list[float], folder: Path) -> float:
    """Of LoT over plain training of as many updates."""
    ours = [noisy_accuracy("lot", 360, seed, folder) for seed in SEEDS]
    return sum(a - b for a, b in zip(ours, plain, strict=True)) / len(SEEDS)


def test_wrong_labels_harm_less(plain: list[float], tmp_path: Path) -> None:
    assert gain(plain, tmp_path) > MARGIN


def test_a_penalty_that_is_not_fed_back_gives_no_gain(
    plain: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's side detached by mistake."""

    def broken(lot: LoT, task: Any, z_t: Any, z_s: Any) -> Any:
        return right(lot, task, z_t.detach(), z_s)

    right = LoT.regularized
    monkeypatch.setattr(LoT, "regularized", broken)
    assert gain(plain, tmp_path) < MARGIN


def test_a_text_is_learned_by_heart_later(tmp_path: Path) -> None:
    """Less over-fitting: the loss on unseen text at the end of a training that is too long."""
    task = text_task(
        "python", train_bytes=4000, held_out_bytes=4000, length=16, dim=32, layers=1, init_std=0.08
    )
    config = training(150, seed=0).model_copy(update={"batch_size": 16, "learning_rate": 0.008})
    curves: dict[str, Curve] = {}
    for variant in ("plain", "lot"):
        curves[variant], _ = run_variant(
            variant,  # type: ignore[arg-type]
            task,
            config,
            lot=LoTSettings(),
            peers=PeerSettings(),
            every=150,
            seed=0,
            folder=tmp_path / variant,
        )
    plain, ours = (curves[name].points[-1] for name in ("plain", "lot"))
    assert ours.test_loss < plain.test_loss - 0.04
    operations = [curves[name].points[-1].flops for name in ("plain", "lot")]
    assert operations[1] == pytest.approx(10 / 3 * operations[0])


def test_what_generalizes_is_imitable(tmp_path: Path) -> None:
    task = image_task("digits", examples=None, noise=0.0, arch="mlp", seed=0)
    teacher = FitConfig(epochs=25, batch_size=64, optimizer="adamw", learning_rate=0.002, schedule="constant")
    true, random = (
        imitate(
            task,
            teacher,
            teacher.model_copy(update={"epochs": 12}),
            random_labels=random_labels,
            temperature=1.5,
            seed=0,
            folder=tmp_path / str(random_labels),
        )
        for random_labels in (False, True)
    )
    assert true.before > 5 * true.after
    assert random.after > 2 * true.after


@pytest.mark.parametrize(
    "variant",
    ["strong-dropout", "weight-decay", "mixup", "sam", "mutual", "born-again", "two-models"],
)
def test_interrupted_trainings_of_peers_go_on(variant: Any, tmp_path: Path) -> None:
    """A second call finds the checkpoint and gives the same points without training again."""
    task = image_task("digits", examples=100, noise=0.0, arch="small_cnn", seed=0)
    arguments: dict[str, Any] = {"lot": LoTSettings(), "peers": PeerSettings(), "every": 2, "seed": 0}
    first, network = run_variant(variant, task, training(4, 0), folder=tmp_path, **arguments)
    again, same = run_variant(variant, task, training(4, 0), folder=tmp_path, **arguments)
    assert again.points == first.points
    assert isinstance(network, nn.Module)
    for one, other in zip(network.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
