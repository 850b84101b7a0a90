"""LoT: Learning from Teaching regularization (Jin et al., NeurIPS 2024)."""

from .errors import InvalidSetting, InvalidStudent, MissingBatches, StudentDiverged
from .imitability import imitability
from .regularizer import Losses, LoT
from .running_index import RunningIndex
from .training import train

__all__ = [
    "InvalidSetting",
    "InvalidStudent",
    "LoT",
    "Losses",
    "MissingBatches",
    "RunningIndex",
    "StudentDiverged",
    "imitability",
    "train",
]
