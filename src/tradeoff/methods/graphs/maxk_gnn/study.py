"""The study: accuracy and epoch time of MaxK networks beside dense ones, at equal width, depth and epochs."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from pathlib import Path
from typing import Annotated, Any, Self, cast

import pydantic
import torch
from pydantic import Field

from tradeoff.core import Card, Context, Method, Metric, Outcome, Recipe, Trial, counted, measured
from tradeoff.core.native import extension
from tradeoff.core.provenance import processor, source_digest
from tradeoff.nn.optimization import Schedule

from .approximation import square_error
from .breakdown import Breakdown
from .claims import CLAIMS
from .model import MaxKGNN
from .nodes import load_nodes
from .systems import build
from .timing import EpochTime, saved_bytes, time_epochs
from .training import train

Width = Annotated[int, Field(ge=1, le=32_768, strict=True)]
TRAINED = ("mlp", "relu", "maxk")
"""Systems whose accuracy is measured; the others compute what one of these does."""
APPROXIMATIONS = {"square-maxk": "maxk", "square-relu": "relu"}


class NetworkSettings(pydantic.BaseModel):
    """One network shape on one graph: the rows that share it can be compared.

    Attributes:
        graph: data set, or generated graph.
        hidden, layers: width and blocks.
        ks: features that MaxK keeps, one row each.
        epochs: of training; 0 where only time is of interest.
        timed: whether epochs are timed, with ``peers`` beside.
        mlp: whether a network without the graph is trained beside, and the largest class counted.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    graph: str
    hidden: Width
    layers: int = Field(default=3, ge=1)
    ks: list[Width]
    epochs: int = Field(default=0, ge=0)
    timed: bool = False
    mlp: bool = False

    @pydantic.model_validator(mode="after")
    def _ks_fit(self) -> Self:
        if any(k > self.hidden for k in self.ks):
            raise ValueError(f"ks {self.ks} must not exceed hidden={self.hidden}")
        if not self.epochs and not self.timed:
            raise ValueError("give epochs, or timed: true, or both")
        return self


class MaxKRecipe(Recipe):
    """What the study varies."""

    networks: list[NetworkSettings] = Field(min_length=1, description="network shapes and their graphs")
    dropout: float = Field(0.5, ge=0, lt=1, description="of the features that an activation lets pass")
    learning_rate: float = Field(0.003, gt=0, description="of Adam")
    schedule: Schedule = Field("cosine", description="of the learning rate")
    evaluate_every: int = Field(1, ge=1, description="epochs between two evaluations")
    peers: list[str] = Field(["torch", "pyg"], description="dense systems timed beside ours: torch, pyg")
    rounds: int = Field(3, ge=1, description="timed epochs of each system")
    approximation: list[Width] = Field([4, 64], description="hidden units of the networks that fit x^2")
    approximation_steps: int = Field(1500, ge=1, description="training steps of those")

    @pydantic.model_validator(mode="after")
    def _can_be_run(self) -> Self:
        shapes = [(network.graph, network.hidden) for network in self.networks]
        if len(set(shapes)) < len(shapes):
            raise ValueError(
                "two networks have the same graph and width, so their rows could not be told apart"
            )
        if unknown := set(self.peers) - {"torch", "pyg"}:
            raise ValueError(f"peers are torch and pyg, not {', '.join(sorted(unknown))}")
        return self


