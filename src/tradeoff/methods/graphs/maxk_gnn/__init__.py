"""MaxK-GNN: hidden features cut to the k largest, and kernels that read only those (ASPLOS 2024)."""

from tradeoff.engines.kernels import maxk

from .activation import MaxK
from .aggregation import Choice, aggregate, choices, choose
from .approximation import relu_by_maxk, square_error
from .breakdown import Breakdown, amdahl_limit, profiled
from .errors import KMismatch, LabelError, ModelError, NanActivation
from .model import MaxKGNN
from .traffic import Traffic, traffic
from .training import NodeSplits, TrainResult, fit_full_batch, predict, train

__all__ = [
    "Breakdown",
    "Choice",
    "KMismatch",
    "LabelError",
    "MaxK",
    "MaxKGNN",
    "ModelError",
    "NanActivation",
    "NodeSplits",
    "Traffic",
    "TrainResult",
    "aggregate",
    "amdahl_limit",
    "choices",
    "choose",
    "fit_full_batch",
    "maxk",
    "predict",
    "profiled",
    "relu_by_maxk",
    "square_error",
    "traffic",
    "train",
]
