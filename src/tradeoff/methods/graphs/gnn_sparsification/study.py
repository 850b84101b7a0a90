"""The study: both routes to a sparse network, on real nodes and real links, at equal numbers of weights."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from pydantic import Field
from torch import nn

from tradeoff.core import Card, Context, Method, Outcome, Recipe, Trial, counted, measured
from tradeoff.core.context import Progress
from tradeoff.nn.fit import Callback, FitConfig, FitState
from tradeoff.nn.masks import (
    SET,
    Explore,
    RigL,
    SparseMomentum,
    SparseRule,
    Static,
    forward_flops,
    layer_rows,
    maskable_weights,
)
from tradeoff.nn.masks.densities import Distribution
from tradeoff.nn.models import load_weights, save_weights

from .claims import CLAIMS
from .tasks import LinkSource, NodeSource, Task
from .training import DenseTrainer, PruneTrainer, Report, SparseTrainer, Splitting

Variant = Literal[
    "prune",
    "prune-retrain",
    "prune-retrain-longer",
    "admm",
    "slr",
    "static",
    "set",
    "momentum",
    "explore",
    "rigl",
]
DENSE = "dense"
"""The network that train-and-prune starts from."""

RULES: dict[str, type[SparseRule]] = {
    "static": Static,
    "set": SET,
    "momentum": SparseMomentum,
    "explore": Explore,
    "rigl": RigL,
}


class Growth(pydantic.BaseModel):
    """What the variants of sparse training share; see :class:`tradeoff.nn.masks.DropAndGrow`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    init: Distribution = "erk"
    rescale: bool = True
    update_every: int = Field(default=20, ge=1)
    drop: float = Field(default=0.5, gt=0, le=1)
    end: float = Field(default=0.75, gt=0, le=1)
    allow_regrow: bool = False

    def rule(self, variant: str, density: float) -> SparseRule:
        """The rule of one variant."""
        kind = RULES[variant]
        shared = {key: value for key, value in self.model_dump().items() if key in kind.model_fields}
        return kind(density=density, **shared)


