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
    "discretize",
    "finalize",
    "finetune",
    "gates",
    "insert_gates",
    "recalibrate",
    "relu_sites",
    "set_architecture",
    "site_costs",
]
