"""The study: one network among three, five and seven servers, protected to different degrees, beside MPyC."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from pydantic import Field

from tradeoff.core import Card, Context, Method, Metric, Outcome, Recipe, Trial, counted, measured
from tradeoff.data.images import ImageData, check_name, load
from tradeoff.engines import shamir
from tradeoff.nn.fit import FitConfig, fit
from tradeoff.nn.models import ARCHITECTURES, build, load_weights, save_weights

from .claims import CLAIMS
from .comparison import total_cost
from .peers import run_mpyc

Variant = Literal["ssnet", "strict", "mpyc"]


class Cell(pydantic.BaseModel):
    """A number of servers, who is trusted, and how many images are asked about."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    servers: int = Field(default=3, ge=3, le=16)
    threshold: int = Field(default=1, ge=1)
    security: Literal["semi-honest", "abort", "robust"] = "semi-honest"
    images: int = Field(default=64, ge=1)

    @pydantic.model_validator(mode="after")
    def _exists(self) -> Self:
        shamir.Options(self.servers, self.threshold, self.security)
        return self


class SSNetRecipe(Recipe):
    """What the study varies."""

    data: str = Field("digits", description="data set, or folder with one subfolder of images per class")
    arch: str = Field("pooled_cnn", description="architecture of tradeoff.nn.models")
    training: FitConfig = Field(description="of the plaintext network")
    cells: dict[Variant, list[Cell]] = Field(
        description="servers, threshold, security, images: masked (ssnet), strict comparisons, and MPyC"
    )
    links: list[Literal["lan", "wan"]] = Field(["lan", "wan"], description="emulated links, beside loopback")
    repeats: int = Field(3, ge=1, description="inferences, the median of which counts")

    @pydantic.model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch {self.arch!r} is none of {', '.join(ARCHITECTURES)}")
        check_name(self.data)
        for name, cells in self.cells.items():
            if len(set(cells)) < len(cells):
                raise ValueError(f"cells.{name} lists a cell twice")
        for cell in self.cells.get("mpyc", []):
            if cell.servers != 2 * cell.threshold + 1 or cell.security != "semi-honest":
                raise ValueError("MPyC runs with 2t + 1 semi-honest parties")
        return self


class SSNet(Method[SSNetRecipe]):
    """Inference on Shamir shares."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = SSNetRecipe
    claims = CLAIMS
    timed = True

    def trials(self, recipe: SSNetRecipe) -> list[Trial]:
        """Every variant in every one of its cells."""
        return [
            Trial(variant=name, setting=cell.model_dump(), seed=seed)
            for name, cells in recipe.cells.items()
            for cell in cells
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: SSNetRecipe, context: Context) -> Outcome:
        """Train the seed's network, run it among real processes, compare with the plaintext."""
        data = load(recipe.data)
        network = _trained(recipe, data, trial.seed, context)
        cell = Cell.model_validate(dict(trial.setting))
        count = min(cell.images, len(data.test))
        images, labels = data.test[torch.arange(count)]
        calibration = data.train[torch.arange(min(64, len(data.train)))][0].numpy()
        program = shamir.compile(
            network,
            data.input_shape,
            calibration=calibration,
            servers=cell.servers,
            threshold=cell.threshold,
            security=cell.security,
            nonlinear="masked" if trial.variant == "ssnet" else "strict",
        )
        if trial.variant == "mpyc":
            metrics, logits = _peer(program, images.numpy(), cell, context)
        else:
            metrics, logits = _inferences(program, images.numpy(), recipe, context)
        agreement = shamir.agreement(program, images.numpy(), logits)
        plain = program.plan.evaluate(images.numpy()).argmax(axis=1)
        metrics |= {
            "accuracy": measured(float((plain == labels.numpy()).mean())),
            "label_agreement": measured(agreement.labels),
            "logit_error_max": measured(agreement.largest),
        }
        return Outcome(trial=trial, metrics=metrics)


def _trained(recipe: SSNetRecipe, data: ImageData, seed: int, context: Context) -> torch.nn.Module:
    """The seed's plaintext network, trained once for all trials."""
    config = recipe.training.model_copy(update={"seed": seed})
    torch.manual_seed(seed)
    network = build(recipe.arch, data.num_classes, data.input_shape)

    def train(folder: Path) -> None:
        with context.progress(None, "training the plaintext network"):
            fit(network, data.train, data.validation, config)
        save_weights(network, folder / "model.safetensors")

    key = {
        "network": recipe.arch,
        "data": recipe.data,
        "fit": config.model_dump(mode="json"),
        "seed": seed,
    }
    load_weights(network, context.cache(key, train) / "model.safetensors")
    return network.eval()


def _inferences(
    program: shamir.Program, images: NDArray[Any], recipe: SSNetRecipe, context: Context
) -> tuple[dict[str, Metric], NDArray[Any]]:
    """Bytes, rounds and seconds among processes, over loopback and over every emulated link."""
    metrics: dict[str, Metric] = {}
    for link in ("loopback", *recipe.links):
        with context.progress(recipe.repeats, f"servers over {link}") as bar:
            logits, seconds, sent, rounds = _runs(program, images, link, recipe.repeats, bar.advance)
        name = "latency" if link == "loopback" else f"latency_{link}"
        metrics[name] = measured(seconds)
    predicted = total_cost(program, len(images))
    return {
        **metrics,
        "online_bytes": measured(sent),
        "rounds": measured(rounds),
        "offline_bytes": counted(predicted.offline),
    }, logits


def _runs(
    program: shamir.Program, images: NDArray[Any], link: str, repeats: int, advance: Any
) -> tuple[NDArray[Any], float, int, int]:
    """(logits, median seconds, bytes sent by all parties, rounds); the dealer deals meanwhile."""
    options = program.options
    seconds = []
    with shamir.Session.local(net=link) as session:
        session.infer(program, images)  # starts the processes and shares the weights
        for _ in range(repeats):
            started = time.perf_counter()
            logits = session.infer(program, images)
            seconds.append(time.perf_counter() - started)
            advance()
        parties = (*options.scheme.servers, options.client)
        totals = [session.report(party).total for party in parties]
    return logits, statistics.median(seconds), sum(t.sent for t in totals), totals[0].rounds


def _peer(
    program: shamir.Program, images: NDArray[Any], cell: Cell, context: Context
) -> tuple[dict[str, Metric], NDArray[np.float64]]:
    folder = context.work / "mpyc"
    folder.mkdir(parents=True, exist_ok=True)
    with context.progress(None, "MPyC"):
        run = run_mpyc(program.plan, images, cell.servers, folder, frac_bits=program.options.frac_bits)
    return {"latency": measured(run.seconds), "online_bytes": measured(run.sent)}, run.logits
