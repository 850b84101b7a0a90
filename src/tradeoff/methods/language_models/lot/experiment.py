"""One training of one variant: what it reached after how many steps, and at which cost."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tradeoff.core.memory import peak_memory
from tradeoff.nn.fit import Callback, FitConfig, FitState, fit

from .baselines import SAM, distilled, mixup, r_drop, rows_cross_entropy, task_loss
from .regularizer import LoT
from .tasks import Predict, Task, log_probabilities, score
from .training import train

Variant = Literal[
    "plain",
    "lot",
    "label-smoothing",
    "dropout",
    "strong-dropout",
    "weight-decay",
    "mixup",
    "r-drop",
    "sam",
    "mutual",
    "born-again",
    "two-models",
]


class LoTSettings(pydantic.BaseModel):
    """What LoT is tuned by; see :class:`LoT`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(default=0.5, ge=0)
    student_steps: int = Field(default=2, ge=1)
    temperature: float = Field(default=1.5, gt=0)
    student_loss: Literal["kl", "kl_ce", "symmetric_kl", "symmetric_kl_ce"] = "kl_ce"


class PeerSettings(pydantic.BaseModel):
    """What the other regularizers are tuned by.

    Attributes:
        label_smoothing: of ``label-smoothing``.
        dropout: of ``dropout`` and ``r-drop``.
        strong_dropout: of ``strong-dropout``.
        weight_decay: of ``weight-decay``, decoupled from the gradient.
        mixup: alpha of ``mixup``.
        r_drop: weight of ``r-drop``.
        rho: of ``sam``.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    strong_dropout: float = Field(default=0.2, ge=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0)
    mixup: float = Field(default=0.2, gt=0)
    r_drop: float = Field(default=1.0, ge=0)
    rho: float = Field(default=0.05, gt=0)


MUTUAL = LoTSettings(alpha=1.0, student_steps=1, temperature=1.0, student_loss="kl_ce")
"""Deep mutual learning (Zhang et al., CVPR 2018): two networks that learn the task and from each other."""


@dataclass(frozen=True)
class Point:
    """Where a training stands.

    Attributes:
        step: updates of the network that is kept.
        validation_loss, test_loss: nats.
        test_accuracy: part of the targets.
        student_kl: mean over the steps since the last point; None without students.
        seconds: of training so far, evaluation left out.
        flops: of matrix products and convolutions so far, all networks and passes.
    """

    step: int
    validation_loss: float
    test_loss: float
    test_accuracy: float
    student_kl: float | None
    seconds: float
    flops: float


@dataclass(frozen=True)
class Curve:
    """A training.

    Attributes:
        points: in order.
        peak_memory: bytes; on a GPU, of its own memory.
    """

    points: tuple[Point, ...]
    peak_memory: int

    def at(self, steps: int, chosen: Literal["best", "last"]) -> tuple[Point, Point]:
        """The point that counts of a training of ``steps``, and that at its end."""
        within = [point for point in self.points if point.step <= steps]
        end = within[-1]
        return (min(within, key=lambda p: p.validation_loss) if chosen == "best" else end), end

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps({"points": [asdict(p) for p in self.points], "peak": self.peak_memory}))

    @classmethod
    def read(cls, path: Path) -> "Curve":
        """What :meth:`write` wrote."""
        stored = json.loads(path.read_text())
        return cls(tuple(Point(**point) for point in stored["points"]), stored["peak"])


class Recorder(Callback):
    """Evaluates while training; the time and operations of that are not counted.

    Args:
        task: what to evaluate on.
        predict: how, from the model that is trained.
        every: steps between two points.
        spent: seconds and operations before this training, such as of a teacher's.
        advance: called after each step.
    """

    def __init__(
        self,
        task: Task,
        predict: Callable[[nn.Module], Predict],
        every: int,
        spent: tuple[float, float] = (0.0, 0.0),
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self.task, self.predict, self.every, self.advance = task, predict, every, advance
        self.seconds, self.flops = spent
        self.step_flops = 0.0
        self.points: list[Point] = []
        self.student_kl: list[float] = []
        self._counting = ExitStack()
        self._counter: FlopCounterMode | None = None

    def on_step_begin(self, state: FitState) -> None:
        if not self.step_flops:
            self._counter = self._counting.enter_context(FlopCounterMode(display=False))
        self._started = time.perf_counter()

    def on_step_end(self, state: FitState) -> None:
        self.seconds += time.perf_counter() - self._started
        if self._counter is not None:
            self._counting.close()
            self.step_flops, self._counter = float(self._counter.get_total_flops()), None
        self.flops += self.step_flops
        if isinstance(state.model, LoT):
            self.student_kl.append(state.model.stats["student_kl"])
        if state.step % self.every == 0 or state.step == state.total_steps:
            self._evaluate(state)
        self.advance()

    def _evaluate(self, state: FitState) -> None:
        predict = self.predict(state.model)
        (validation, _), (test, accuracy) = (
            score(predict, examples) for examples in (self.task.validation, self.task.test)
        )
        kl = sum(self.student_kl) / len(self.student_kl) if self.student_kl else None
        self.student_kl = []
        spent = (self.seconds, self.flops)
        self.points.append(Point(state.step, validation, test, accuracy, kl, *spent))

    def state_dict(self) -> dict[str, Any]:
        names = ("seconds", "flops", "step_flops", "student_kl")
        return {
            "points": [asdict(point) for point in self.points],
            **{name: getattr(self, name) for name in names},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.points = [Point(**point) for point in state["points"]]
        for name in ("seconds", "flops", "step_flops", "student_kl"):
            setattr(self, name, state[name])


def run_variant(
    variant: Variant,
    task: Task,
    config: FitConfig,
    *,
    lot: LoTSettings,
    peers: PeerSettings,
    dropout: float = 0.0,
    every: int,
    seed: int,
    device: str = "cpu",
    folder: Path,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Curve, nn.Module]:
    """Train one variant and evaluate it on the way.

    Args:
        config: of the training; its seed orders the examples.
        lot: settings of ``lot``.
        peers: settings of the others.
        dropout: of every network, if the variant has not more of its own.
        every: steps between two evaluations.
        seed: of the weights; a second network has the next one.
        folder: for checkpoints; a training that was stopped goes on from there.
        advance: called after each step.

    Returns:
        The curve, and the trained network.
    """
    run = _Run(task, config, dropout, every, seed, device, folder, advance)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with peak_memory() as peak:
        network, points = _train(variant, run, lot, peers)
    memory = torch.cuda.max_memory_allocated() if on_gpu else peak.bytes
    return Curve(tuple(points), memory), network


@dataclass(frozen=True)
class _Run:
    """What all trainings of a variant have in common."""

    task: Task
    config: FitConfig
    dropout: float
    every: int
    seed: int
    device: str
    folder: Path
    advance: Callable[[], None]

    def make(self, dropout: float = 0.0, next_seed: int = 0) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed + next_seed)
            return self.task.make(max(dropout, self.dropout)).to(self.device)

    def fit(
        self,
        network: nn.Module,
        loss: Any = None,
        *,
        name: str = "network",
        config: FitConfig | None = None,
        callbacks: Sequence[Callback] = (),
        predict: Callable[[nn.Module], Predict] = log_probabilities,
        spent: tuple[float, float] = (0.0, 0.0),
    ) -> list[Point]:
        recorder = Recorder(self.task, predict, self.every, spent, self.advance)
        fit(
            network,
            self.task.train,
            None,
            config or self.config,
            loss=loss or task_loss(),
            callbacks=[*callbacks, recorder],
            checkpoint=self.folder / f"{name}.safetensors",
        )
        return recorder.points


def _train(
    variant: Variant, run: _Run, lot: LoTSettings, peers: PeerSettings
) -> tuple[nn.Module, list[Point]]:
    if variant in ("lot", "mutual"):
        return _with_students(run, lot if variant == "lot" else MUTUAL)
    dropout = {
        "dropout": peers.dropout,
        "r-drop": peers.dropout,
        "strong-dropout": peers.strong_dropout,
    }
    network = run.make(dropout.get(variant, 0.0))
    match variant:
        case "label-smoothing":
            points = run.fit(network, task_loss(peers.label_smoothing))
        case "weight-decay":
            changes = {"optimizer": "adamw", "weight_decay": peers.weight_decay}
            points = run.fit(network, config=run.config.model_copy(update=changes))
        case "mixup":
            points = run.fit(network, mixup(peers.mixup))
        case "r-drop":
            points = run.fit(network, r_drop(peers.r_drop))
        case "sam":
            sam = SAM(peers.rho)
            points = run.fit(network, sam.loss, callbacks=[sam])
        case "born-again":
            before = run.fit(network, name="teacher")[-1]
            again = run.make(next_seed=1)
            spent = (before.seconds, before.flops)
            points, network = run.fit(again, distilled(network), spent=spent), again
        case "two-models":
            points = _two_models(run, network)
        case _:
            points = run.fit(network)
    return network, points


def _with_students(run: _Run, settings: LoTSettings) -> tuple[nn.Module, list[Point]]:
    lot = LoT(
        run.make(), make_student=lambda: run.task.make(run.dropout), seed=run.seed, **settings.model_dump()
    )
    lot.to(run.device)
    recorder = Recorder(run.task, log_probabilities, run.every, advance=run.advance)
    checkpoint = run.folder / "networks.safetensors"
    train(lot, run.task.train, None, run.config, callbacks=[recorder], checkpoint=checkpoint)
    return lot.teacher, recorder.points


class _Pair(nn.Module):
    """Two networks that learn from the same batches, each for itself."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of both."""
        return self.first(x), self.second(x)


def _two_models(run: _Run, network: nn.Module) -> list[Point]:
    """The mean of the predictions of two networks with different starts."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        first, second = model(x)
        return rows_cross_entropy(first, y) + rows_cross_entropy(second, y)

    pair = _Pair(network, run.make(next_seed=1))
    return run.fit(pair, loss, predict=lambda _: log_probabilities(pair.first, pair.second))
