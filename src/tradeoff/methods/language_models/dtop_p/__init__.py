"""DTop-p: dynamic top-p routing that holds the average of active experts at a target (Jin et al., 2025)."""

from .activity import Activity, Tally, expert_flops
from .control import ControlConfig, ThresholdControl
from .controller import ControlCallback, Controller, Observation
from .diagnostics import Diagnosis, diagnose
from .errors import ControlError, ControlWarning, StepError

__all__ = [
    "Activity",
    "ControlCallback",
    "ControlConfig",
    "ControlError",
    "ControlWarning",
    "Controller",
    "Diagnosis",
    "Observation",
    "StepError",
    "Tally",
    "ThresholdControl",
    "diagnose",
    "expert_flops",
]
