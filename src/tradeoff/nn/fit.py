"""The training loop that every method shares, on Accelerate.

``fit(model, train, validation, FitConfig(epochs=10, learning_rate=0.1))`` trains ``model`` in place. The same
call works in one process, under ``torchrun`` and under ``accelerate launch``: a batch is split over the
processes and gradients are averaged. Order of the data, augmentation and dropout depend on (seed, step)
alone, so a run that goes on from a checkpoint ends with the same weights, bit for bit on a CPU, as one
that was never stopped.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast_object_list
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tradeoff.core.errors import TradeoffError
from tradeoff.nn.augment import crop_and_flip, progressive_scale, resize
from tradeoff.nn.checkpoint import CheckpointMismatch, hold_checkpoint, load_checkpoint, save_checkpoint
from tradeoff.nn.lookahead import Lookahead
from tradeoff.nn.optimization import Schedule, learning_rate, make_optimizer

__all__ = [
    "Callback",
    "CheckpointMismatch",
    "FitConfig",
    "FitState",
    "History",
    "TrainingDiverged",
    "augment",
    "evaluate",
    "fit",
]

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]

log = logging.getLogger(__name__)


class TrainingDiverged(TradeoffError, ArithmeticError):
    """The loss became infinite or not a number."""


class FitConfig(BaseModel):
    """How to train. Exactly one of ``epochs`` and ``steps`` is given.

    Attributes:
        epochs: passes over the training split (the last incomplete batch of a pass is left out).
        steps: optimizer steps.
        batch_size: images per step, over all processes together (all of a smaller training split).
        final_learning_rate: where ``cosine`` and ``one_cycle`` end.
        momentum: of SGD, or the first decay rate of Adam.
        schedule: ``cosine`` falls from the first step on; ``one_cycle`` rises linearly during
            ``warmup_fraction`` of the steps and falls linearly after (Smith, 2018).
        lookahead: steps between two slow-weight updates; None for none.
        mixed_precision: None leaves it to ``accelerate launch``, and means "no" without a launcher.
        clip_norm: largest norm of the gradient of all parameters; None for no limit.
        crop_padding: pixels of zero padding before a random crop; 0 for none.
        flip: mirror half of the training images.
        initial_scale: of the training images' sides; they grow linearly to full size, which the last
            ``full_size_fraction`` of the steps have. Smaller images make the first epochs cheap.
        channels_last: memory format of the model and the batches.
        checkpoint_seconds: least time between two checkpoints, which are written at ends of epochs and, when
            an epoch takes longer, between steps.
        evaluate_every: epochs between two validations; the last epoch is always validated.
        workers: processes that read images which are not in memory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int | None = Field(default=None, ge=0)
    steps: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0)
    final_learning_rate: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Schedule = "cosine"
    warmup_fraction: float = Field(default=0.25, gt=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    lookahead: int | None = Field(default=None, ge=1)
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    clip_norm: float | None = Field(default=None, gt=0)
    crop_padding: int = Field(default=0, ge=0)
    flip: bool = False
    initial_scale: float = Field(default=1.0, gt=0, le=1)
    full_size_fraction: float = Field(default=0.2, gt=0, le=1)
    channels_last: bool = False
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    evaluate_every: int = Field(default=1, ge=1)
    workers: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


@dataclass
class History:
    """What happened, one entry per epoch: ``step``, ``loss`` (mean over the epoch's steps),
    ``learning_rate``, ``seconds`` and, where measured, ``validation_accuracy``; callbacks may add their own.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)

    def column(self, name: str) -> list[float]:
        """One quantity over the epochs that have it."""
        return [entry[name] for entry in self.epochs if name in entry]


@dataclass
class FitState:
    """What callbacks see and may change.

    Attributes:
        model: the network itself, not the wrapper that synchronizes gradients.
        step: optimizer steps done.
        epoch: epochs done, the current one not counted.
        loss: of the last step; NaN before the first.
        logs: the history entry of the epoch that ends, in ``on_epoch_end``.
        stop: set it to end training after this step.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: FitConfig
    history: History
    total_steps: int
    steps_per_epoch: int
    device: torch.device
    step: int = 0
    epoch: int = 0
    loss: float = math.nan
    logs: dict[str, float] = field(default_factory=dict)
    stop: bool = False


class Callback:
    """Hooks into :func:`fit`; override what is needed. What a callback must remember over an interruption it
    gives as JSON values in :meth:`state_dict`, and tensors in :meth:`state_tensors`."""

    def on_step_begin(self, state: FitState) -> None: ...

    def on_gradients(self, state: FitState) -> None:
        """Between the backward pass and the optimizer's step, where gradients may be changed."""

    def on_step_end(self, state: FitState) -> None: ...

    def on_epoch_end(self, state: FitState) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def state_tensors(self) -> dict[str, Tensor]:
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


class Indexable(Protocol):
    """A data set that gives several positions at once, as :class:`tradeoff.data.splits.Split` does."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> tuple[Tensor, Tensor]: ...


def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """The default loss: softmax cross-entropy of the model's outputs."""

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(model(inputs), targets, label_smoothing=label_smoothing)

    return loss


def fit(
    model: nn.Module,
    train: Indexable | TensorDataset,
    validation: Indexable | TensorDataset | None,
    config: FitConfig,
    *,
    loss: Loss | None = None,
    parameter_groups: Sequence[Mapping[str, Any]] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
) -> History:
    """Train ``model`` in place where it lives (its device), or on each process's device under a launcher.

    Args:
        train: split, ``TensorDataset``, or anything that gives ``(inputs, targets)`` for an index tensor. A
            split with a method ``augmented(positions, seed)`` is read through it.
        validation: measured at the end of epochs; None to skip.
        loss: ``loss(model, inputs, targets)`` gives a scalar; cross-entropy when not given. Call the
            model that is passed, not one captured from outside, or processes do not share gradients.
        parameter_groups: mappings with ``params`` and any of ``learning_rate``, ``final_learning_rate``,
            ``weight_decay``, ``momentum``, ``schedule``, which replace the configuration's, and of Adam
            ``betas`` and ``eps``. Parameters of the model that no group lists are trained with the
            configuration's own values.
        checkpoint: file to go on from if it exists, and to write while training.

    Returns:
        The history, that of interrupted runs included.

    Raises:
        TrainingDiverged: the loss is infinite or NaN.
        CheckpointInUse: another process is training with ``checkpoint``.
        CheckpointMismatch: ``checkpoint`` belongs to another configuration, model or data size.
        ValueError: no training data, a parameter group that does not fit the model, a batch that does not
            divide over the processes, or a checkpoint together with FSDP.
    """
    accelerator = _accelerator(model, config)
    return _Fit(
        accelerator, model, train, validation, config, loss, parameter_groups, callbacks, checkpoint
    ).run()


def augment(inputs: Tensor, config: FitConfig, progress: float, generator: torch.Generator) -> Tensor:
    """A batch of training inputs as the configuration wants it at ``progress`` (0 to 1) of the training."""
    inputs = crop_and_flip(inputs, config.crop_padding, config.flip, generator)
    if config.initial_scale < 1:
        scale = progressive_scale(progress, config.initial_scale, config.full_size_fraction)
        inputs = resize(inputs, scale)
    if config.channels_last:
        inputs = inputs.to(memory_format=torch.channels_last)
    return inputs


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Indexable | TensorDataset, *, batch_size: int = 500, workers: int = 0
) -> float:
    """Part of ``split`` that ``model``, in evaluation mode on its own device, labels correctly: 0 to 1.

    Under a launcher every process labels its share and all get the same result.
    """
    processes = _processes()
    device = _device_of(model)
    training = model.training
    model.eval()
    positions = torch.arange(_rank(), len(split), processes)
    # The same number of batches on every process: a sharded model communicates in each.
    batches = max(1, math.ceil(math.ceil(len(split) / processes) / batch_size))
    correct = torch.zeros((), dtype=torch.int64, device=device)
    try:
        for inputs, targets in _loader(split, torch.tensor_split(positions, batches), workers):
            outputs = model(inputs.to(device, non_blocking=True))
            correct += (outputs.argmax(1) == targets.to(device, non_blocking=True)).sum()
    finally:
        model.train(training)
    if processes > 1:
        torch.distributed.all_reduce(correct)
    return int(correct) / max(len(split), 1)


