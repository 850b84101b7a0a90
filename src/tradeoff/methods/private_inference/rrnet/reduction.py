"""A family of networks from all ReLUs to none, or the one that meets a budget."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from tradeoff.core.errors import StoreError, TradeoffError
from tradeoff.core.files import read_json
from tradeoff.nn.fit import Callback, FitConfig, Indexable, TrainingDiverged, evaluate
from tradeoff.nn.latency import LatencyModel, NetworkLatency, ReLUCount
from tradeoff.nn.models import ArchMismatch, load_weights, save_weights
from tradeoff.nn.plan import Plan
from tradeoff.nn.polynomial import PolynomialDivergence
from tradeoff.nn.search import (
    Architecture,
    ArchitectureConfig,
    GateConfig,
    LatencySearch,
    apply_to_plan,
    comparison_count,
)

from .budget import BudgetConfig, BudgetController, InfeasibleBudget, repair

DIVERGENCES = (PolynomialDivergence, TrainingDiverged)


@dataclass(frozen=True)
class FrontPoint:
    """One network of a front.

    Attributes:
        penalty: of a millisecond, that it was searched with at the end.
        architecture: what was chosen; None where the point failed.
        accuracy: on the validation split.
        relus, comparisons: for one image; comparisons are those of max poolings.
        latency: modelled, of the hard architecture.
        network: finetuned, of plain modules.
        error: why the point failed.
    """

    penalty: float
    architecture: Architecture | None
    accuracy: float
    relus: int
    comparisons: int
    latency: NetworkLatency | None
    network: nn.Module | None
    error: str | None = None

    @property
    def seconds(self) -> float:
        """Modelled."""
        return self.latency.seconds if self.latency is not None else float("inf")

    def to_json(self) -> dict[str, Any]:
        """A JSON document, the network left out."""
        chosen = self.architecture.choices if self.architecture is not None else None
        return {
            "penalty": self.penalty,
            "architecture": None if chosen is None else {site: list(kinds) for site, kinds in chosen.items()},
            "accuracy": self.accuracy,
            "relus": self.relus,
            "comparisons": self.comparisons,
            "latency": None if self.latency is None else self.latency.to_json(),
            "error": self.error,
        }


@dataclass(frozen=True)
class Front:
    """All points of a sweep, in its order.

    Attributes:
        points: dominated and failed ones included.
        plan: of the network with all ReLUs and max poolings.
    """

    points: tuple[FrontPoint, ...]
    plan: Plan

    @property
    def best(self) -> tuple[FrontPoint, ...]:
        """Points that no other one matches in latency and accuracy and beats in one; fastest first."""
        alive = [point for point in self.points if point.error is None]
        kept = [
            point
            for point in alive
            if not any(
                other.seconds <= point.seconds
                and other.accuracy >= point.accuracy
                and (other.seconds, other.accuracy) != (point.seconds, point.accuracy)
                for other in alive
            )
        ]
        return tuple(sorted(kept, key=lambda point: point.seconds))

    def table(self) -> str:
        """Plain text, one line a point of :attr:`best`."""
        lines = [f"{'penalty':>10}  {'accuracy':>8}  {'ReLUs':>11}  {'max-pool':>11}  {'modelled ms':>11}"]
        lines += [
            f"{point.penalty:>10.4g}  {point.accuracy:>8.4f}  {point.relus:>11,}  {point.comparisons:>11,}  "
            f"{1e3 * point.seconds:>11.3f}"
            for point in self.best
        ]
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Write all points as JSON, the networks left out."""
        path.write_text(json.dumps([point.to_json() for point in self.points], indent=2) + "\n")

    @classmethod
    def load(cls, path: Path, plan: Plan) -> Self:
        """Read :meth:`save`'s file, without networks and latencies.

        Args:
            plan: of the network with all ReLUs and max poolings.

        Raises:
            FileNotFoundError: there is none.
            ArchMismatch: it is damaged, or not of this network.
        """
        try:
            points = [_loaded(entry) for entry in read_json(path)]
            for point in points:
                if point.architecture is not None:
                    apply_to_plan(plan, point.architecture)
        except (StoreError, KeyError, TypeError, ValueError) as error:
            raise ArchMismatch(f"{path} is no front of this network: {error}") from None
        return cls(tuple(points), plan)


