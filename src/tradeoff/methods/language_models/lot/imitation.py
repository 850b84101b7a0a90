"""The paper's hypothesis by itself: what a network learned from labels that mean something is imitable."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tradeoff.nn.fit import FitConfig, fit

from .baselines import task_loss
from .imitability import imitability
from .tasks import Task


@dataclass(frozen=True)
class Imitated:
    """Divergence of a student from its teacher on inputs that neither was trained on, at T = 1.

    Attributes:
        before: training the student.
        after: it.
    """

    before: float
    after: float


def imitate(
    task: Task,
    teacher_training: FitConfig,
    student_training: FitConfig,
    *,
    random_labels: bool,
    temperature: float,
    seed: int,
    device: str = "cpu",
    folder: Path,
) -> Imitated:
    """Train a teacher on labels, true or random, and then a student on the teacher's outputs alone.

    Args:
        task: of images; the validation examples join the training.
        teacher_training, student_training: how.
        random_labels: whether each label is drawn anew, so that there is nothing but noise to learn.
        temperature: of the student's loss.
        seed: of weights and random labels; the student has the next one.
        folder: for checkpoints.
    """
    x, y = _all_examples(task)
    if random_labels:
        drawn = np.random.default_rng(seed).integers(0, int(y.max()) + 1, len(y))
        y = torch.from_numpy(drawn)
    networks = []
    for each in (seed, seed + 1):
        with torch.random.fork_rng([]):
            torch.manual_seed(each)
            networks.append(task.make(0.0).to(device))
    teacher, student = networks
    examples = TensorDataset(x, y)
    fit(
        teacher, examples, None, teacher_training, loss=task_loss(), checkpoint=folder / "teacher.safetensors"
    )
    teacher.eval()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(x)
        return imitability(model(x), target, temperature)

    before = _divergence(student, teacher, task.test[0].to(device))
    fit(student, examples, None, student_training, loss=loss, checkpoint=folder / "student.safetensors")
    return Imitated(before, _divergence(student, teacher, task.test[0].to(device)))


@torch.no_grad()
def _divergence(student: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    return float(imitability(student.eval()(x), teacher.eval()(x), temperature=1.0))


def _all_examples(task: Task) -> tuple[Tensor, Tensor]:
    parts = (task.train[torch.arange(len(task.train))], task.validation)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
