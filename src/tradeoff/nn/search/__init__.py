"""Differentiable choice at activation and pooling sites under a latency model."""

from tradeoff.nn.search.architecture import (
    Architecture,
    NoSearchableSites,
    apply_to_plan,
    comparison_count,
    discretize,
    finalize,
    gates,
    insert_gates,
    relu_sites,
    set_architecture,
)
from tradeoff.nn.search.bilevel import ArchitectureConfig, ArchitectureStep
from tradeoff.nn.search.cost import SiteCosts, site_costs
from tradeoff.nn.search.finetuning import finetune, recalibrate
from tradeoff.nn.search.gates import Gate, GateConfig, GatedActivation, GatedPooling
from tradeoff.nn.search.orders import (
    costliest_first,
    every_second,
    largest_first,
    latest_first,
    random_order,
    reduced,
)
from tradeoff.nn.search.search import LatencySearch

__all__ = [
    "Architecture",
    "ArchitectureConfig",
    "ArchitectureStep",
    "Gate",
    "GateConfig",
    "GatedActivation",
    "GatedPooling",
    "LatencySearch",
    "NoSearchableSites",
    "SiteCosts",
    "apply_to_plan",
    "comparison_count",
    "costliest_first",
    "discretize",
    "every_second",
    "finalize",
    "finetune",
    "gates",
    "insert_gates",
    "largest_first",
    "latest_first",
    "random_order",
    "recalibrate",
    "reduced",
    "relu_sites",
    "set_architecture",
    "site_costs",
]