class Routes(pydantic.BaseModel):
    """What both tasks set: the densities, and how each route trains."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    variants: list[Variant]
    densities: list[float] = Field(min_length=1)
    dense: FitConfig
    retraining: FitConfig = Field(description="after a cut at once")
    retraining_longer: FitConfig = Field(description="the same with more epochs")
    reweighting: FitConfig = Field(description="of ADMM and SLR, before the cut")
    retraining_reweighted: FitConfig = Field(description="of ADMM and SLR, after it")
    sparse: FitConfig = Field(description="of sparse training, from first step to last")
    prune_init: Distribution = "uniform"
    exempt: tuple[str, ...] = Field((), description="names of weights that stay dense")
    growth: Growth = Growth()
    admm: Splitting = Splitting(kind="admm")
    slr: Splitting = Splitting(kind="slr")

    @pydantic.field_validator("densities")
    @classmethod
    def _in_range(cls, densities: list[float]) -> list[float]:
        if any(not 0 < density <= 1 for density in densities):
            raise ValueError("a density is above 0 and at most 1")
        return densities


class NodeRoutes(Routes):
    """The node classification task."""

    source: NodeSource


class LinkRoutes(Routes):
    """The temporal link prediction task."""

    source: LinkSource


class SparsificationRecipe(Recipe):
    """What the study varies."""

    node: NodeRoutes | None = Field(
        None, description="node classification: data, network, densities, training"
    )
    link: LinkRoutes | None = Field(None, description="temporal link prediction: the same, and embeddings")
    threads: int | None = Field(1, ge=1, description="of training; these networks need only one")

    def routes(self, task: str) -> NodeRoutes | LinkRoutes:
        """The settings of one of the two tasks."""
        found = self.node if task == "node" else self.link
        assert found is not None
        return found

    @pydantic.model_validator(mode="after")
    def _has_a_task(self) -> "SparsificationRecipe":
        if self.node is None and self.link is None:
            raise ValueError("give the task node, link or both")
        return self


class GNNSparsification(Method[SparsificationRecipe]):
    """Weight sparsification of networks on graphs."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = SparsificationRecipe
    claims = CLAIMS

    def trials(self, recipe: SparsificationRecipe) -> list[Trial]:
        """For each task the dense network, and each variant at each density."""
        cells: list[tuple[str, dict[str, Any]]] = []
        for task in ("node", "link"):
            if getattr(recipe, task) is None:
                continue
            routes = recipe.routes(task)
            cells.append((DENSE, {"task": task, "density": 1.0}))
            cells += [(v, {"task": task, "density": d}) for d in routes.densities for v in routes.variants]
        return [
            Trial(variant=variant, setting=setting, seed=seed)
            for variant, setting in cells
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: SparsificationRecipe, context: Context) -> Outcome:
        """Train one network along one route and test it."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        kind = str(trial.setting["task"])
        routes = recipe.routes(kind)
        task = _task(routes.source, trial.seed, context)
        base, base_cost = _dense(task, routes, trial.seed, context)
        if trial.variant == DENSE:
            report, cost = None, base_cost
        else:
            with context.progress(None, "training") as bar:
                report = _sparse(base, task, routes, trial, [_Advance(bar)])
            starts_dense = trial.variant not in RULES
            cost = Cost.of(report) + base_cost if starts_dense else Cost.of(report)
        network = report.model if report else base
        metrics = task.test(network)
        size = sum(weight.numel() for weight in maskable_weights(network).values())
        active = report.masks.count() if report and report.masks else size
        others = sum(p.numel() for p in network.parameters()) - size
        rows = layer_rows(network, task.example.to(context.device))
        folder = context.work / "network"
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(network, folder / "model.safetensors")
        if report and report.masks:
            report.masks.save(folder / "masks.safetensors")
        return Outcome(
            trial=trial,
            metrics={
                **{name: measured(value) for name, value in metrics.items()},
                "training_flops": counted(cost.flops),
                "flops": counted(forward_flops(network, rows, report.masks if report else None)),
                "sparsity": counted(1 - active / size),
                "training_sparsity": counted(cost.sparsity),
                "itop_rate": counted(report.itop_rate if report else 1.0),
                "parameters": counted(active + others),
            },
            artifact=context.artifact(folder),
        )


class Cost(pydantic.BaseModel):
    """What a training took: operations, steps, and the sum over steps of the part of inactive weights."""

    model_config = pydantic.ConfigDict(frozen=True)

    flops: int
    steps: int
    inactive_steps: float

    @classmethod
    def of(cls, report: Report) -> "Cost":
        """That of one training."""
        return cls(
            flops=report.train_flops,
            steps=report.steps,
            inactive_steps=report.steps * report.training_sparsity,
        )

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            flops=self.flops + other.flops,
            steps=self.steps + other.steps,
            inactive_steps=self.inactive_steps + other.inactive_steps,
        )

    @property
    def sparsity(self) -> float:
        """Part of the weights that was inactive, over all steps."""
        return self.inactive_steps / self.steps if self.steps else 0.0


@lru_cache(maxsize=1)
def _nodes(source: NodeSource) -> Task:
    return source.task()


@lru_cache(maxsize=1)
def _links(source: LinkSource, seed: int, folder: Path) -> Task:
    return source.task(folder)


def _task(source: NodeSource | LinkSource, seed: int, context: Context) -> Task:
    """The data of a task; embeddings of links are learned once for each seed."""
    if isinstance(source, NodeSource):
        return _nodes(source)
    key = {"embeddings": source.model_dump(mode="json"), "seed": seed}
    return _links(source, seed, context.cache(key, lambda folder: source.embed(folder, seed)))


def _dense(task: Task, routes: Routes, seed: int, context: Context) -> tuple[nn.Module, Cost]:
    """The seed's dense network, trained once for all variants, and what that took."""
    config = _seeded(routes.dense, seed, 0)
    torch.manual_seed(seed)
    network = task.build().to(context.device)

    def train(folder: Path) -> None:
        with context.progress(None, "training the dense network") as bar:
            report = DenseTrainer(network, task.objective).fit(
                task.train, task.validation, config, callbacks=[_Advance(bar)]
            )
        save_weights(network, folder / "model.safetensors")
        (folder / "cost.json").write_text(Cost.of(report).model_dump_json())

    source = routes.source.model_dump(mode="json")  # type: ignore[attr-defined]
    key = {
        "dense": source,
        "fit": config.model_dump(mode="json"),
        "seed": seed,
        "threads": torch.get_num_threads(),
    }
    folder = context.cache(key, train)
    load_weights(network, folder / "model.safetensors")
    return network, Cost(**json.loads((folder / "cost.json").read_text()))


def _sparse(base: nn.Module, task: Task, routes: Routes, trial: Trial, callbacks: list[Callback]) -> Report:
    """Train one variant: from the seed's dense network, or from the weights that it started with."""
    density, seed, data = float(trial.setting["density"] or 0), trial.seed, (task.train, task.validation)
    if trial.variant in RULES:
        torch.manual_seed(seed)
        network = task.build().to(next(base.parameters()).device)
        rule = routes.growth.rule(trial.variant, density)
        starting = SparseTrainer(network, rule, task.objective, exempt=routes.exempt, seed=seed)
        return starting.fit(*data, _seeded(routes.sparse, seed, 0), callbacks=callbacks)
    splitting = {"admm": routes.admm, "slr": routes.slr}.get(trial.variant)
    retraining = {
        "prune": None,
        "prune-retrain": routes.retraining,
        "prune-retrain-longer": routes.retraining_longer,
    }.get(trial.variant, routes.retraining_reweighted)
    trainer = PruneTrainer(
        base, density, splitting, task.objective, init=routes.prune_init, exempt=routes.exempt
    )
    return trainer.fit(
        *data,
        reweighting=_seeded(routes.reweighting, seed, 1) if splitting else None,
        retraining=_seeded(retraining, seed, 2) if retraining else None,
        callbacks=callbacks,
    )


def _seeded(config: FitConfig, seed: int, phase: int) -> FitConfig:
    """The same training with an order of data of its own for each seed and phase."""
    return config.model_copy(update={"seed": 3 * seed + phase})


class _Advance(Callback):
    """Moves a progress bar with the steps of a training."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar

    def on_step_end(self, state: FitState) -> None:
        self.bar.advance()
