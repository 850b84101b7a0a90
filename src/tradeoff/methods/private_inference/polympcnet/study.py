"""The study: PolyMPCNet on two opposite links beside other choices, with real two-party inferences."""

import time
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

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
from tradeoff.nn.models import ARCHITECTURES, load_weights, save_weights
from tradeoff.nn.plan import trace
from tradeoff.nn.search import (
    Architecture,
    ArchitectureConfig,
    GateConfig,
    LatencySearch,
    comparison_count,
    costliest_first,
    discretize,
    insert_gates,
    random_order,
    reduced,
    relu_sites,
)

from .claims import CLAIMS
from .polympcnet import swap_magnitude

Link = Literal["wan", "narrow", "lan"]
Penalty = Annotated[float, Field(ge=0, allow_inf_nan=False)]
RELU = "relu"
"""The network that all others are made from."""
Start = Literal["poly", "naive-square", "naive-random"]
STARTS: tuple[Start, ...] = get_args(Start)
"""All sites at once become quadratics and average poolings, with three starts of the quadratics."""


class TwoPartySettings(pydantic.BaseModel):
    """Which networks are run between two parties, how often and over which links.

    Over links beyond the first only those run that were searched for one of them, and the one with all ReLUs.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    variants: list[str] = ["relu", "poly", "search", "random", "greedy"]
    links: list[Link] = Field(default=["wan", "narrow"], min_length=1)
    images: int = Field(default=32, ge=1)
    repeats: int = Field(default=2, ge=1)


class PolyMPCNetRecipe(Recipe):
    """What the study varies."""

    data: str = Field("digit-pairs", description="data set, or folder with one subfolder of images per class")
    arch: str = Field("pair_pool_cnn", description="architecture of tradeoff.nn.models")
    starts: list[Start] = Field(
        list(STARTS), description="all-quadratic networks without a search, by start of the quadratics"
    )
    penalties: dict[Link, list[Penalty]] = Field(description="loss of a millisecond, for each link")
    random: dict[Link, list[Penalty]] = Field(
        {}, description="random sites at the latency that the search with the same penalty found"
    )
    greedy: dict[Link, list[Penalty]] = Field({}, description="costliest sites first, likewise")
    base: FitConfig = Field(description="training of the network with ReLUs and max poolings")
    search: FitConfig = Field(description="training while choices are made")
    finetuning: FitConfig = Field(description="training after that")
    gates: GateConfig = Field(GateConfig(), description="what sites may become, and the quadratics' start")
    architecture: ArchitectureConfig = Field(ArchitectureConfig(), description="how choices are trained")
    calibration: Calibration = Field(description="of the engine; `tradeoff two-party calibrate` makes one")
    threads: int | None = Field(None, ge=1, description="of training; the smallest networks need only one")
    two_party: TwoPartySettings = Field(TwoPartySettings(), description="the private inferences that are run")

    @pydantic.model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch {self.arch!r} is none of {', '.join(ARCHITECTURES)}")
        check_name(self.data)
        for name in ("penalties", "random", "greedy"):
            for link, penalties in getattr(self, name).items():
                if len(set(penalties)) < len(penalties):
                    raise ValueError(f"{name}.{link} lists a penalty twice: {penalties}")
        if (self.search.steps is None) != (self.finetuning.steps is None):
            # Baselines without a search get its length as finetuning.
            raise ValueError("search and finetuning must both have steps, or both epochs")
        return self


class PolyMPCNetStudy(Method[PolyMPCNetRecipe]):
    """Polynomial networks by a search under the latency of two-party inference."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = PolyMPCNetRecipe
    claims = CLAIMS
    timed = True

    def trials(self, recipe: PolyMPCNetRecipe) -> list[Trial]:
        """The ReLU network, the all-quadratic ones, and search and baselines at each link and penalty."""
        cells: list[tuple[str, dict[str, Any]]] = [(RELU, {}), *((start, {}) for start in recipe.starts)]
        for variant, table in (
            ("search", recipe.penalties),
            ("random", recipe.random),
            ("greedy", recipe.greedy),
        ):
            cells += [
                (variant, {"link": link, "penalty": penalty})
                for link, penalties in table.items()
                for penalty in penalties
            ]
        return [
            Trial(variant=name, setting=setting, seed=seed)
            for name, setting in cells
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: PolyMPCNetRecipe, context: Context) -> Outcome:
        """Make one network from the seed's base, test it, and run it between two parties."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        data = _load(recipe.data)
        base, seconds = trained_base(recipe.arch, recipe.data, data, recipe.base, trial.seed, context)
        network, extra = base, dict[str, Metric]()
        if trial.variant != RELU:
            started = time.perf_counter()
            network, extra = _make(base, trial, recipe, data, context)
            seconds = time.perf_counter() - started
        plan = trace(network.cpu(), data.input_shape)
        metrics = {
            "accuracy": measured(evaluate(network, data.test)),
            "relu_count": counted(plan.relu_count),
            "relu_sites": counted(relu_sites(plan)),
            "pooling_comparisons": counted(comparison_count(plan)),
            "fpga_latency": modelled(fpga_latency().network(plan).seconds),
            "training_seconds": measured(seconds),
            **extra,
        }
        folder = context.work / "network"
        save_compressed(
            folder, network, arch=recipe.arch, num_classes=data.num_classes, input_shape=data.input_shape
        )
        metrics |= _private_inference(network, trial, recipe, data, context)
        return Outcome(trial=trial, metrics=metrics, artifact=context.artifact(folder))


@lru_cache(maxsize=1)
def _load(name: str) -> ImageData:
    return load(name)


def _engine(recipe: PolyMPCNetRecipe, link: str) -> EngineLatency:
    return EngineLatency(recipe.calibration, link, recipe.two_party.images)


def _make(
    base: nn.Module, trial: Trial, recipe: PolyMPCNetRecipe, data: ImageData, context: Context
) -> tuple[nn.Module, dict[str, Metric]]:
    """Train one variant; returns the finished network and what only this variant measures."""
    finetuning = recipe.finetuning.model_copy(update={"seed": 3 * trial.seed + 2})
    if trial.variant in STARTS:
        return _swapped(base, trial, recipe, data, finetuning, context)
    link = str(trial.setting["link"])
    search = _searched(base, trial, link, float(trial.setting["penalty"] or 0), recipe, data, context)
    architecture = search.architecture()
    if trial.variant != "search":
        # Chosen at the latency that the search found, and trained from the base for as many steps.
        seconds = search.hard_latency().seconds
        random = trial.variant == "random"
        order = random_order(search, trial.seed) if random else costliest_first(search)
        architecture = reduced(search, seconds, order)
        search.network = insert_gates(base, data.input_shape, recipe.gates)
        finetuning = _lengthened(finetuning, recipe.search)
    with context.progress(None, "finetuning") as bar:
        network = search.finish(
            data.train,
            data.validation,
            finetuning,
            architecture=architecture,
            checkpoint=context.work / "checkpoint",
            callbacks=[Advance(bar)],
        )
    return network, {}


def _searched(
    base: nn.Module,
    trial: Trial,
    link: str,
    penalty: float,
    recipe: PolyMPCNetRecipe,
    data: ImageData,
    context: Context,
) -> LatencySearch:
    """The search of a link and penalty, done once for all variants that need its result."""
    config = recipe.search.model_copy(update={"seed": 3 * trial.seed + 1})
    engine = _engine(recipe, link)
    search = LatencySearch(base, engine, data.input_shape, penalty, recipe.gates, recipe.architecture)

    def run(folder: Path) -> None:
        with context.progress(None, "searching") as bar:
            search.fit(data.train, config, checkpoint=context.work / "search", callbacks=[Advance(bar)])
        save_weights(search.network, folder / "model.safetensors")

    key = {
        "search": recipe.arch,
        "data": recipe.data,
        "base": recipe.base.model_dump(mode="json"),
        "fit": config.model_dump(mode="json"),
        "gates": recipe.gates.model_dump(mode="json"),
        "architecture": recipe.architecture.model_dump(mode="json"),
        "calibration": recipe.calibration.model_dump(mode="json"),
        "link": engine.name,
        "penalty": penalty,
        "seed": trial.seed,
    }
    load_weights(search.network, context.cache(key, run) / "model.safetensors")
    return search


def _swapped(
    base: nn.Module,
    trial: Trial,
    recipe: PolyMPCNetRecipe,
    data: ImageData,
    finetuning: FitConfig,
    context: Context,
) -> tuple[nn.Module, dict[str, Metric]]:
    """All sites at once, and all steps for the training after that."""
    start = recipe.gates.start
    if trial.variant == "naive-square":
        start = (1.0, 0.0, 0.0)
    elif trial.variant == "naive-random":
        w1, w2 = torch.randn(2, generator=torch.Generator().manual_seed(trial.seed)).tolist()
        start = (w1, w2, 0.0)
    gates = recipe.gates.model_copy(update={"start": start})
    link = recipe.two_party.links[0]
    search = LatencySearch(base, _engine(recipe, link), data.input_shape, 0.0, gates, recipe.architecture)
    architecture = Architecture.uniform(search.network, "poly", "average")
    probe = data.validation[torch.arange(min(500, len(data.validation)))][0].to(context.device)
    magnitude = swap_magnitude(discretize(search.network, architecture), probe)
    with context.progress(None, "finetuning") as bar:
        network = search.finish(
            data.train,
            data.validation,
            _lengthened(finetuning, recipe.search),
            architecture=architecture,
            checkpoint=context.work / "checkpoint",
            callbacks=[Advance(bar)],
        )
    return network, {"swap_logit": measured(magnitude)}


def _lengthened(config: FitConfig, other: FitConfig) -> FitConfig:
    """The same training for the steps (or epochs) of both."""
    unit = "steps" if config.steps is not None else "epochs"
    return config.model_copy(update={unit: getattr(config, unit) + getattr(other, unit)})


def _private_inference(
    network: nn.Module, trial: Trial, recipe: PolyMPCNetRecipe, data: ImageData, context: Context
) -> dict[str, Metric]:
    """Cost of one batch between two parties: metered in real runs if the recipe says so, else predicted."""
    settings = recipe.two_party
    images = data.test[torch.arange(min(settings.images, len(data.test)))][0].numpy()
    calibration = data.train[torch.arange(min(64, len(data.train)))][0].numpy()
    if trial.variant.startswith("naive") or trial.variant not in settings.variants:
        return {}
    program = two_party.compile(network.cpu(), data.input_shape, calibration=calibration)
    metrics = predicted_metrics(program, len(images))
    for link in settings.links:
        predicted = EngineLatency(recipe.calibration, link, len(images)).program(program)
        metrics[f"predicted_latency_{link}"] = modelled(predicted.seconds)
        if link == settings.links[0] or trial.variant in (RELU, "search"):
            with context.progress(settings.repeats, f"two parties over {link}") as bar:
                metrics |= measured_metrics(program, images, link, settings.repeats, bar.advance)
    return metrics
