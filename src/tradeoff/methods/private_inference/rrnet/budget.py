"""Budgets: a penalty that follows the latency during the search, and a repair that ends exactly within it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from tradeoff.core.errors import TradeoffError
from tradeoff.nn.fit import Callback, FitState
from tradeoff.nn.search import Architecture, Gate, LatencySearch, gates

COSTLY = ("relu", "max")
CHEAP = {"relu": "poly", "max": "average"}
SETTLED = 0.02
"""Distance below the budget, over it, at which the penalty may rest."""


class InfeasibleBudget(TradeoffError, ValueError):
    """Not even the network without comparisons meets the budget."""

    def __init__(self, floor_ms: float, requested_ms: float) -> None:
        super().__init__(
            f"the network without ReLUs and max poolings takes {floor_ms:.3f} ms, more than the budget of "
            f"{requested_ms:.3f} ms; use a faster link or a smaller network"
        )
        self.floor_ms = floor_ms
        self.requested_ms = requested_ms


class BudgetConfig(pydantic.BaseModel):
    """How the penalty follows the latency.

    Attributes:
        rate: change of the penalty over the initial one, for a latency of twice the budget.
        interval: steps between two changes; an epoch if None.
        largest_change: factor by which one change may raise or lower the penalty.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    rate: float = pydantic.Field(default=0.1, gt=0)
    interval: int | None = pydantic.Field(default=None, ge=1)
    largest_change: float = pydantic.Field(default=2.0, gt=1)


class BudgetController(Callback):
    """Moves the penalty of a search so that the hard choice comes to a budget.

    ``penalty <- max(0, penalty + rate * initial * (latency - budget) / budget)``, changed by a factor of at
    most ``largest_change`` at once; it rests within 2 % below the budget.

    Args:
        search: whose penalty is moved; the present one is the initial one.
        seconds: the budget, in the unit of the search's latency model.
        config: see :class:`BudgetConfig`.
    """

    def __init__(self, search: LatencySearch, seconds: float, config: BudgetConfig | None = None) -> None:
        self.search, self.seconds = search, seconds
        self.config = config or BudgetConfig()
        self.initial = search.penalty

    def on_step_end(self, state: FitState) -> None:
        if state.step % (self.config.interval or state.steps_per_epoch) == 0:
            self.update(self.search.hard_latency().seconds)

    def update(self, latency: float) -> None:
        """Move the penalty once, the hard choice taking ``latency``."""
        excess = (latency - self.seconds) / self.seconds
        if -SETTLED <= excess <= 0:
            return
        penalty = self.search.penalty
        wanted = max(0.0, penalty + self.config.rate * self.initial * excess)
        if penalty > 0:
            most = self.config.largest_change
            wanted = min(max(wanted, penalty / most), penalty * most)
        self.search.penalty = wanted

    def state_dict(self) -> dict[str, Any]:
        return {"penalty": self.search.penalty, "initial": self.initial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.search.penalty, self.initial = state["penalty"], state["initial"]


def repair(search: LatencySearch, seconds: float, architecture: Architecture | None = None) -> Architecture:
    """Bring an architecture within a budget, and use what the budget leaves.

    While it is over budget, the group of channels (or the pooling) goes that has the smallest margin of
    ``alpha`` for the second that it saves; then, again and again, of those that fit the one comes back that
    has the largest margin, not the largest: that would undo what the search found useless.

    Args:
        search: knows the network, its ``alpha`` and the latency model.
        seconds: the budget.
        architecture: to start from; what the gates choose if not given.

    Returns:
        an architecture that meets the budget and into which no further ReLU or max pooling fits.

    Raises:
        InfeasibleBudget: nothing does.
    """
    chosen = architecture or search.architecture()
    floor = search.hard_latency(Architecture.uniform(search.network, "poly", "average")).seconds
    if floor > seconds:
        raise InfeasibleBudget(1e3 * floor, 1e3 * seconds)
    found = gates(search.network)
    latency = search.hard_latency(chosen).seconds
    while latency > seconds:
        best: tuple[tuple[float, float], Architecture, float] | None = None
        for site, group in _places(chosen, costly=True):
            tried = _flipped(chosen, site, group, CHEAP[chosen.choices[site][group]])
            then = search.hard_latency(tried).seconds
            saved = latency - then
            margin = _margin(found[site], group)
            # A choice that saves nothing alone may be one of several groups of a site: after all others.
            order = (margin / saved if saved > 0 else math.inf, -saved)
            if best is None or order < best[0]:
                best = (order, tried, then)
        assert best is not None, "the floor meets the budget"
        _, chosen, latency = best
    while True:
        fitting = [
            (_margin(found[site], group), tried)
            for site, group in _places(chosen, costly=False)
            if search.hard_latency(tried := _costlier(chosen, found[site], site, group)).seconds <= seconds
        ]
        if not fitting:
            return chosen
        _, chosen = max(fitting, key=lambda each: each[0])


def _places(architecture: Architecture, *, costly: bool) -> Iterator[tuple[str, int]]:
    for site, choice in architecture.choices.items():
        for group, kind in enumerate(choice):
            if (kind in COSTLY) == costly:
                yield site, group


def _flipped(architecture: Architecture, site: str, group: int, kind: str) -> Architecture:
    choice = list(architecture.choices[site])
    choice[group] = kind
    return architecture.with_choice(site, *choice)


def _costlier(architecture: Architecture, gate: Gate, site: str, group: int) -> Architecture:
    return _flipped(architecture, site, group, gate.choices[0])


def _margin(gate: Gate, group: int) -> float:
    """By how much ``alpha`` is for the costly choice."""
    return float(gate.alpha[group, 0] - gate.alpha[group, 1])
