"""Other ways to choose an architecture of the same latency: at random, and the costliest sites first."""

import random

from tradeoff.nn.search import Architecture, GatedActivation, LatencySearch, gates


def random_architecture(search: LatencySearch, seconds: float, seed: int = 0) -> Architecture:
    """Return an architecture that keeps random ReLU and max pooling sites, as many as the latency allows.

    Args:
        search: knows the network and the latency model.
        seconds: the latency that must not be exceeded.
        seed: of the order in which sites are tried.
    """
    order = list(gates(search.network))
    random.Random(seed).shuffle(order)
    chosen = _reference(search)
    for site in order:
        tried = chosen.with_choice(site, _costly(search, site))
        if search.hard_latency(tried).seconds <= seconds:
            chosen = tried
    return chosen


def cheapest_architecture(search: LatencySearch, seconds: float) -> Architecture:
    """Return what is left when the costliest sites are replaced first, until the latency fits.

    Args:
        search: as above.
        seconds: as above.
    """
    found = {site: max(cost.sized[0] + cost.waiting[0], 0.0) for site, cost in search.costs.sites.items()}
    chosen = Architecture({site: (_costly(search, site),) for site in found})
    reference = _reference(search)
    for site in sorted(found, key=lambda site: found[site], reverse=True):
        if search.hard_latency(chosen).seconds <= seconds:
            break
        chosen = chosen.with_choice(site, *reference.choices[site])
    return chosen


def _reference(search: LatencySearch) -> Architecture:
    return Architecture.uniform(search.network, "poly", "average")


def _costly(search: LatencySearch, site: str) -> str:
    return "relu" if isinstance(gates(search.network)[site], GatedActivation) else "max"
