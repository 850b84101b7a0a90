"""AutoReP: automatic ReLU replacement under a budget (Peng et al., ICCV 2023)."""

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
    set_positions,
)
from .site import ReplaceableReLU, ReplacementConfig
from .snl import SelectiveLinearization
from .training import AutoReP

__all__ = [
    "AutoReP",
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
    "project",
    "random_positions",
    "relu_count",
    "relu_table",
    "replace_relus",
    "set_positions",
]
