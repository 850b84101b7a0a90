"""The study: AutoReP beside other ways to spend as many ReLUs, with real two-party inferences."""

import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import torch
from pydantic import Field
from torch import nn

from tradeoff.core import Card, Context, Method, Metric, Outcome, Recipe, Trial, counted, measured
from tradeoff.data.images import ImageData, check_name, load
from tradeoff.data.trained import Advance, trained_base
from tradeoff.engines import two_party
from tradeoff.engines.two_party.metrics import measured_metrics, predicted_metrics
from tradeoff.nn.compressed import save_compressed
from tradeoff.nn.fit import FitConfig, evaluate
from tradeoff.nn.models import ARCHITECTURES

from .baselines import layerwise_positions, random_positions
from .claims import CLAIMS
from .replacement import relu_count
from .site import ReplacementConfig
from .snl import SelectiveLinearization
from .training import AutoReP

Variant = Literal[
    "autorep", "no-hysteresis", "random", "identity", "identity-random", "square", "layers", "snl"
]
Budget = Annotated[int, Field(ge=0, strict=True)]
RELU = "relu"
"""The network that all others are made from."""


class SNLSettings(pydantic.BaseModel):
    """What is tuned for SNL, as ``penalty`` and ``score_learning_rate`` are for AutoReP."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    penalty: float = Field(default=20.0, gt=0)
    growth: float = Field(default=1.1, ge=1)
    check_every: int = Field(default=10, ge=1)


class TwoPartySettings(pydantic.BaseModel):
    """Which networks are run between two parties, how often and over which links."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    variants: list[Variant | Literal["relu"]] = ["relu", "autorep", "snl"]
    links: list[Literal["lan", "wan"]] = ["lan", "wan"]
    images: int = Field(default=32, ge=1)
    repeats: int = Field(default=3, ge=1)


class AutoRepRecipe(Recipe):
    """What the study varies."""

    data: str = Field("digit-pairs", description="data set, or folder with one subfolder of images per class")
    arch: str = Field("pair_cnn", description="architecture of tradeoff.nn.models")
    variants: dict[Variant, list[Budget]] = Field(description="ReLU budgets per image for each variant")
    base: FitConfig = Field(description="training of the network with all its ReLUs")
    replacement: FitConfig = Field(description="training while positions are chosen")
    finetuning: FitConfig = Field(description="training after that, positions fixed")
    score_learning_rate: float = Field(0.02, gt=0, description="constant learning rate of the scores")
    penalty: float = Field(20.0, ge=0, description="weight of the budget in AutoReP's loss")
    config: ReplacementConfig = Field(ReplacementConfig(), description="polynomials and hysteresis")
    snl: SNLSettings = Field(SNLSettings(), description="what is tuned for SNL")
    threads: int | None = Field(None, ge=1, description="of training; the smallest networks need only one")
    two_party: TwoPartySettings = Field(TwoPartySettings(), description="the private inferences that are run")

    @pydantic.model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch {self.arch!r} is none of {', '.join(ARCHITECTURES)}")
        check_name(self.data)
        for name, budgets in self.variants.items():
            if len(set(budgets)) < len(budgets):
                raise ValueError(f"variants.{name} lists a budget twice: {budgets}")
        if (self.replacement.steps is None) != (self.finetuning.steps is None):
            # Baselines without a replacement phase get its length as finetuning.
            raise ValueError("replacement and finetuning must both have steps, or both epochs")
        return self


class AutoRep(Method[AutoRepRecipe]):
    """Automatic ReLU replacement under a budget."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = AutoRepRecipe
    claims = CLAIMS
    timed = True

    def trials(self, recipe: AutoRepRecipe) -> list[Trial]:
        """The all-ReLU network, and each variant at each of its budgets."""
        cells: list[tuple[str, dict[str, Any]]] = [(RELU, {})]
        cells += [(name, {"budget": b}) for name, budgets in recipe.variants.items() for b in budgets]
        return [
            Trial(variant=name, setting=setting, seed=seed)
            for name, setting in cells
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: AutoRepRecipe, context: Context) -> Outcome:
        """Compress the seed's base network, test it, and run it between two parties."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        data = _load(recipe.data)
        base, seconds = _base(recipe, data, trial.seed, context)
        network, flips = base, None
        if trial.variant != RELU:
            started = time.perf_counter()
            network, flips = _compress(base, trial, recipe, data, context)
            seconds = time.perf_counter() - started
        metrics = {
            "accuracy": measured(evaluate(network, data.test)),
            "relu_count": counted(relu_count(network, data.input_shape)),
            "training_seconds": measured(seconds),
        }
        if flips is not None:
            metrics["mask_flips"] = measured(flips)
        folder = context.work / "network"
        save_compressed(
            folder,
            network,
            arch=recipe.arch,
            num_classes=data.num_classes,
            input_shape=data.input_shape,
        )
        metrics |= _private_inference(network, trial, recipe, data, context)
        return Outcome(trial=trial, metrics=metrics, artifact=context.artifact(folder))


