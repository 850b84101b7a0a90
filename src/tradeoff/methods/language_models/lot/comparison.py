"""LoT on a task of the user's, beside plain training with as many updates and with as many operations."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tradeoff.core.context import usable_device
from tradeoff.core.errors import DataError
from tradeoff.data import images
from tradeoff.data.text import CORPORA, LOCAL
from tradeoff.nn.checkpoint import save_checkpoint
from tradeoff.nn.fit import FitConfig

from .errors import InvalidSetting
from .experiment import Curve, LoTSettings, PeerSettings, Variant, run_variant
from .ppo import PPO, LoTPPO, PolicyLoTSettings
from .tasks import Task, image_task, text_task

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One line of the table: means over the seeds, and their standard deviation.

    Attributes:
        name: of the training.
        steps: updates of the network that is kept, or steps in an environment.
        score: accuracy on the test images, loss in nats on the test text, or return of an episode.
        deviation: of the score; 0 with one seed.
        student_kl: at the end; None without students.
        flops: of matrix products and convolutions; None where they are not counted.
        seconds: of training.
        peak_memory: bytes; None where it is not measured.
    """

    name: str
    steps: int
    score: float
    deviation: float
    student_kl: float | None
    flops: float | None
    seconds: float
    peak_memory: int | None


def is_policy(task: str) -> bool:
    """Whether a task is an environment of gymnasium: its name ends in a version, as ``CartPole-v1``."""
    return task.rpartition("-v")[2].isdigit()


def compare_training(
    data: str,
    *,
    alphas: Sequence[float],
    seeds: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    lot: LoTSettings,
    arch: str = "mlp",
    examples: int | None = None,
    noise: float = 0.0,
    train_bytes: int = 20_000,
    out: Path | None = None,
    device: str = "cpu",
    say: Say = lambda line: None,
) -> tuple[str, list[Row]]:
    """Train by labels with each alpha, and plainly with as many updates and as many operations.

    Args:
        data: an image set or folder of images, or a corpus or text file.
        alphas: of LoT; 0 is plain training and has a row anyway.
        seeds: trainings of each.
        steps: updates of the network that is kept.
        batch_size, learning_rate: of all, with AdamW.
        lot: settings of LoT but alpha.
        arch, examples, noise: of images, see :func:`image_task`.
        train_bytes: of a text; a fifth more each follow to validate and to test.
        out: folder for the weights of the networks of the last alpha, one a seed (safetensors).
        device: a torch device.
        say: hears of progress.

    Returns:
        What the score is, and the rows.

    Raises:
        DataError: no such data.
        DeviceError: no such device.
        InvalidSetting: nothing can be written to ``out``.
    """
    device = usable_device(device)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidSetting(f"cannot write to {out}: {error.strerror}") from None
    config = FitConfig(
        steps=steps,
        batch_size=batch_size,
        optimizer="adamw",
        learning_rate=learning_rate,
        weight_decay=0.01,
        schedule="constant",
    )
    tasks = [_task(data, seed, arch, examples, noise, train_bytes) for seed in range(seeds)]
    chosen: Any = "last" if tasks[0].classifies else "best"
    every = max(1, steps // 12)

    def run(name: str, variant: Variant, length: int, settings: LoTSettings, folder: Path | None) -> Row:
        say(f"{name}: {seeds} x {length:,} steps")
        curves = []
        for seed, task in enumerate(tasks):
            training = config.model_copy(update={"steps": length, "seed": seed})
            with TemporaryDirectory(prefix="tradeoff-lot-") as work:
                curve, network = run_variant(
                    variant,
                    task,
                    training,
                    lot=settings,
                    peers=PeerSettings(),
                    every=every,
                    seed=seed,
                    device=device,
                    folder=Path(work),
                )
            curves.append(curve)
            if folder is not None:
                settings_used = {"data": data, "variant": variant, "seed": seed, **settings.model_dump()}
                save_checkpoint(folder / f"seed-{seed}.safetensors", network.state_dict(), settings_used)
        return _row(name, length, curves, chosen, tasks[0].classifies)

    rows = [run("plain", "plain", steps, lot, None)]
    with_lot = [alpha for alpha in alphas if alpha > 0]
    for alpha in with_lot:
        settings = lot.model_copy(update={"alpha": alpha})
        rows.append(
            run(f"LoT, alpha {alpha:g}", "lot", steps, settings, out if alpha == with_lot[-1] else None)
        )
    if with_lot:
        ours, plain = (int(row.flops or 1) for row in (rows[-1], rows[0]))
        rows.append(run("plain, as many operations", "plain", -(-steps * ours // plain), lot, None))
    return ("test accuracy" if tasks[0].classifies else "test loss, nats"), rows


def compare_policies(
    environment: str, *, alphas: Sequence[float], seeds: int, steps: int, say: Say = lambda line: None
) -> tuple[str, list[Row]]:
    """Learn policies by PPO with each alpha; those of 0 without students. See :func:`compare_training`."""
    rows = []
    for alpha in dict.fromkeys((0.0, *alphas)):
        name = f"LoT, alpha {alpha:g}" if alpha else "plain"
        say(f"{name}: {seeds} x {steps:,} steps")
        methods = [
            LoTPPO(environment, seed=seed, lot=PolicyLoTSettings(alpha=alpha))
            if alpha
            else PPO(environment, seed=seed)
            for seed in range(seeds)
        ]
        results = [method.train(steps) for method in methods]
        kls = [result.student_kl[-1] for result in results if result.student_kl]
        scores = [result.mean_return() for result in results]
        seconds = statistics.mean(result.seconds for result in results)
        kl = statistics.mean(kls) if kls else None
        rows.append(Row(name, steps, statistics.mean(scores), _deviation(scores), kl, None, seconds, None))
    return "return of an episode", rows


def _row(name: str, steps: int, curves: Sequence[Curve], chosen: Any, classifies: bool) -> Row:
    points = [curve.at(steps, chosen) for curve in curves]
    scores = [best.test_accuracy if classifies else best.test_loss for best, _ in points]
    kls = [end.student_kl for _, end in points if end.student_kl is not None]
    return Row(
        name=name,
        steps=steps,
        score=statistics.mean(scores),
        deviation=_deviation(scores),
        student_kl=statistics.mean(kls) if kls else None,
        flops=points[0][1].flops,
        seconds=statistics.mean(end.seconds for _, end in points),
        peak_memory=max(curve.peak_memory for curve in curves),
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _task(data: str, seed: int, arch: str, examples: int | None, noise: float, train_bytes: int) -> Task:
    if data in images.LOADERS or (Path(data).is_dir() and data not in (*CORPORA, *LOCAL)):
        return image_task(data, examples=examples, noise=noise, arch=arch, seed=seed)
    if data in (*CORPORA, *LOCAL) or Path(data).is_file():
        return text_task(
            data,
            train_bytes=train_bytes,
            held_out_bytes=max(1, train_bytes // 5),
            length=32,
            dim=48,
            layers=2,
        )
    raise DataError(
        f"no data {data!r}; give an image set ({', '.join(images.LOADERS)}), a folder of images, a corpus "
        f"({', '.join((*CORPORA, *LOCAL))}), a text file, or an environment such as CartPole-v1"
    )