class _Fit:
    """One call of :func:`fit`."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        train: Indexable | TensorDataset,
        validation: Indexable | TensorDataset | None,
        config: FitConfig,
        loss: Loss | None,
        parameter_groups: Sequence[Mapping[str, Any]] | None,
        callbacks: Sequence[Callback],
        checkpoint: Path | None,
    ) -> None:
        if len(train) == 0:
            raise ValueError("the training split is empty")
        if checkpoint is not None and accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("training with sharded parameters (FSDP) writes no checkpoint; leave it out")
        self.accelerator = accelerator
        self.train, self.validation = train, validation
        self.config = config
        self.loss = loss or cross_entropy(config.label_smoothing)
        self.callbacks = callbacks
        self.checkpoint = checkpoint
        self.batch_size = min(config.batch_size, len(train))
        if self.batch_size % accelerator.num_processes:
            raise ValueError(
                f"a batch of {self.batch_size} does not divide over {accelerator.num_processes} processes"
            )
        steps_per_epoch = len(train) // self.batch_size
        total = config.steps if config.steps is not None else (config.epochs or 0) * steps_per_epoch
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(model, config, parameter_groups)
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.lookahead = Lookahead(self.parameters, config.lookahead) if config.lookahead else None
        self.state = FitState(model, optimizer, config, History(), total, steps_per_epoch, accelerator.device)
        self.epoch_loss = 0.0
        self.epoch_seconds = 0.0

    def run(self) -> History:
        """Train to the end; with a checkpoint, as the only process that does so."""
        if self.checkpoint is None or not self.accelerator.is_main_process:
            return self._run()
        with hold_checkpoint(self.checkpoint):
            return self._run()

    def _run(self) -> History:
        state = self.state
        if self.checkpoint is not None and self.checkpoint.exists():
            self._resume(self.checkpoint)
        self.last_saved = time.monotonic()
        was_training = state.model.training
        devices = [state.device.index or 0] if state.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                while state.step < state.total_steps and not state.stop:
                    self._epoch()
        finally:
            state.model.train(was_training)
            self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        return state.history

    def _epoch(self) -> None:
        state, config = self.state, self.config
        first = state.step - state.epoch * state.steps_per_epoch
        last = min(state.steps_per_epoch, first + state.total_steps - state.step)
        self.wrapped.train()
        started = time.monotonic()
        seeds = [self._seed(step) for step in range(state.step, state.step + last - first)]
        for inputs, targets in _loader(self.train, self._order()[first:last], config.workers, seeds):
            self._step(inputs, targets)
            if state.stop:
                break
            if state.step % state.steps_per_epoch and state.step < state.total_steps and self._save_due():
                self.epoch_seconds += time.monotonic() - started
                started = time.monotonic()
                self._save()
        self._end_epoch(self.epoch_seconds + time.monotonic() - started)

    def _end_epoch(self, seconds: float) -> None:
        state, config = self.state, self.config
        steps = state.step - state.epoch * state.steps_per_epoch
        state.epoch += 1
        state.logs = {
            "step": state.step,
            "loss": self.epoch_loss / steps,
            "learning_rate": state.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
        }
        self.epoch_loss, self.epoch_seconds = 0.0, 0.0
        finished = state.stop or state.step >= state.total_steps
        if self.validation is not None and (finished or state.epoch % config.evaluate_every == 0):
            state.logs["validation_accuracy"] = evaluate(state.model, self.validation, workers=config.workers)
        for callback in self.callbacks:
            callback.on_epoch_end(state)
        state.history.epochs.append(state.logs)
        log.info("epoch %d: %s", state.epoch, {k: round(v, 4) for k, v in state.logs.items()})
        if finished or self._save_due():
            self._save()

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        state, config = self.state, self.config
        seed = self._seed(state.step)
        _seed_device(state.device, seed)
        inputs = augment(
            inputs.to(state.device, non_blocking=True),
            config,
            state.step / state.total_steps,
            torch.Generator().manual_seed(_mix(seed)),
        )
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(group, config, state.step, state.total_steps)
        for callback in self.callbacks:
            callback.on_step_begin(state)
        self.optimizer.zero_grad()
        loss = self.loss(self.wrapped, inputs, targets.to(state.device, non_blocking=True))
        self.accelerator.backward(loss)
        if config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.parameters, config.clip_norm)
        else:
            self.accelerator.unscale_gradients()
        for callback in self.callbacks:
            callback.on_gradients(state)
        self.optimizer.step()
        if self.lookahead is not None:
            self.lookahead.step()
        state.loss = float(loss.detach())
        state.step += 1
        if not math.isfinite(state.loss):
            raise TrainingDiverged(
                f"the loss is {state.loss} at step {state.step} of {state.total_steps} (learning rate "
                f"{state.optimizer.param_groups[0]['lr']:.3g}); lower learning_rate or set clip_norm"
            )
        self.epoch_loss += state.loss
        for callback in self.callbacks:
            callback.on_step_end(state)

    def _seed(self, step: int) -> int:
        """Of all that is random in a step of this process."""
        return _mix(self.config.seed, step, 1 + self.accelerator.process_index)

    def _order(self) -> list[Tensor]:
        """Positions of this process's part of each batch of the epoch."""
        generator = torch.Generator().manual_seed(_mix(self.config.seed, self.state.epoch, 0))
        order = torch.randperm(len(self.train), generator=generator)
        batches = torch.split(order[: self.state.steps_per_epoch * self.batch_size], self.batch_size)
        return [
            batch.chunk(self.accelerator.num_processes)[self.accelerator.process_index] for batch in batches
        ]

    def _save_due(self) -> bool:
        """Whether to write a checkpoint now; all processes agree, since only the first one's clock counts."""
        if self.checkpoint is None:
            return False
        due = time.monotonic() - self.last_saved >= self.config.checkpoint_seconds
        return bool(broadcast_object_list([due])[0])

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        state = self.state
        tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
        for parameter in self.parameters:
            for key, value in state.optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{self.names[id(parameter)]}/{key}"] = value
        if self.lookahead is not None:
            for parameter, slow in zip(self.parameters, self.lookahead.slow, strict=True):
                tensors[f"lookahead/{self.names[id(parameter)]}"] = slow
        for place, callback in enumerate(self.callbacks):
            kept = callback.state_tensors()
            tensors |= {f"callback/{place}/{name}": tensor for name, tensor in kept.items()}
        progress = {
            "fingerprint": self._fingerprint(),
            "step": state.step,
            "epoch": state.epoch,
            "stop": state.stop,
            "history": state.history.epochs,
            "epoch_loss": self.epoch_loss,
            "epoch_seconds": self.epoch_seconds,
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }
        if self.accelerator.is_main_process:
            save_checkpoint(self.checkpoint, tensors, progress)
        self.last_saved = time.monotonic()

    def _resume(self, path: Path) -> None:
        tensors, progress = load_checkpoint(path)
        if progress["fingerprint"] != (mine := self._fingerprint()):
            different = sorted(k for k in mine if progress["fingerprint"].get(k) != mine[k])
            raise CheckpointMismatch(
                f"{path} was written by another training ({', '.join(different)} differ); "
                "give another checkpoint file, or remove this one to start anew"
            )
        state = self.state
        state.model.load_state_dict({name: tensors[f"model/{name}"] for name in state.model.state_dict()})
        self._load_optimizer(tensors)
        if self.lookahead is not None:
            self.lookahead.steps = progress["step"]
            for parameter, slow in zip(self.parameters, self.lookahead.slow, strict=True):
                slow.copy_(tensors[f"lookahead/{self.names[id(parameter)]}"])
        state.step, state.epoch, state.stop = progress["step"], progress["epoch"], progress["stop"]
        state.history.epochs.extend(progress["history"])
        self.epoch_loss, self.epoch_seconds = progress["epoch_loss"], progress["epoch_seconds"]
        for place, (callback, saved) in enumerate(zip(self.callbacks, progress["callbacks"], strict=True)):
            callback.load_state_dict(saved)
            prefix = f"callback/{place}/"
            callback.load_state_tensors(
                {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            )
        if self.accelerator.scaler and progress["scaler"]:
            self.accelerator.scaler.load_state_dict(progress["scaler"])
        log.info("going on from %s at step %d of %d", path, state.step, state.total_steps)

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        entries: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer/"):
                _, name, entry = key.split("/")
                entries.setdefault(name, {})[entry] = tensor
        names = [self.names[id(parameter)] for parameter in self.parameters]
        numbered = {index: entries[name] for index, name in enumerate(names) if name in entries}
        groups = self.state.optimizer.state_dict()["param_groups"]
        self.state.optimizer.load_state_dict({"state": numbered, "param_groups": groups})

    def _fingerprint(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued."""
        irrelevant = {"checkpoint_seconds", "workers"}
        return {
            "configuration": self.config.model_dump(mode="json", exclude=irrelevant),
            "model": {name: list(tensor.shape) for name, tensor in self.state.model.state_dict().items()},
            "training images": len(self.train),
            "callbacks": [type(callback).__name__ for callback in self.callbacks],
            "parameter groups": [
                {
                    "parameters": [self.names[id(parameter)] for parameter in group["params"]],
                    **{key: group[key] for key in ("base_lr", "final_lr", "schedule", "weight_decay")},
                }
                for group in self.state.optimizer.param_groups
            ],
        }


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """One item a batch; the split augments by itself where it can and seeds are given."""

    def __init__(
        self, split: Indexable | TensorDataset, positions: Sequence[Tensor], seeds: Sequence[int] | None
    ) -> None:
        self.split, self.positions, self.seeds = split, positions, seeds

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor]:
        augmented = getattr(self.split, "augmented", None)
        if augmented is not None and self.seeds is not None:
            inputs, targets = augmented(self.positions[batch], self.seeds[batch])
        else:
            inputs, targets = self.split[cast(Any, self.positions[batch])]
        return inputs, targets


def _loader(
    split: Indexable | TensorDataset,
    positions: Sequence[Tensor],
    workers: int,
    seeds: Sequence[int] | None = None,
) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(
        _Batches(split, positions, seeds),
        batch_size=None,
        num_workers=workers,
        pin_memory=workers > 0 and torch.cuda.is_available(),
        generator=torch.Generator(),  # else it would draw from the global one
    )


def _accelerator(model: nn.Module, config: FitConfig) -> Accelerator:
    """Accelerate on the model's own device, or on the one that the launcher gave to this process."""
    alone = _processes() == 1
    device = _device_of(model).type
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if AcceleratorState._shared_state:
        current = AcceleratorState()
        if current.mixed_precision != precision or (alone and current.device.type != device):
            # Accelerate keeps one precision and device per process; this training asks for others.
            AcceleratorState._reset_state(reset_partial_state=alone)
    return Accelerator(mixed_precision=precision, cpu=alone and device == "cpu")


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _seed_device(device: torch.device, seed: int) -> None:
    """Seed the host and the device that trains; ``torch.manual_seed`` would visit every kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _mix(*numbers: int) -> int:
    """A 63-bit seed from several numbers, without visible relation between neighbors (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
