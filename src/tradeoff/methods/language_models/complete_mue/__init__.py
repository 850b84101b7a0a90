"""Complete-muE: tune a small dense model, train any size and mixture of experts (Peng et al., 2026)."""

from .anatomy import Anatomy, Experts, anatomy_of
from .errors import TransferError, UnknownRole
from .gates import normalized_gates
from .groups import ParameterGroups, parametrize
from .plan import Base, Plan, Row, make_plan
from .rules import Ratios, Role, Tuned, Values, scaled_betas, values

__all__ = [
    "Anatomy",
    "Base",
    "Experts",
    "ParameterGroups",
    "Plan",
    "Ratios",
    "Role",
    "Row",
    "TransferError",
    "Tuned",
    "UnknownRole",
    "Values",
    "anatomy_of",
    "make_plan",
    "normalized_gates",
    "parametrize",
    "scaled_betas",
    "values",
]