def _loaded(entry: dict[str, Any]) -> FrontPoint:
    chosen = entry["architecture"]
    return FrontPoint(
        float(entry["penalty"]),
        None if chosen is None else Architecture({site: tuple(kinds) for site, kinds in chosen.items()}),
        float(entry["accuracy"]),
        int(entry["relus"]),
        int(entry["comparisons"]),
        None,
        None,
        entry["error"],
    )


def sensitivity(front: Front, models: Mapping[str, LatencyModel]) -> dict[str, list[float]]:
    """Seconds of each living point under other models (boards, bandwidths, links), without any training.

    Args:
        models: by what the result calls them.
    """
    return {
        name: [
            model.network(apply_to_plan(front.plan, point.architecture)).seconds
            for point in front.points
            if point.architecture is not None
        ]
        for name, model in models.items()
    }


class ReLUReduction:
    """Reduce the ReLUs of a trained network site by site (or channel group by group) under a latency.

    Args:
        model: trained; it is left as it is.
        latency: what an architecture costs.
        input_shape: of one image, without the batch.
        gates: what sites may become; ``groups`` lets groups of channels choose for themselves.
        architecture: how choices are trained.
        distill: learn from the outputs of the network with all its ReLUs while finetuning.

    Raises:
        NoSearchableSites: there is nothing to choose.

    Example:
        >>> from tradeoff.data.devices import fpga_latency
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 1, 4, 4), torch.arange(64) % 2)
        >>> steps = FitConfig(steps=2, batch_size=8, optimizer="adam", learning_rate=0.001)
        >>> method = ReLUReduction(network, fpga_latency(), (1, 4, 4))
        >>> front = method.sweep(data, data, [0.0, 1e5], steps, steps)
        >>> len(front.points)
        2
    """

    def __init__(
        self,
        model: nn.Module,
        latency: LatencyModel,
        input_shape: tuple[int, ...],
        gates: GateConfig | None = None,
        architecture: ArchitectureConfig | None = None,
        *,
        distill: bool = True,
    ) -> None:
        self.model, self.latency, self.input_shape = model, latency, tuple(input_shape)
        self.gates = gates or GateConfig()
        self.architecture = architecture or ArchitectureConfig()
        self.distill = distill
        self.plan = self._search(0.0).plan

    def _search(self, penalty: float, latency: LatencyModel | None = None) -> LatencySearch:
        return LatencySearch(
            self.model, latency or self.latency, self.input_shape, penalty, self.gates, self.architecture
        )

    def sweep(
        self,
        train: Indexable,
        validation: Indexable,
        penalties: Sequence[float],
        search: FitConfig,
        finetuning: FitConfig,
        *,
        checkpoint: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Front:
        """Search at rising penalties, each from where the one before ended, and finetune each choice.

        A point that diverges is recorded as failed, and the next one starts where the last good one ended.

        Args:
            train: training split.
            validation: chooses epochs and measures the front.
            penalties: losses of a millisecond, in rising order.
            search: training of each search.
            finetuning: training of each choice.
            checkpoint: folder to resume from and to write to: a finished point is not made again.

        Raises:
            ValueError: no penalty, a negative one, or they do not rise.
        """
        check_penalties(penalties)
        points, warm = [], None
        for index, penalty in enumerate(penalties):
            folder = checkpoint and checkpoint / f"point-{index}"
            found = self._search(penalty)
            if warm is not None:
                found.network.load_state_dict(warm)
            try:
                self.run(found, train, search, folder, callbacks)
                point = self.point(found, train, validation, finetuning, folder, callbacks)
                warm = found.network.state_dict()
            except DIVERGENCES as error:
                point = _failed(penalty, error)
            points.append(point)
        return Front(tuple(points), self.plan)

    def run(
        self,
        found: LatencySearch,
        train: Indexable,
        config: FitConfig,
        folder: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Search from the present state; a search that ``folder`` holds complete is loaded."""
        done = folder and folder / "searched.safetensors"
        if done is not None and done.exists():
            load_weights(found.network, done)
            return
        found.fit(train, config, checkpoint=folder and folder / "search", callbacks=callbacks)
        if done is not None:
            save_weights(found.network, done)

    def point(
        self,
        found: LatencySearch,
        train: Indexable,
        validation: Indexable,
        finetuning: FitConfig,
        folder: Path | None = None,
        callbacks: Sequence[Callback] = (),
        architecture: Architecture | None = None,
    ) -> FrontPoint:
        """Finetune a choice and measure it on the validation split."""
        chosen = architecture or found.architecture()
        network = found.finish(
            train,
            validation,
            finetuning,
            architecture=chosen,
            distill=self.distill,
            checkpoint=folder and folder / "finetuning",
            callbacks=callbacks,
        )
        plan = found.hard_plan(chosen)
        return FrontPoint(
            found.penalty,
            chosen,
            evaluate(network, validation),
            plan.relu_count,
            comparison_count(plan),
            self.latency.network(plan),
            network,
        )

    def to_budget(
        self,
        train: Indexable,
        validation: Indexable,
        search: FitConfig,
        finetuning: FitConfig,
        *,
        seconds: float | None = None,
        relus: int | None = None,
        budget: BudgetConfig | None = None,
        checkpoint: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> FrontPoint:
        """Return the network that meets a budget of latency or of ReLUs.

        Args:
            seconds: modelled latency at most, or
            relus: ReLUs of an image at most (the search then minimizes their count).
            budget: how the penalty follows.

        Raises:
            InfeasibleBudget: not even the network without comparisons meets it.
            ValueError: not exactly one budget is given, or it is negative.
        """
        model, limit = budget_model(self.latency, seconds, relus)
        found = self._search(0.0, model)
        full = found.hard_latency(Architecture.uniform(found.network, "relu", "max")).seconds
        if limit >= full:
            warnings.warn(
                "the budget exceeds what the network with all its ReLUs takes: nothing will be replaced",
                stacklevel=2,
            )
            return self._unreduced(found, validation)
        self.search_budget(found, limit, train, search, budget, checkpoint, callbacks)
        chosen = repair(found, limit)
        return self.point(found, train, validation, finetuning, checkpoint, callbacks, chosen)

    def search_budget(
        self,
        found: LatencySearch,
        seconds: float,
        train: Indexable,
        config: FitConfig,
        budget: BudgetConfig | None = None,
        folder: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Search with a penalty that follows the budget, from cross-entropy over latency of the network."""
        floor = found.hard_latency(Architecture.uniform(found.network, "poly", "average")).seconds
        if floor > seconds:
            raise InfeasibleBudget(1e3 * floor, 1e3 * seconds)
        full = found.hard_latency(Architecture.uniform(found.network, "relu", "max")).seconds
        found.penalty = _cross_entropy(self.model, train) / (1e3 * full)
        controller = BudgetController(found, max(seconds, 1e-12), budget)
        self.run(found, train, config, folder, [controller, *callbacks])

    def _unreduced(self, found: LatencySearch, validation: Indexable) -> FrontPoint:
        full = Architecture.uniform(found.network, "relu", "max")
        plan = found.hard_plan(full)
        return FrontPoint(
            0.0,
            full,
            evaluate(found.model, validation),
            plan.relu_count,
            comparison_count(plan),
            self.latency.network(plan),
            found.model,
        )


def budget_model(
    latency: LatencyModel, seconds: float | None, relus: int | None
) -> tuple[LatencyModel, float]:
    """What a search for a budget minimizes, and the budget in its unit.

    Raises:
        ValueError: not exactly one budget is given, or it is negative.
    """
    if (seconds is None) == (relus is None):
        raise ValueError("give either a budget of seconds or one of ReLUs")
    given = seconds if seconds is not None else relus
    if given is None or not given >= 0:
        raise ValueError(f"a budget must not be negative, got {given}")
    if seconds is not None:
        return latency, seconds
    count = ReLUCount()
    return count, count.seconds(int(given))


def check_penalties(penalties: Sequence[float]) -> None:
    """Raise ``ValueError`` unless there are penalties, none negative, in rising order."""
    if not penalties:
        raise ValueError("a front needs at least one penalty")
    if not all(penalty >= 0 for penalty in penalties):
        raise ValueError(f"penalties must not be negative, got {list(penalties)}")
    if sorted(set(penalties)) != list(penalties):
        raise ValueError(f"penalties must rise, got {list(penalties)}")


def _failed(penalty: float, error: TradeoffError) -> FrontPoint:
    return FrontPoint(penalty, None, 0.0, 0, 0, None, None, str(error))


@torch.no_grad()
def _cross_entropy(model: nn.Module, train: Indexable, images: int = 512) -> float:
    """Of the network as it came, at least a thousandth: where the penalty starts must not be zero."""
    inputs, targets = train[torch.arange(min(images, len(train)))]
    device = next(model.parameters(), torch.empty(0)).device
    training = model.training
    try:
        outputs = model.eval()(inputs.to(device))
    finally:
        model.train(training)
    return max(1e-3, float(functional.cross_entropy(outputs, targets.to(device))))
