"""The study: fronts and budgets of RRNet beside other reductions, with real two-party inferences."""

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import torch
from pydantic import Field
from torch import nn

from tradeoff.core import Card, Context, Method, Metric, Outcome, Recipe, Trial, counted, measured, modelled
from tradeoff.data.devices import fpga_latency
from tradeoff.data.images import ImageData, check_name, load
from tradeoff.data.trained import Advance, trained_base
from tradeoff.engines import two_party
from tradeoff.engines.two_party.latency import Calibration, EngineLatency
from tradeoff.engines.two_party.metrics import measured_metrics, predicted_metrics
from tradeoff.nn.compressed import save_compressed
from tradeoff.nn.fit import FitConfig, evaluate
from tradeoff.nn.latency import LatencyModel, ReLUCount
from tradeoff.nn.models import ARCHITECTURES, load_weights, save_weights
from tradeoff.nn.plan import trace
from tradeoff.nn.search import (
    Architecture,
    ArchitectureConfig,
    GateConfig,
    GatedPooling,
    LatencySearch,
    comparison_count,
    every_second,
    gates,
    insert_gates,
    largest_first,
    latest_first,
    random_order,
    reduced,
    relu_sites,
)

from .budget import BudgetConfig, repair
from .claims import CLAIMS
from .reduction import ReLUReduction, check_penalties

Link = Literal["wan", "narrow", "lan"]
Part = Annotated[float, Field(ge=0, le=1)]
RELU = "relu"
"""The network that all others are made from."""
ORDERS: dict[str, Callable[[LatencySearch], list[str]]] = {
    "largest": largest_first,
    "uniform": every_second,
    "late": latest_first,
}
"""Reductions in an order that neither training nor chance decides."""
Variant = Literal["budget", "count", "random", "largest", "uniform", "late"]


