"""PolyMPCNet: search for networks of quadratics under a two-party latency (Peng et al., DAC 2023)."""

from .baselines import cheapest_architecture, random_architecture
from .polympcnet import Point, PolyMPCNet, pareto, swap_magnitude

__all__ = [
    "Point",
    "PolyMPCNet",
    "cheapest_architecture",
    "pareto",
    "random_architecture",
    "swap_magnitude",
]