class MaxKGNNStudy(Method[MaxKRecipe]):
    """MaxK-GNN."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = MaxKRecipe
    claims = CLAIMS
    timed = True

    def trials(self, recipe: MaxKRecipe) -> list[Trial]:
        """Every system on every network shape, and the fits of x^2."""
        cells: list[tuple[str, dict[str, Any]]] = []
        for network in recipe.networks:
            if network.mlp:
                cells.append(("majority", {"graph": network.graph}))
            for system, k in _systems(network, recipe):
                setting = {"graph": network.graph, "hidden": network.hidden} | ({"k": k} if k else {})
                cells.append((system, setting))
        cells += [(name, {"hidden": width}) for width in recipe.approximation for name in APPROXIMATIONS]
        return [
            Trial(variant=variant, setting=setting, seed=seed)
            for variant, setting in cells
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: MaxKRecipe, context: Context) -> Outcome:
        """Train one system where its accuracy is asked for, and time it beside the others."""
        if trial.variant in APPROXIMATIONS:
            return Outcome(trial=trial, metrics=_fit_square(trial, recipe))
        if trial.variant == "majority":
            return Outcome(trial=trial, metrics=_largest_class(trial))
        network = next(
            each
            for each in recipe.networks
            if (each.graph, each.hidden) == (trial.setting["graph"], trial.setting["hidden"])
        )
        metrics: dict[str, Metric] = {}
        if network.epochs and trial.variant in TRAINED:
            metrics |= _accuracy(trial, network, recipe, context)
        if trial.variant in ("relu", "maxk"):
            metrics["activation_bytes"] = counted(_saved_bytes(trial, network, recipe))
        if network.timed and trial.variant != "mlp":
            epoch = _epoch_times(trial.seed, network, recipe, context)[_label(trial.variant, _k(trial))]
            metrics["epoch_seconds"] = measured(epoch.seconds)
            metrics["aggregation_seconds"] = measured(epoch.aggregation)
            metrics["own_product_seconds"] = measured(epoch.own_product)
            metrics["activation_seconds"] = measured(epoch.activation)
        return Outcome(trial=trial, metrics=metrics)


def _systems(network: NetworkSettings, recipe: MaxKRecipe) -> list[tuple[str, int | None]]:
    """Rows of a network shape: system and k."""
    rows: list[tuple[str, int | None]] = [("mlp", None)] if network.mlp else []
    rows += [("relu", None), *(("maxk", k) for k in network.ks)]
    if network.timed:
        rows += [("maxk-sums", k) for k in network.ks] + [("simulated", k) for k in network.ks[:1]]
        rows += [(peer, None) for peer in recipe.peers]
    return rows


def _k(trial: Trial) -> int | None:
    k = trial.setting.get("k")
    return k if isinstance(k, int) else None


def _label(system: str, k: int | None) -> str:
    return system if k is None else f"{system} {k}"


def _accuracy(
    trial: Trial, network: NetworkSettings, recipe: MaxKRecipe, context: Context
) -> dict[str, Metric]:
    """The kernels are fixed: ``auto`` may choose otherwise in another run, and sums would round otherwise."""
    data, graph = load_nodes(network.graph)
    torch.manual_seed(trial.seed)
    shape = (data.num_features, network.hidden, network.layers, data.num_classes, _k(trial))
    model = build(trial.variant, *shape, dropout=recipe.dropout, aggregation="cbsr").to(context.device)
    started = time.perf_counter()
    with context.progress(None, f"{network.epochs} epochs"):
        result = train(
            model,
            *(graph.to(context.device), data.x.to(context.device), data.y.to(context.device), data),
            epochs=network.epochs,
            lr=recipe.learning_rate,
            schedule=recipe.schedule,
            evaluate_every=recipe.evaluate_every,
            seed=trial.seed,
            checkpoint=context.work / "checkpoint.safetensors",
        )
    seconds = measured(time.perf_counter() - started)
    return {"accuracy": measured(result.test_acc), "training_seconds": seconds}


def _largest_class(trial: Trial) -> dict[str, Metric]:
    """The accuracy of naming one class for all tested nodes, the one that most of them have."""
    data, _ = load_nodes(str(trial.setting["graph"]))
    tested = data.y[data.test]
    return {"accuracy": measured(float((tested == tested.mode().values).double().mean()))}


def _saved_bytes(trial: Trial, network: NetworkSettings, recipe: MaxKRecipe) -> int:
    """Of one block on the whole graph."""
    _, graph = load_nodes(network.graph)
    torch.manual_seed(trial.seed)
    sizes = (1, network.hidden, 1, 1, _k(trial))
    model = cast(MaxKGNN, build(trial.variant, *sizes, dropout=recipe.dropout, aggregation="cbsr"))
    x = torch.randn(graph.num_rows, network.hidden)
    return saved_bytes(model.blocks[0], model.normalized(graph), x)


def _epoch_times(
    seed: int, network: NetworkSettings, recipe: MaxKRecipe, context: Context
) -> dict[str, EpochTime]:
    """All systems of a network shape in one process by turns, once for the trials of a seed."""

    def measure(folder: Path) -> None:
        data, graph = load_nodes(network.graph)
        torch.manual_seed(seed)
        rows = [row for row in _systems(network, recipe) if row[0] != "mlp"]
        sizes = (data.num_features, network.hidden, network.layers, data.num_classes)
        networks = {
            _label(*row): build(row[0], *sizes, row[1], dropout=recipe.dropout).to(context.device)
            for row in rows
        }
        operands = [part.to(context.device) for part in (data.x, data.y, data.train)]
        with context.progress(None, f"timing {len(networks)} systems side by side"):
            times = time_epochs(networks, graph.to(context.device), *operands, rounds=recipe.rounds)
        written = {name: dataclasses.asdict(epoch) for name, epoch in times.items()}
        (folder / "epochs.json").write_text(json.dumps(written))

    key = {
        "epochs": network.model_dump(mode="json"),
        "seed": seed,
        **recipe.model_dump(mode="json", include={"dropout", "peers", "rounds"}),
        **_surroundings(context.device),
    }
    stored = json.loads((context.cache(key, measure) / "epochs.json").read_text())
    return {
        name: EpochTime(epoch["seconds"], Breakdown(**epoch["breakdown"])) for name, epoch in stored.items()
    }


def _surroundings(device: str) -> dict[str, str]:
    """What a time depends on beside what is timed: another version or machine measures anew."""
    compiled = ["tradeoff._native"] if extension() is not None else []
    return {
        "code": source_digest(__package__, "tradeoff.engines.kernels", "tradeoff.core.timing", *compiled),
        "torch": torch.__version__,
        "host": platform.node(),
        "processor": processor(),
        "device": device,
    }


def _fit_square(trial: Trial, recipe: MaxKRecipe) -> dict[str, Metric]:
    """A start of its own for each seed: the best of them counts."""
    width = trial.setting["hidden"]
    assert isinstance(width, int)
    error = square_error(
        width, APPROXIMATIONS[trial.variant], steps=recipe.approximation_steps, seeds=[trial.seed]
    )
    return {"loss": measured(error)}
