"""LoT in the project's training loop."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tradeoff.nn.checkpoint import CheckpointMismatch
from tradeoff.nn.fit import Callback, FitConfig, FitState, History, Indexable, augment, fit

from .regularizer import LoT
from .running_index import RunningIndex


def train(
    lot: LoT,
    data: Indexable,
    validation: Indexable | None,
    config: FitConfig,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
) -> History:
    """Train a teacher and its students by :func:`tradeoff.nn.fit.fit`, and all that it offers.

    ``config`` is the teacher's as it would be without students: with alpha 0 the teacher ends with the same
    weights, bit for bit, as ``fit(teacher, data, validation, config)`` gives. ``clip_norm`` holds for each
    network.

    Args:
        lot: its own ``optimizer`` and ``clip_norm`` are not used.
        data: training split, ``data[index tensor]`` gives inputs and targets.
        validation: the teacher's accuracy on it is measured, for classes of whole inputs; None to skip.
        config: of the training.
        callbacks: called after the students' steps; ``state.model.teacher`` is the network.
        checkpoint: file to go on from if it exists, and to write while training.

    Returns:
        The history, whose epochs also have ``task``, ``imitability`` and ``student_kl``.

    Raises:
        StudentDiverged, TrainingDiverged: outputs are not finite.
        CheckpointMismatch: ``checkpoint`` belongs to another training.
        ValueError: the networks are recurrent: examples in random order have no memory.
    """
    if lot.recurrent:
        raise ValueError("train draws examples in random order; call step for recurrent networks")
    lot.clip_norm = config.clip_norm
    students = _Students(lot, data, config)
    return fit(
        lot,
        data,
        validation,
        config.model_copy(update={"clip_norm": None}),
        loss=students.loss,
        callbacks=[students, *callbacks],
        checkpoint=checkpoint,
    )


class _Students(Callback):
    """The joint loss, and the students' additional steps behind it."""

    def __init__(self, lot: LoT, data: Indexable, config: FitConfig) -> None:
        self.lot, self.data, self.config = lot, data, config
        self.index = RunningIndex(len(data), min(config.batch_size, len(data)), seed=config.seed)
        self.sums: dict[str, float] = {}

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        z_t, z_s = model(x, "joint")
        losses = self.lot.losses(z_t, z_s, y)
        self.lot.stats = losses.stats
        for name, value in losses.stats.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return losses.total

    def on_step_begin(self, state: FitState) -> None:
        self.lot.steps = state.step
        self.lot.extra_batches = state.step * (self.lot.student_steps - 1)

    def on_gradients(self, state: FitState) -> None:
        self.lot.clip()

    def on_step_end(self, state: FitState) -> None:
        self.lot.steps = state.step
        for _ in range(self.lot.student_steps - 1):
            x, y = self._batch(self.lot.extra_batches, state)
            self.lot.student_step(x, y, state.optimizer)

    def on_epoch_end(self, state: FitState) -> None:
        steps = state.step - state.epoch * state.steps_per_epoch + state.steps_per_epoch
        state.logs |= {name: value / max(steps, 1) for name, value in self.sums.items()}
        self.sums = {}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "settings": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["settings"] != (mine := self._settings()):
            different = sorted(name for name in mine if state["settings"].get(name) != mine[name])
            raise CheckpointMismatch(
                f"the checkpoint is of a LoT with other {', '.join(different)}; give another file"
            )
        self.sums = dict(state["sums"])

    def _settings(self) -> dict[str, Any]:
        names = (
            *("alpha", "student_steps", "temperature", "student_loss", "alpha_warmup", "teacher_mode"),
            *("clip_norm", "seed"),
        )
        return {name: getattr(self.lot, name) for name in names}

    def _batch(self, number: int, state: FitState) -> tuple[Tensor, Tensor]:
        """This process's part of an additional batch, augmented as the joint ones are."""
        positions = self.index.batch(number)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
            positions = positions.chunk(size)[rank]
        # Of the students alone: which augmentation a joint batch gets must not depend on them.
        seed = int(np.random.SeedSequence((self.config.seed, number, 1)).generate_state(1)[0])
        augmented = getattr(self.data, "augmented", None)
        x, y = augmented(positions, seed) if augmented is not None else self.data[positions]
        progress = (state.step - 1) / state.total_steps
        generator = torch.Generator().manual_seed(seed)
        return augment(x.to(state.device), self.config, progress, generator), y.to(state.device)
