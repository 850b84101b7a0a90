"""AutoReP: automatic ReLU replacement under a budget (Peng et al., ICCV 2023)."""

from tradeoff.nn.compressed import load_compressed, save_compressed

from .baselines import layerwise_positions, random_positions
from .replacement import (
    NoReLUSites,
    SiteCount,
    density,
    excess_flips,
    finalize,
    freeze,
    project,
    relu_count,
    relu_table,
    replace_relus,
    restore,
    set_positions,
)
from .site import ReplaceableReLU, ReplacementConfig
from .snl import SelectiveLinearization
from .training import AutoReP, InvalidBudget

__all__ = [
    "AutoReP",
    "InvalidBudget",
    "NoReLUSites",
    "ReplaceableReLU",
    "ReplacementConfig",
    "SelectiveLinearization",
    "SiteCount",
    "density",
    "excess_flips",
    "finalize",
    "freeze",
    "layerwise_positions",
    "load_compressed",
    "project",
    "random_positions",
    "relu_count",
    "relu_table",
    "replace_relus",
    "restore",
    "save_compressed",
    "set_positions",
]
