"""PolyMPCNet: search for networks of quadratics under a two-party latency (Peng et al., DAC 2023)."""

from .polympcnet import Point, PolyMPCNet, pareto, swap_magnitude

__all__ = [
    "Point",
    "PolyMPCNet",
    "pareto",
    "swap_magnitude",
]