class TwoPartySettings(pydantic.BaseModel):
    """How networks are run between two parties."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    images: int = Field(default=32, ge=1)
    repeats: int = Field(default=2, ge=1)


class RRNetRecipe(Recipe):
    """What the study varies."""

    data: str = Field("digit-pairs", description="data set, or folder with one subfolder of images per class")
    arch: str = Field("pair_pool_cnn", description="architecture of tradeoff.nn.models")
    link: Link = Field("wan", description="between the two parties")
    penalties: list[float] = Field(description="of the front: losses of a millisecond, rising")
    budgets: dict[Variant, list[Part]] = Field(
        {}, description="for each variant: latency, as a part of the way from no comparison to all of them"
    )
    base: FitConfig = Field(description="training of the network with ReLUs and max poolings")
    search: FitConfig = Field(description="training while choices are made")
    finetuning: FitConfig = Field(description="training after that")
    gates: GateConfig = Field(GateConfig(), description="what sites may become, and the quadratics' start")
    architecture: ArchitectureConfig = Field(ArchitectureConfig(), description="how choices are trained")
    budget: BudgetConfig = Field(BudgetConfig(), description="how the penalty follows a budget")
    calibration: Calibration = Field(description="of the engine; `tradeoff two-party calibrate` makes one")
    threads: int | None = Field(None, ge=1, description="of training; the smallest networks need only one")
    two_party: TwoPartySettings = Field(TwoPartySettings(), description="the private inferences that are run")

    @pydantic.model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch {self.arch!r} is none of {', '.join(ARCHITECTURES)}")
        check_name(self.data)
        check_penalties(self.penalties)
        for name, budgets in self.budgets.items():
            if len(set(budgets)) < len(budgets):
                raise ValueError(f"budgets.{name} lists a budget twice: {budgets}")
        if (self.search.steps is None) != (self.finetuning.steps is None):
            # Baselines without a search get its length as finetuning.
            raise ValueError("search and finetuning must both have steps, or both epochs")
        return self


class RRNet(Method[RRNetRecipe]):
    """Reduction of ReLUs under the latency of two-party inference."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = RRNetRecipe
    claims = CLAIMS
    timed = True

    def trials(self, recipe: RRNetRecipe) -> list[Trial]:
        """The ReLU network, the points of the front, and each variant at each of its budgets."""
        cells: list[tuple[str, dict[str, Any]]] = [(RELU, {})]
        cells += [("rrnet", {"penalty": penalty}) for penalty in recipe.penalties]
        cells += [
            (variant, {"budget": budget}) for variant, budgets in recipe.budgets.items() for budget in budgets
        ]
        return [
            Trial(variant=name, setting=setting, seed=seed)
            for name, setting in cells
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: RRNetRecipe, context: Context) -> Outcome:
        """Make one network from the seed's base, test it, and run it between two parties."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        data = _load(recipe.data)
        base, seconds = trained_base(recipe.arch, recipe.data, data, recipe.base, trial.seed, context)
        network = base
        if trial.variant != RELU:
            started = time.perf_counter()
            network = _Reduction(base, trial, recipe, data, context).network()
            seconds = time.perf_counter() - started
        plan = trace(network.cpu(), data.input_shape)
        metrics = {
            "accuracy": measured(evaluate(network, data.test)),
            "relu_count": counted(plan.relu_count),
            "relu_sites": counted(relu_sites(plan)),
            "pooling_comparisons": counted(comparison_count(plan)),
            "fpga_latency": modelled(fpga_latency().network(plan).seconds),
            "training_seconds": measured(seconds),
        }
        folder = context.work / "network"
        save_compressed(
            folder, network, arch=recipe.arch, num_classes=data.num_classes, input_shape=data.input_shape
        )
        metrics |= _private_inference(network, recipe, data, context)
        return Outcome(trial=trial, metrics=metrics, artifact=context.artifact(folder))


@lru_cache(maxsize=1)
def _load(name: str) -> ImageData:
    return load(name)


class _Reduction:
    """One trial's way from the base to its network."""

    def __init__(
        self, base: nn.Module, trial: Trial, recipe: RRNetRecipe, data: ImageData, context: Context
    ) -> None:
        self.base, self.trial, self.recipe, self.data, self.context = base, trial, recipe, data, context
        self.engine = EngineLatency(recipe.calibration, recipe.link, recipe.two_party.images)
        self.config = recipe.search.model_copy(update={"seed": 3 * trial.seed + 1})
        self.method = ReLUReduction(base, self.engine, data.input_shape, recipe.gates, recipe.architecture)

    def network(self) -> nn.Module:
        """Search or choose, then finetune; those that do not search are finetuned for as many steps more."""
        finetuning = self.recipe.finetuning.model_copy(update={"seed": 3 * self.trial.seed + 2})
        search, architecture = self._chosen()
        if self.trial.variant not in ("rrnet", "budget", "count"):
            finetuning = _lengthened(finetuning, self.recipe.search)
            search.network = insert_gates(self.base, self.data.input_shape, self.recipe.gates)
        with self.context.progress(None, "finetuning") as bar:
            return search.finish(
                self.data.train,
                self.data.validation,
                finetuning,
                architecture=architecture,
                checkpoint=self.context.work / "checkpoint",
                callbacks=[Advance(bar)],
            )

    def _chosen(self) -> tuple[LatencySearch, Architecture]:
        variant = self.trial.variant
        if variant == "rrnet":
            search = self._swept(self.recipe.penalties.index(float(self.trial.setting["penalty"] or 0)))
            return search, search.architecture()
        part = float(self.trial.setting["budget"] or 0)
        if variant == "budget":
            return self._within(part)
        if variant == "count":
            latency_aware, chosen = self._within(part)
            return self._counted(latency_aware.hard_plan(chosen).relu_count, chosen)
        search = self._search(0.0)
        order = random_order(search, self.trial.seed) if variant == "random" else ORDERS[variant](search)
        return search, reduced(search, self._seconds(search, part), order)

    def _swept(self, index: int) -> LatencySearch:
        """The search of a point of the front, from where the point before ended."""
        search = self._search(self.recipe.penalties[index])
        if index:
            search.network.load_state_dict(self._swept(index - 1).network.state_dict())
        return self._kept(search, {"penalties": self.recipe.penalties[: index + 1]}, self._plain)

    def _within(self, part: float) -> tuple[LatencySearch, Architecture]:
        search = self._search(0.0)
        seconds = self._seconds(search, part)
        search = self._kept(search, {"seconds": seconds}, self._budgeted(seconds))
        return search, repair(search, seconds)

    def _counted(self, relus: int, other: Architecture) -> tuple[LatencySearch, Architecture]:
        """The same for a number of ReLUs, whatever they take; with the poolings of the other choice.

        A count does not see max poolings: that they stay must not be what tells the two apart.
        """
        count = ReLUCount()
        search = self._search(0.0, count)
        seconds = count.seconds(relus)
        search = self._kept(search, {"relus": relus}, self._budgeted(seconds))
        chosen = repair(search, seconds)
        for site, gate in gates(search.network).items():
            if isinstance(gate, GatedPooling):
                chosen = chosen.with_choice(site, *other.choices[site])
        return search, chosen

    def _search(self, penalty: float, latency: LatencyModel | None = None) -> LatencySearch:
        recipe = self.recipe
        return LatencySearch(
            self.base,
            latency or self.engine,
            self.data.input_shape,
            penalty,
            recipe.gates,
            recipe.architecture,
        )

    @staticmethod
    def _seconds(search: LatencySearch, part: float) -> float:
        floor, full = (
            search.hard_latency(Architecture.uniform(search.network, *kinds)).seconds
            for kinds in (("poly", "average"), ("relu", "max"))
        )
        return floor + part * (full - floor)

    def _plain(self, search: LatencySearch, advance: Advance) -> None:
        search.fit(self.data.train, self.config, checkpoint=self.context.work / "search", callbacks=[advance])

    def _budgeted(self, seconds: float) -> Callable[[LatencySearch, Advance], None]:
        def run(search: LatencySearch, advance: Advance) -> None:
            self.method.search_budget(
                search,
                seconds,
                self.data.train,
                self.config,
                self.recipe.budget,
                self.context.work / "search",
                [advance],
            )

        return run

    def _kept(
        self,
        search: LatencySearch,
        what: dict[str, Any],
        train: Callable[[LatencySearch, Advance], None],
    ) -> LatencySearch:
        """A search that several trials need, done once."""

        def run(folder: Path) -> None:
            with self.context.progress(None, "searching") as bar:
                train(search, Advance(bar))
            save_weights(search.network, folder / "model.safetensors")

        recipe = self.recipe
        key = {
            "reduction": recipe.arch,
            "data": recipe.data,
            "base": recipe.base.model_dump(mode="json"),
            "fit": self.config.model_dump(mode="json"),
            "gates": recipe.gates.model_dump(mode="json"),
            "architecture": recipe.architecture.model_dump(mode="json"),
            "budget": recipe.budget.model_dump(mode="json"),
            "calibration": recipe.calibration.model_dump(mode="json"),
            "latency": search.latency.name,
            "seed": self.trial.seed,
            **what,
        }
        load_weights(search.network, self.context.cache(key, run) / "model.safetensors")
        return search


