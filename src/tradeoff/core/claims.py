"""Claims: a paper's statements as checks over outcomes."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, FiniteFloat

from .errors import MissingOutcome
from .outcome import Outcomes

_log = logging.getLogger(__name__)


class Verdict(StrEnum):
    """What a check says."""

    HOLDS = "holds"
    FAILS = "fails"
    UNDECIDED = "undecided"


class Finding(BaseModel):
    """A verdict and the numbers that decided it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    numbers: dict[str, int | FiniteFloat | str]


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """``fails`` if one of them does, else ``undecided`` if one is; ``holds`` if all do."""
    found = set(verdicts)
    return next((v for v in (Verdict.FAILS, Verdict.UNDECIDED) if v in found), Verdict.HOLDS)


def all_hold(findings: Mapping[str, Finding]) -> Finding:
    """One finding of several that must all hold: the worst verdict, and all their numbers.

    Args:
        findings: by where each was made, such as ``at 82``; a number is then called ``difference at 82``.
    """
    numbers = {f"{name} {place}": n for place, each in findings.items() for name, n in each.numbers.items()}
    return Finding(verdict=worst(each.verdict for each in findings.values()), numbers=numbers)


@dataclass(frozen=True)
class Claim:
    """A statement of the paper as a check over outcomes.

    Attributes:
        text: the statement, in one sentence.
        source: where the paper makes it, such as ``abstract`` or ``table 3``.
        check: decides it from the outcomes of a study; it may raise :class:`MissingOutcome` where a trial
            that it needs is absent, which makes the claim undecided.
    """

    text: str
    source: str
    check: Callable[[Outcomes], Finding]

    def evaluate(self, outcomes: Outcomes) -> Finding:
        """The finding over these outcomes; a check that cannot decide, or is broken, gives ``undecided``."""
        try:
            return self.check(outcomes)
        except MissingOutcome as error:
            return Finding(verdict=Verdict.UNDECIDED, numbers={"reason": str(error)})
        except Exception as error:  # noqa: BLE001 a method's broken check must not cost the user the report
            _log.warning("the check of claim %r is broken", self.text, exc_info=True)
            return Finding(verdict=Verdict.UNDECIDED, numbers={"error": f"{type(error).__name__}: {error}"})
