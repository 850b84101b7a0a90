"""One training with a router, and what is measured in it."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import pydantic
import torch
from torch import Tensor, nn

from tradeoff.nn.fit import Callback, FitConfig, FitState, TrainingDiverged, fit

from .activity import Activity, expert_flops
from .controller import Controller
from .diagnostics import WINDOW, swings
from .errors import ControlError
from .routers import BalanceBias, RouterChoice
from .tasks import Shared, Switchable

Scenario = Literal["steady", "switch", "retarget", "high-gains"]
"""Nothing happens; other data from the middle on; half as many experts more from the middle on; gains that
are too high."""
HIGH_GAINS = (2.0, 1.0)
RETARGET = 1.5
RUNNING = 20
"""Steps of the running mean by which the budget is judged."""
ALLOWED = {"switch": 20, "retarget": 60}
"""Steps that a controller has after a disturbance."""


@dataclass(frozen=True)
class Size:
    """Experts of a layer, and how many a token passes on average: ``e16a4``."""

    experts: int
    active: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """From its text.

        Raises:
            ControlError: not of this form, or more active ones than there are.
        """
        experts, letter, active = text.removeprefix("e").partition("a")
        if not (text.startswith("e") and letter and experts.isdecimal() and active.isdecimal()):
            raise ControlError(f"size {text!r}: write e16a4 for 16 experts of which 4 are active")
        return cls.checked(int(experts), int(active))

    @classmethod
    def checked(cls, experts: int, active: int) -> "Size":
        """From its numbers.

        Raises:
            ControlError: more active ones than there are, or none.
        """
        if not 1 <= active <= experts:
            raise ControlError(f"{active} active of {experts} experts; expected 1 to {experts}")
        return cls(experts, active)

    def __str__(self) -> str:
        return f"e{self.experts}a{self.active}"


class Run(pydantic.BaseModel):
    """What a training gave.

    Attributes:
        loss: on the held-out examples.
        group_active: experts of a token in evaluation, for each group of held-out examples.
        losses: of each step, auxiliary losses included.
        active: mean experts of a token in a layer, of each step; empty for a dense model.
        spread: standard deviation over the tokens of the number of experts, of each step.
        per_layer: ``active`` by layer.
        threshold: of each step, mean over the layers; empty where nothing controls it.
        imbalance: tokens of the busiest expert over the mean, of each step, mean over the layers.
        targets: of each step.
        flops_per_token: of the experts, forward, mean over the training.
        diagnosis: in the words of the controller; empty without one.
        step_seconds: median processor time of a step.
        settled_from: the step from which the budget is judged.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    loss: float
    group_active: dict[str, float]
    losses: tuple[float, ...]
    active: tuple[float, ...]
    spread: tuple[float, ...]
    per_layer: tuple[tuple[float, ...], ...]
    threshold: tuple[float, ...]
    imbalance: tuple[float, ...]
    targets: tuple[float, ...]
    flops_per_token: float
    diagnosis: str
    step_seconds: float
    settled_from: int

    @property
    def last_active(self) -> float:
        """Mean over the last 50 steps."""
        return statistics.fmean(self.active[-WINDOW:])

    @property
    def last_deviation(self) -> float:
        """Standard deviation of the step means over the last 50 steps."""
        return statistics.pstdev(self.active[-WINDOW:])

    @property
    def budget_error(self) -> float:
        """Distance of the last 50 steps' mean from the target, as a part of it."""
        return abs(self.last_active / self.targets[-1] - 1)

    @property
    def budget_excursion(self) -> float:
        """Largest distance of the running mean of 20 steps from the target, as a part of it, once settled."""
        ends = range(min(self.settled_from + RUNNING, len(self.active)), len(self.active) + 1)
        means = [statistics.fmean(self.active[max(0, end - RUNNING) : end]) for end in ends]
        return max(abs(mean / self.targets[-1] - 1) for mean in means)

    @property
    def budget_drift(self) -> float:
        """Change of the running mean from where it is judged first to the end, as a part of the first."""
        start = min(self.settled_from, len(self.active) - 1)
        first = statistics.fmean(self.active[start : start + RUNNING])
        return abs(statistics.fmean(self.active[-RUNNING:]) / first - 1)

    @property
    def swings(self) -> int:
        """Changes from a fifth above the target to a fifth below, or back, in the last 50 steps."""
        return swings(self.active[-WINDOW:], self.targets[-1])

    def layer_active(self, layer: int) -> float:
        """Mean over the last 50 steps of one layer."""
        return statistics.fmean(each[layer] for each in self.per_layer[-WINDOW:])


