"""The latency of a network with gates as a differentiable sum over its sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tradeoff.nn import plan as op
from tradeoff.nn.latency import LatencyModel
from tradeoff.nn.search.architecture import Architecture, apply_to_plan, gates
from tradeoff.nn.search.gates import Gate


@dataclass(frozen=True)
class SiteCost:
    """Seconds that the choices of a site cost more than its cheapest reference (quadratic, average pooling).

    Attributes:
        sized: for each choice: of computing and transfer, which a part of the channels has in part.
        waiting: for each choice: of rounds, which the site has as soon as one group makes the choice.
    """

    sized: tuple[float, ...]
    waiting: tuple[float, ...]


@dataclass(frozen=True)
class SiteCosts:
    """The latency of every architecture of a network: a floor, and what each site adds.

    Attributes:
        floor: seconds of the network of quadratics and average poolings.
        sites: by name.

    The sum is exact where operators do not act on each other. One does in the two-party engine: a ReLU before
    a max pooling moves behind it and then costs less, so a pair of the two is counted as more than it takes.
    """

    floor: float
    sites: Mapping[str, SiteCost]

    def expected(self, network: nn.Module) -> Float[Tensor, ""]:
        """Seconds of the mixture: the parts of the branches times what they cost."""
        terms = [self._site(gate) for gate in gates(network).values()]
        return torch.stack(terms).sum() + self.floor

    def _site(self, gate: Gate) -> Tensor:
        cost, parts = self.sites[gate.site], gate.parts()
        sized = parts.new_tensor(cost.sized)
        waiting = parts.new_tensor(cost.waiting)
        # A round is there as soon as any group needs it, and saved only where all groups do without.
        some, all_of_them = 1 - (1 - parts).prod(dim=0), parts.prod(dim=0)
        rounds = torch.where(waiting > 0, some, all_of_them)
        total: Tensor = (parts.mean(dim=0) * sized).sum() + (rounds * waiting).sum()
        return total

    def of(self, architecture: Architecture) -> float:
        """Seconds of an architecture by the same sum."""
        total = self.floor
        for name, choice in architecture.choices.items():
            total += self._hard(name, choice)
        return total

    def _hard(self, site: str, choice: tuple[str, ...]) -> float:
        cost = self.sites[site]
        names = ("max", "average") if choice in (("max",), ("average",)) else ("relu", "poly", "identity")
        total = 0.0
        for name, sized, waiting in zip(names, cost.sized, cost.waiting, strict=False):
            part = choice.count(name) / len(choice)
            total += part * sized + waiting * (part > 0 if waiting > 0 else part == 1)
        return total


def site_costs(plan: op.Plan, network: nn.Module, latency: LatencyModel) -> SiteCosts:
    """Measure each choice of each site by the latency of the whole network with and without it.

    Args:
        plan: of the network with ReLUs and max poolings.
        network: the same network with gates.
        latency: the model.

    Raises:
        MissingLatency: the model does not know an operator.
    """
    reference = Architecture.uniform(network, "poly", "average")
    floor = latency.network(apply_to_plan(plan, reference))
    sites = {}
    for name, gate in gates(network).items():
        found = [
            latency.network(apply_to_plan(plan, reference.with_choice(name, choice)))
            for choice in gate.choices
        ]
        sites[name] = SiteCost(
            tuple(each.sized - floor.sized for each in found),
            tuple(each.waiting - floor.waiting for each in found),
        )
    return SiteCosts(floor.seconds, sites)
