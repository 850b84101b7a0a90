"""The study: both routes to a sparse network, on real nodes and real links, at equal numbers of weights."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from pydantic import Field
from torch import nn

from tradeoff.core import Card, Context, Method, Metric, Outcome, Recipe, Trial, counted, measured
from tradeoff.core.context import Progress
from tradeoff.core.provenance import source_digest
from tradeoff.data.graphs import LinkSplits
from tradeoff.nn.checkpoint import weights_digest
from tradeoff.nn.fit import Callback, FitConfig, FitState
from tradeoff.nn.masks import (
    SET,
    Explore,
    MaskSet,
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
    "static-uniform",
    "set",
    "momentum",
    "explore",
    "rigl",
    "rigl-uniform",
]
DENSE = "dense"
"""The network that train-and-prune starts from."""

RULES: dict[str, type[SparseRule]] = {
    "static": Static,
    "static-uniform": Static,
    "set": SET,
    "momentum": SparseMomentum,
    "explore": Explore,
    "rigl": RigL,
    "rigl-uniform": RigL,
}
UNIFORM = "-uniform"
"""Ends the names of variants that make all layers equally dense, whatever the others do."""


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
        if variant.endswith(UNIFORM):
            shared["init"] = "uniform"
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
        with _threads(recipe.threads):
            kind = str(trial.setting["task"])
            task = _task(recipe.routes(kind).source, trial.seed, context)
            trained = _trained(task, recipe.routes(kind), trial, context)
            metrics = {name: measured(value) for name, value in task.test(trained.network).items()}
            rows = layer_rows(trained.network, task.example.to(context.device))
        return Outcome(
            trial=trial,
            metrics=metrics | trained.counts(rows),
            artifact=context.artifact(trained.save(context.work / "network")),
        )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch compute on so many threads inside the block; on as many as before where None."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Cost(pydantic.BaseModel):
    """What a training took: operations, steps, and the sum over steps of the part of inactive weights."""

    model_config = pydantic.ConfigDict(frozen=True)

    flops: int = 0
    steps: int = 0
    inactive_steps: float = 0.0

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


@dataclass(frozen=True)
class Trained:
    """A network at the end of its route, its masks unless it is dense, and what all of the route took."""

    network: nn.Module
    masks: MaskSet | None
    itop_rate: float
    cost: Cost

    def counts(self, rows: Mapping[str, int]) -> dict[str, Metric]:
        """What is exact about it.

        Args:
            rows: what each weight is applied to for one sample, of :func:`layer_rows`.
        """
        size = sum(weight.numel() for weight in maskable_weights(self.network).values())
        active = self.masks.count() if self.masks else size
        others = sum(parameter.numel() for parameter in self.network.parameters()) - size
        values = {
            "training_flops": self.cost.flops,
            "flops": forward_flops(self.network, rows, self.masks),
            "sparsity": 1 - active / size,
            "training_sparsity": self.cost.sparsity,
            "itop_rate": self.itop_rate,
            "parameters": active + others,
        }
        return {name: counted(value) for name, value in values.items()}

    def save(self, folder: Path) -> Path:
        """Write weights and masks to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.network, folder / "model.safetensors")
        if self.masks:
            self.masks.save(folder / "masks.safetensors")
        return folder


@lru_cache(maxsize=1)
def _nodes(source: NodeSource) -> Task:
    return source.task()


@lru_cache(maxsize=1)
def _events(source: LinkSource) -> LinkSplits:
    return source.splits()


@lru_cache(maxsize=1)
def _links(source: LinkSource, seed: int, folder: Path) -> Task:
    return source.task(_events(source), folder)


