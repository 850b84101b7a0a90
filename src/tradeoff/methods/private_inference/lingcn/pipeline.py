"""The three phases in one call, for users who want a network and no study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tradeoff.data.skeletons import SkeletonData
from tradeoff.methods.private_inference.lingcn.network import STGCN, Shape
from tradeoff.methods.private_inference.lingcn.training import linearize, polynomialize, train_teacher
from tradeoff.nn.fit import FitConfig, evaluate


@dataclass(frozen=True)
class Training:
    """Size and length: the phases take ``epochs``, a third and two thirds of them."""

    channels: tuple[int, ...] = (8, 8)
    epochs: int = 9
    batch_size: int = 64
    learning_rate: float = 0.01
    gate_rate: float = 0.003
    seed: int = 0

    def phase(self, part: float, rate: float) -> FitConfig:
        """A phase's length and learning rate, as parts of the teacher's."""
        return FitConfig(
            epochs=max(1, round(self.epochs * part)),
            batch_size=self.batch_size,
            optimizer="adam",
            learning_rate=self.learning_rate * rate,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Trained:
    """What came of it; accuracies are of the test split."""

    network: STGCN
    teacher: STGCN
    accuracy: float
    teacher_accuracy: float


def train_all(
    data: SkeletonData,
    mu: float,
    training: Training | None = None,
    *,
    teacher: STGCN | None = None,
    shared: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Teacher, linearization at weight ``mu`` (0 for none), quadratics.

    Args:
        teacher: one that is trained already.
        shared: one quadratic for all joints of a position, as in CryptoGCN.
    """
    training = training or Training()
    torch.manual_seed(training.seed)
    if teacher is None:
        shape = Shape(
            training.channels, (1,) * len(training.channels), data.num_classes, 9, data.input_shape[0]
        )
        say("training the teacher")
        network = STGCN(data.skeleton, shape)
        teacher = train_teacher(network, data.train, data.validation, training.phase(1, 1))
    linearized = teacher
    if mu:
        say("closing gates")
        phase = training.phase(1 / 3, 0.3)
        linearized = linearize(
            teacher, data.train, data.validation, phase, mu=mu, gate_rate=training.gate_rate
        )
    say("training quadratics")
    phase = training.phase(2 / 3, 0.5)
    network = polynomialize(linearized, teacher, data.train, data.validation, phase, shared=shared)
    return Trained(network, teacher, evaluate(network, data.test), evaluate(teacher, data.test))