@lru_cache(maxsize=1)
def _load(name: str) -> ImageData:
    return load(name)


def _base(recipe: AutoRepRecipe, data: ImageData, seed: int, context: Context) -> tuple[nn.Module, float]:
    """The seed's network with all its ReLUs, trained once for all variants, and how long that took."""
    return trained_base(recipe.arch, recipe.data, data, recipe.base, seed, context)


def _compress(
    base: nn.Module, trial: Trial, recipe: AutoRepRecipe, data: ImageData, context: Context
) -> tuple[nn.Module, int | None]:
    """Train one variant; returns the finished network and, where positions were learned, the excess flips."""
    replacement = recipe.replacement.model_copy(update={"seed": 3 * trial.seed + 1})
    finetuning = recipe.finetuning.model_copy(update={"seed": 3 * trial.seed + 2})
    method = _method(base, trial, recipe, data)
    learned = trial.variant not in ("random", "identity-random", "layers")
    if not learned:  # all steps are finetuning
        finetuning = _lengthened(finetuning, replacement)
    with context.progress(None, "training under the budget") as bar, warnings.catch_warnings():
        # That ReLUs are dropped by score at the end of a phase is part of the study: flips count them.
        warnings.filterwarnings("ignore", message="the replacement phase ended")
        method.fit(
            data.train,
            data.validation,
            replacement,
            finetuning,
            score_learning_rate=recipe.score_learning_rate,
            checkpoint=context.work / "checkpoint",
            callbacks=[Advance(bar)],
        )
    flips = method.excess_flips() if isinstance(method, AutoReP) and learned else None
    return method.finalize(), flips


def _method(
    base: nn.Module, trial: Trial, recipe: AutoRepRecipe, data: ImageData
) -> AutoReP | SelectiveLinearization:
    budget, shape, seed = int(trial.setting["budget"] or 0), data.input_shape, trial.seed
    if trial.variant == "snl":
        return SelectiveLinearization(base, budget, shape, **recipe.snl.model_dump())
    changes: dict[str, Any] = {}
    positions = None
    match trial.variant:
        case "no-hysteresis":
            changes = {"hysteresis": 0.0}
        case "identity" | "square":
            changes = {"polynomial": trial.variant}
        case "random":
            positions = random_positions(base, shape, budget, seed)
        case "identity-random":
            changes, positions = {"polynomial": "identity"}, random_positions(base, shape, budget, seed)
        case "layers":
            positions = layerwise_positions(base, shape, budget, data.validation)
            changes = {"polynomial": "identity"}
    config = recipe.config.model_copy(update=changes)
    return AutoReP(base, budget, shape, config, penalty=recipe.penalty, positions=positions, seed=seed)


def _lengthened(config: FitConfig, other: FitConfig) -> FitConfig:
    """The same training for the steps (or epochs) of both."""
    unit = "steps" if config.steps is not None else "epochs"
    return config.model_copy(update={unit: getattr(config, unit) + getattr(other, unit)})


def _private_inference(
    network: nn.Module, trial: Trial, recipe: AutoRepRecipe, data: ImageData, context: Context
) -> dict[str, Metric]:
    """Cost of one batch between two parties: metered in real runs if the recipe says so, else predicted."""
    settings = recipe.two_party
    images = data.test[torch.arange(min(settings.images, len(data.test)))][0].numpy()
    calibration = data.train[torch.arange(min(64, len(data.train)))][0].numpy()
    program = two_party.compile(network.cpu(), data.input_shape, calibration=calibration)
    if trial.variant not in settings.variants or not settings.links:
        return predicted_metrics(program, len(images))
    metrics: dict[str, Metric] = {}
    for link in settings.links:
        with context.progress(settings.repeats, f"two parties over {link}") as bar:
            metrics |= measured_metrics(program, images, link, settings.repeats, bar.advance)
    return metrics