def _task(source: NodeSource | LinkSource, seed: int, context: Context) -> Task:
    """The data of a task; embeddings of links are learned once for each seed."""
    if isinstance(source, NodeSource):
        return _nodes(source)
    history = _events(source).history
    key = {
        "embeddings": source.model_dump(mode="json", exclude={"data", "hidden"}),
        "events": weights_digest(
            {name: torch.from_numpy(getattr(history, name)) for name in ("source", "target", "time")}
        ),
        "seed": seed,
        **_surroundings(f"{__package__}.walks", f"{__package__}.tasks"),
    }
    folder = context.cache(key, lambda folder: source.embed(history, seed, folder))
    return _links(source, seed, folder)


def _surroundings(*modules: str) -> dict[str, Any]:
    """What the result of a computation depends on beside its arguments: the code, torch, its threads."""
    return {
        "code": source_digest("tradeoff.nn", *modules),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _trained(task: Task, routes: Routes, trial: Trial, context: Context) -> Trained:
    """The network of a trial; of a route that prunes, the dense training is part of the cost."""
    if trial.variant == DENSE:
        network, cost = _dense(task, routes, trial.seed, context)
        return Trained(network, None, 1.0, cost)
    if trial.variant in RULES:
        torch.manual_seed(trial.seed)
        network, before, train = task.build().to(context.device), Cost(), _sparse
    else:
        network, before = _dense(task, routes, trial.seed, context)
        train = _pruned
    with context.progress(None, "training") as bar:
        report = train(network, task, routes, trial, [_Advance(bar)])
    return Trained(report.model, report.masks, report.itop_rate, before + Cost.of(report))


def _dense(task: Task, routes: Routes, seed: int, context: Context) -> tuple[nn.Module, Cost]:
    """The seed's dense network, trained once for all variants, and what that took."""
    config = _seeded(routes.dense, seed, 0)
    torch.manual_seed(seed)
    network = task.build()
    first = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    key = {
        "dense": weights_digest(first),
        "data": task.digest,
        "fit": config.model_dump(mode="json"),
        "device": context.device,
        **_surroundings(f"{__package__}.training", f"{__package__}.models", f"{__package__}.tasks"),
    }
    network.to(context.device)

    def train(folder: Path) -> None:
        with context.progress(None, "training the dense network") as bar:
            report = DenseTrainer(network, task.objective).fit(
                task.train, task.validation, config, callbacks=[_Advance(bar)]
            )
        save_weights(network, folder / "model.safetensors")
        (folder / "cost.json").write_text(Cost.of(report).model_dump_json())

    folder = context.cache(key, train)
    load_weights(network, folder / "model.safetensors")
    return network, Cost(**json.loads((folder / "cost.json").read_text()))


def _sparse(
    network: nn.Module, task: Task, routes: Routes, trial: Trial, callbacks: list[Callback]
) -> Report:
    """Train with few weights from the first step on."""
    rule = routes.growth.rule(trial.variant, float(trial.setting["density"] or 0))
    trainer = SparseTrainer(network, rule, task.objective, exempt=routes.exempt, seed=trial.seed)
    config = _seeded(routes.sparse, trial.seed, 0)
    return trainer.fit(task.train, task.validation, config, callbacks=callbacks)


def _pruned(
    network: nn.Module, task: Task, routes: Routes, trial: Trial, callbacks: list[Callback]
) -> Report:
    """Prune the seed's dense network, and retrain it."""
    splitting = {"admm": routes.admm, "slr": routes.slr}.get(trial.variant)
    retraining = {
        "prune": None,
        "prune-retrain": routes.retraining,
        "prune-retrain-longer": routes.retraining_longer,
    }.get(trial.variant, routes.retraining_reweighted)
    trainer = PruneTrainer(
        network,
        float(trial.setting["density"] or 0),
        splitting,
        task.objective,
        init=routes.prune_init,
        exempt=routes.exempt,
    )
    return trainer.fit(
        task.train,
        task.validation,
        reweighting=_seeded(routes.reweighting, trial.seed, 1) if splitting else None,
        retraining=_seeded(retraining, trial.seed, 2) if retraining else None,
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
