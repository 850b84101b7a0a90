"""Study, trial, outcome, claims, store and reports: what every method and engine stands on.

The names below are the vocabulary of the project; each is imported when it is first used, so that importing
this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .card import Card as Card
    from .claims import Claim as Claim
    from .claims import Finding as Finding
    from .claims import Verdict as Verdict
    from .context import Context as Context
    from .method import Method as Method
    from .metric import Metric as Metric
    from .metric import MetricKind as MetricKind
    from .metric import counted as counted
    from .metric import measured as measured
    from .metric import modelled as modelled
    from .metric import published as published
    from .metric import simulated as simulated
    from .metric import synthesized as synthesized
    from .outcome import Outcome as Outcome
    from .outcome import Outcomes as Outcomes
    from .recipe import Recipe as Recipe
    from .trial import Trial as Trial

_MODULE_OF = {
    "Card": "card",
    "Claim": "claims",
    "Context": "context",
    "Finding": "claims",
    "Method": "method",
    "Metric": "metric",
    "MetricKind": "metric",
    "Outcome": "outcome",
    "Outcomes": "outcome",
    "Recipe": "recipe",
    "Trial": "trial",
    "Verdict": "claims",
    "counted": "metric",
    "measured": "metric",
    "modelled": "metric",
    "published": "metric",
    "simulated": "metric",
    "synthesized": "metric",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
