"""LoT: Learning from Teaching regularization (Jin et al., NeurIPS 2024)."""

from .errors import InvalidSetting, InvalidStudent, MissingBatches, StudentDiverged
from .imitability import imitability
from .ppo import PPO, LoTPPO, PolicyLoTSettings, PPOSettings
from .regularizer import Losses, LoT
from .running_index import RunningIndex
from .training import train

__all__ = [
    "PPO",
    "InvalidSetting",
    "InvalidStudent",
    "LoT",
    "LoTPPO",
    "Losses",
    "MissingBatches",
    "PPOSettings",
    "PolicyLoTSettings",
    "RunningIndex",
    "StudentDiverged",
    "imitability",
    "train",
]