def _lengthened(config: FitConfig, other: FitConfig) -> FitConfig:
    """The same training for the steps (or epochs) of both."""
    unit = "steps" if config.steps is not None else "epochs"
    return config.model_copy(update={unit: getattr(config, unit) + getattr(other, unit)})


def _private_inference(
    network: nn.Module, recipe: RRNetRecipe, data: ImageData, context: Context
) -> dict[str, Metric]:
    """Cost of one batch between two parties, predicted and metered in a real run."""
    images = data.test[torch.arange(min(recipe.two_party.images, len(data.test)))][0].numpy()
    calibration = data.train[torch.arange(min(64, len(data.train)))][0].numpy()
    program = two_party.compile(network.cpu(), data.input_shape, calibration=calibration)
    predicted = EngineLatency(recipe.calibration, recipe.link, len(images)).program(program)
    with context.progress(recipe.two_party.repeats, f"two parties over {recipe.link}") as bar:
        metrics = measured_metrics(program, images, recipe.link, recipe.two_party.repeats, bar.advance)
    counts = predicted_metrics(program, len(images))
    for name in ("online_bytes", "rounds"):
        if counts[name].value != metrics[name].value:
            raise AssertionError(f"{name}: predicted {counts[name].value}, metered {metrics[name].value}")
    return {**metrics, f"predicted_latency_{recipe.link}": modelled(predicted.seconds)}
