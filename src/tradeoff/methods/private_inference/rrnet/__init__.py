"""RRNet: ReLU-reduced networks for two-party inference, a front of them or one within a budget."""

from .budget import BudgetConfig, BudgetController, InfeasibleBudget, repair
from .reduction import Front, FrontPoint, ReLUReduction, sensitivity

__all__ = [
    "BudgetConfig",
    "BudgetController",
    "Front",
    "FrontPoint",
    "InfeasibleBudget",
    "ReLUReduction",
    "repair",
    "sensitivity",
]
