"""RRNet: ReLU-reduced networks for two-party inference, a front of them or one within a budget."""

from .baselines import largest_architecture, late_architecture, random_architecture, uniform_architecture
from .budget import BudgetConfig, BudgetController, InfeasibleBudget, repair
from .reduction import Front, FrontPoint, ReLUReduction, sensitivity

__all__ = [
    "BudgetConfig",
    "BudgetController",
    "Front",
    "FrontPoint",
    "InfeasibleBudget",
    "ReLUReduction",
    "largest_architecture",
    "late_architecture",
    "random_architecture",
    "repair",
    "sensitivity",
    "uniform_architecture",
]
