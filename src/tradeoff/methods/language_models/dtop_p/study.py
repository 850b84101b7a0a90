"""The study: one model trained with each router, steadily and through disturbances."""

import statistics
from pathlib import Path
from typing import Self, cast, get_args

import pydantic
import torch
from pydantic import Field

from tradeoff.core import Card, Context, Method, Outcome, Recipe, Trial, counted, measured
from tradeoff.core.files import write_json
from tradeoff.core.memory import peak_memory
from tradeoff.core.metric import Metric
from tradeoff.core.trial import SettingValue

from .claims import CLAIMS
from .diagnostics import WINDOW
from .errors import ControlError
from .routers import RouterChoice
from .tasks import Task
from .training import Run, Scenario, Size, expert_width, require_controller, train


class DTopPRecipe(Recipe):
    """What the study varies."""

    task: Task = Field(description="the model, its data and its training")
    routers: list[str] = Field(
        description="rows: topk, topp:0.4, pi, dtop_p, dtop_p:layer, expert_choice, sigmoid, dense"
    )
    sizes: list[str] = Field(
        ["e16a4"], min_length=1, description="experts of a layer, and how many are active on average"
    )
    disturbed: dict[Scenario, list[str]] = Field(
        {},
        description="routers at the first size under switch (other data from the middle on), retarget (half "
        "as many experts more from then on) and high-gains",
    )
    threads: int | None = Field(1, ge=1, description="of training; models this small need only one")

    @pydantic.model_validator(mode="after")
    def _can_be_built(self) -> Self:
        try:
            for text in self.sizes:
                expert_width(self.task, Size.parse(text))
            for text in self.routers:
                RouterChoice.parse(text)
            for scenario, texts in self.disturbed.items():
                for text in texts:
                    require_controller(RouterChoice.parse(text), scenario)
        except ControlError as error:
            raise ValueError(str(error)) from error
        return self


class DTopP(Method[DTopPRecipe]):
    """Top-p routing under a controller, and the routers that it is compared with."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = DTopPRecipe
    claims = CLAIMS
    timed = True

    def trials(self, recipe: DTopPRecipe) -> list[Trial]:
        """Every router at every size; then the disturbances."""
        cells: list[tuple[str, dict[str, SettingValue]]] = [
            (router, {"size": size, "run": "steady"}) for size in recipe.sizes for router in recipe.routers
        ]
        cells += [
            (router, {"size": recipe.sizes[0], "run": scenario})
            for scenario in get_args(Scenario)
            for router in recipe.disturbed.get(scenario, [])
        ]
        return [
            Trial(variant=router, setting=setting, seed=seed)
            for router, setting in cells
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: DTopPRecipe, context: Context) -> Outcome:
        """Train with one router."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        size, scenario = Size.parse(str(trial.setting["size"])), cast(Scenario, trial.setting["run"])
        router = RouterChoice.parse(trial.variant)
        with peak_memory() as peak, context.progress(recipe.task.steps, "training") as bar:
            run = train(recipe.task, router, size, scenario, trial.seed, context.device, bar.advance)
        metrics = run_metrics(run)
        metrics["throughput"] = measured(recipe.task.tokens / run.step_seconds)
        metrics["peak_memory"] = measured(peak.bytes)
        folder = context.work / "curves"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", run.model_dump(mode="json", exclude={"step_seconds"}))
        return Outcome(trial=trial, metrics=metrics, artifact=context.artifact(folder))


def run_metrics(run: Run) -> dict[str, Metric]:
    """The quantities of a training; those of experts where there are some."""
    metrics = {"loss": measured(run.loss), "expert_flops": counted(run.flops_per_token)}
    if not run.active:
        return metrics
    layers = len(run.per_layer[0])
    by_layer = [run.layer_active(layer) for layer in range(layers)]
    metrics |= {
        "active_experts": measured(run.last_active),
        "active_deviation": measured(run.last_deviation),
        "active_spread": measured(statistics.fmean(run.spread[-WINDOW:])),
        "active_first_layer": measured(by_layer[0]),
        "active_last_layer": measured(by_layer[-1]),
        "budget_error": measured(run.budget_error),
        "budget_excursion": measured(run.budget_excursion),
        "budget_drift": measured(run.budget_drift),
        "layer_error": measured(max(abs(active / run.targets[-1] - 1) for active in by_layer)),
        "swings": measured(run.swings),
        "expert_imbalance": measured(statistics.fmean(run.imbalance[-WINDOW:])),
    }
    if run.group_active:
        names = list(run.group_active)
        metrics["active_clean"] = measured(run.group_active[names[0]])
        metrics["active_noisy"] = measured(run.group_active[names[-1]])
    return metrics
