"""Architectures that no training chooses: sites go in some order until the latency fits."""

import random
from collections.abc import Sequence
from math import prod

from tradeoff.nn.search.architecture import Architecture, gates
from tradeoff.nn.search.search import LatencySearch


def reduced(search: LatencySearch, seconds: float, order: Sequence[str]) -> Architecture:
    """Replace whole sites in an order until a latency is met, then bring back, last first, what still fits.

    Args:
        search: knows the network and the latency model.
        seconds: the latency that must not be exceeded; the network without comparisons is given if that does.
        order: all sites, the first to go first.
    """
    costly = Architecture(
        {site: (gate.choices[0],) * len(gate.alpha) for site, gate in gates(search.network).items()}
    )
    cheap = Architecture.uniform(search.network, "poly", "average")
    chosen, gone = costly, list[str]()
    for site in order:
        if search.hard_latency(chosen).seconds <= seconds:
            break
        chosen = chosen.with_choice(site, *cheap.choices[site])
        gone.append(site)
    for site in reversed(gone):
        tried = chosen.with_choice(site, *costly.choices[site])
        if search.hard_latency(tried).seconds <= seconds:
            chosen = tried
    return chosen


def random_order(search: LatencySearch, seed: int = 0) -> list[str]:
    """All sites in a random order."""
    order = list(gates(search.network))
    random.Random(seed).shuffle(order)
    return order


def costliest_first(search: LatencySearch) -> list[str]:
    """By the latency that a site's comparisons add."""
    costs = search.costs.sites
    return sorted(costs, key=lambda site: -(costs[site].sized[0] + costs[site].waiting[0]))


def largest_first(search: LatencySearch) -> list[str]:
    """By elements, as DeepReDuce does (Jha et al., ICML 2021)."""
    return sorted(gates(search.network), key=lambda site: -prod(search.plan.operator(site).shape))


def latest_first(search: LatencySearch) -> list[str]:
    """From the end of the network."""
    place = {operator.name: index for index, operator in enumerate(search.plan)}
    return sorted(gates(search.network), key=lambda site: -place[site])


def every_second(search: LatencySearch) -> list[str]:
    """Every second site, then every second of the rest, and so on: uniform removal."""
    rest, order = latest_first(search)[::-1], list[str]()
    while rest:
        order += rest[1::2] or rest
        rest = rest[::2] if len(rest) > 1 else []
    return order