def train(
    task: Shared,
    router: RouterChoice,
    size: Size,
    scenario: Scenario,
    seed: int,
    device: str = "cpu",
    advance: Callable[[], None] = lambda: None,
) -> Run:
    """Train a model with a router from scratch and measure it.

    Raises:
        ControlError: the scenario needs a controlled router, or experts do not fit the width.
        TrainingDiverged: the loss became infinite.
    """
    require_controller(router, scenario)
    model = _build(task, router, size, seed).to(device)
    control = router.control
    if control and scenario == "high-gains":
        control = replace(control, proportional=HIGH_GAINS[0], integral=HIGH_GAINS[1])
    controller = Controller(model, size.active, control) if control else None
    data = Switchable([task.training(), task.other_training()] if scenario == "switch" else [task.training()])
    middle = round(0.6 * task.steps)
    actions: dict[str, Callable[[], None]] = {"switch": data.switch}
    if controller is not None:
        actions["retarget"] = lambda: setattr(controller, "target_active", RETARGET * size.active)
    recorder = _Recorder(cast(Any, model).moe_layers, size.active, controller, advance)
    callbacks: list[Callback] = [recorder, *([controller.callback()] if controller else [])]
    if router.name == "sigmoid":
        callbacks.append(BalanceBias(model))
    if scenario in actions:
        callbacks.append(_AtStep(middle, actions[scenario]))

    def objective(wrapped: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = task.loss(wrapped, inputs, targets)
        auxiliary: Tensor = cast(Any, model).aux_loss()  # of the forward pass just done
        return loss + auxiliary

    fit(
        model,
        data,
        None,
        _schedule(task, seed),
        loss=objective,
        parameter_groups=without_decay(model),
        callbacks=callbacks,
    )
    loss, groups = _held_out(task, model, router)
    return Run(
        loss=loss,
        group_active=groups,
        flops_per_token=recorder.flops(model, task) / (task.tokens * task.steps),
        diagnosis=str(controller.diagnosis()) if controller else "",
        step_seconds=statistics.median(recorder.seconds),
        settled_from=middle + ALLOWED[scenario] if scenario in ALLOWED else task.warmup,
        **recorder.columns(),
    )


def expert_width(task: Shared, size: Size) -> int:
    """Hidden units of an expert, with which the active ones have those of the task.

    Raises:
        ControlError: they do not divide.
    """
    if task.active_width % size.active:
        raise ControlError(
            f"{task.active_width} hidden units do not divide over the active experts of {size}"
        )
    return task.active_width // size.active


def require_controller(router: RouterChoice, scenario: Scenario) -> None:
    """Refuse scenarios that change a controller for routers without one.

    Raises:
        ControlError: naming both.
    """
    if scenario in ("retarget", "high-gains") and not router.is_controlled:
        raise ControlError(f"router {router} has no controller that {scenario} could change")


def without_decay(model: nn.Module) -> list[dict[str, Any]]:
    """The parameter group of gains and biases, which do not decay; every other tensor has the defaults."""
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": vectors, "weight_decay": 0.0}] if vectors else []


def _build(task: Shared, router: RouterChoice, size: Size, seed: int) -> nn.Module:
    hidden = expert_width(task, size)
    mixture = router.mixture(size.experts, size.active, hidden, task.balance, task.entropy)
    return cast(nn.Module, task.model(mixture, seed))


def _schedule(task: Shared, seed: int) -> FitConfig:
    return FitConfig(
        steps=task.steps,
        batch_size=task.batch,
        optimizer="adamw",
        learning_rate=task.learning_rate,
        final_learning_rate=task.learning_rate / 10,
        schedule="one_cycle",
        warmup_fraction=0.1,
        weight_decay=task.weight_decay,
        seed=seed,
    )


@torch.no_grad()
def _held_out(task: Shared, model: nn.Module, router: RouterChoice) -> tuple[float, dict[str, float]]:
    """Loss, and for tasks with groups the active experts of each.

    Expert choice, which looks at all tokens of a batch, has no other mode than that of training: its loss is
    that of a model that may look ahead.
    """
    training = router.name == "expert_choice"
    model.train(training)
    device = next(model.parameters()).device
    layers = cast(Any, model).moe_layers
    activity = Activity(layers, training) if layers else None
    losses, active = [], []
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for inputs, targets in task.held_out_batches():
            losses.append(float(task.loss(model, inputs.to(device), targets.to(device))))
            active.append(float(activity.take().active.mean()) if activity else math.nan)
    if activity:
        activity.close()
    loss = statistics.fmean(losses)
    if not math.isfinite(loss):
        raise TrainingDiverged(f"the held-out loss of router {router} is {loss}")
    return loss, dict(zip(task.groups, active, strict=True)) if activity and task.groups else {}


class _Recorder(Callback):
    """Keeps what routers did in each step."""

    def __init__(
        self,
        layers: Sequence[Any],
        target: float,
        controller: Controller | None,
        advance: Callable[[], None],
    ) -> None:
        self.layers = layers
        self.target = target
        self.controller = controller
        self.advance = advance
        self.activity = Activity(layers) if layers else None
        self.seconds: list[float] = []
        self.slots = 0
        self.rows: list[dict[str, Any]] = []

    def on_step_begin(self, state: FitState) -> None:
        self.started = time.process_time()

    def on_step_end(self, state: FitState) -> None:
        self.seconds.append(time.process_time() - self.started)
        row: dict[str, Any] = {"losses": state.loss}
        if self.activity is not None:
            tally = self.activity.take()
            row["active"] = float(tally.active.mean())
            row["spread"] = float(tally.spread.mean())
            row["per_layer"] = tuple(tally.active.tolist())
            row["imbalance"] = float(tally.imbalance.mean())
            self.slots += int(tally.slots.sum())
        if self.controller is not None:
            row["threshold"] = float(self.controller.law.threshold.mean())
            self.target = self.controller.target_active
        row["targets"] = self.target
        self.rows.append(row)
        self.advance()

    def columns(self) -> dict[str, tuple[Any, ...]]:
        """Each quantity over the steps."""
        names = ("losses", "active", "spread", "per_layer", "threshold", "imbalance", "targets")
        return {name: tuple(row[name] for row in self.rows if name in row) for name in names}

    def flops(self, model: nn.Module, task: Shared) -> int:
        """Forward, over the whole training: of the experts, or of the dense layers in their place."""
        if self.layers:
            return expert_flops(self.layers[0], 1) * self.slots
        dense = [p for name, p in model.named_parameters() if ".ffn." in name and p.ndim == 2]
        return 2 * sum(p.numel() for p in dense) * task.tokens * task.steps


class _AtStep(Callback):
    """Does something once, after a step."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action

    def on_step_end(self, state: FitState) -> None:
        if state.step == self.step:
            self.action()
