"""What the paper states, as checks over the study's outcomes."""

import math

import torch

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.claims import all_hold, worst
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.statistics import better
from tradeoff.nn.polynomial import approximation_error

PAPER_MARGINS = "6.12 (CIFAR-10), 8.39 (CIFAR-100), 9.45 (Tiny-ImageNet) points"
PAPER_REDUCTION = 176.1


def above_snl(outcomes: Outcomes) -> Finding:
    """At every budget that both have."""
    finding = _everywhere(outcomes, "autorep", "snl")
    return Finding(verdict=finding.verdict, numbers={"paper": PAPER_MARGINS, **finding.numbers})


def polynomial_beats_identity(outcomes: Outcomes) -> Finding:
    """At the tightest common budget, where almost every ReLU is a polynomial."""
    budget = min(_common(outcomes, "autorep", "identity"))
    return _accuracy(outcomes, "autorep", "identity", budget, margin=0.15)


def polynomial_beats_square(outcomes: Outcomes) -> Finding:
    """At every common budget."""
    return _everywhere(outcomes, "autorep", "square")


def small_approximation_error(outcomes: Outcomes) -> Finding:
    """Arithmetic for standard normal inputs: no outcome is needed."""
    zero, one = torch.zeros(1), torch.ones(1)
    errors = {f"degree {d}": float(approximation_error(zero, one, d)[0]) for d in (1, 2, 3, 4)}
    verdict = Verdict.HOLDS if errors["degree 2"] < 0.05 * 0.5 else Verdict.FAILS
    return Finding(verdict=verdict, numbers={"identity": 0.5, **errors})


def learned_beats_random(outcomes: Outcomes) -> Finding:
    """With identity in place of a ReLU, so that positions alone matter."""
    budget = max(_common(outcomes, "identity", "identity-random"))
    return _accuracy(outcomes, "identity", "identity-random", budget, margin=0.04)


def learned_polynomials_not_below_random(outcomes: Outcomes) -> Finding:
    """Within 1.5 points."""
    budget = min(_common(outcomes, "autorep", "random"))
    return _accuracy(outcomes, "autorep", "random", budget, margin=-0.015)


def hysteresis_calms(outcomes: Outcomes) -> Finding:
    """Fewer excess flips, and an accuracy within one point."""
    budget = min(_common(outcomes, "autorep", "no-hysteresis"))
    ours, plain = outcomes.where("autorep", budget=budget), outcomes.where("no-hysteresis", budget=budget)
    flips = better(ours, plain, "mask_flips")
    accuracy = better(ours, plain, "accuracy", margin=-0.01)
    numbers: dict[str, float | str] = {
        "flips with": ours.mean("mask_flips"),
        "flips without": plain.mean("mask_flips"),
        "accuracy difference": accuracy.numbers["difference"],
        "budget": budget,
    }
    return Finding(verdict=worst([flips.verdict, accuracy.verdict]), numbers=numbers)


def largest_reduction(outcomes: Outcomes) -> Finding:
    """Whether a budget as tight as the paper's keeps the accuracy within two points of all ReLUs.

    Told beside it: the largest factor at which this study is sure of that. Without so tight a budget the
    claim is undecided.
    """
    base = outcomes.where("relu")
    numbers: dict[str, float | str] = {
        "paper": f"{PAPER_REDUCTION} (EfficientNet-B2, ImageNet)",
        "base accuracy": base.mean("accuracy"),
    }
    tight = []
    sure: tuple[float, int] | None = None
    for budget in _budgets(outcomes, "autorep"):
        cell = outcomes.where("autorep", budget=budget)
        verdict = better(cell, base, "accuracy", margin=-0.02).verdict
        kept = cell.mean("relu_count")
        factor = base.mean("relu_count") / kept if kept else math.inf
        if factor >= PAPER_REDUCTION:
            tight.append(verdict)
        if verdict is Verdict.HOLDS:
            sure = max(sure or (0.0, budget), (factor, budget))
    if sure:
        factor, budget = sure
        numbers |= {
            "budget": budget,
            "factor": factor if math.isfinite(factor) else "all",
            "accuracy": outcomes.where("autorep", budget=budget).mean("accuracy"),
        }
    if Verdict.HOLDS in tight:
        return Finding(verdict=Verdict.HOLDS, numbers=numbers)
    if not tight:
        numbers["reason"] = "no budget is that tight"
    undecided = not tight or Verdict.UNDECIDED in tight
    return Finding(verdict=Verdict.UNDECIDED if undecided else Verdict.FAILS, numbers=numbers)


def private_inference_is_faster(outcomes: Outcomes) -> Finding:
    """Seconds of the metered runs at the tightest budget that still has ReLUs, over both links."""
    budget = min((b for b in _budgets(outcomes, "autorep") if b > 0), default=None)
    if budget is None:
        raise MissingOutcome("autorep has no outcome that keeps ReLUs")
    base, ours = outcomes.where("relu"), outcomes.where("autorep", budget=budget)
    numbers: dict[str, float | str] = {"budget": budget}
    verdicts = []
    for link in ("lan", "wan"):
        quantity = f"latency_{link}"
        verdicts.append(better(ours, base, quantity).verdict)
        numbers |= {f"{link} all ReLUs": base.mean(quantity), f"{link} autorep": ours.mean(quantity)}
    numbers["rounds"] = f"{base.mean('rounds'):.0f} and {ours.mean('rounds'):.0f}"
    return Finding(verdict=worst(verdicts), numbers=numbers)


def _budgets(outcomes: Outcomes, variant: str) -> list[int]:
    """The variant's budgets, tightest first."""
    return sorted(b for b in outcomes.where(variant).settings("budget") if isinstance(b, int))


def _common(outcomes: Outcomes, first: str, second: str) -> list[int]:
    both = set(_budgets(outcomes, first)) & set(_budgets(outcomes, second))
    if not both:
        raise MissingOutcome(f"{first} and {second} have no budget in common")
    return sorted(both)


def _accuracy(outcomes: Outcomes, first: str, second: str, budget: int, margin: float = 0.0) -> Finding:
    ours, theirs = (outcomes.where(variant, budget=budget) for variant in (first, second))
    finding = better(ours, theirs, "accuracy", margin)
    return Finding(verdict=finding.verdict, numbers={"budget": budget, **finding.numbers})


def _everywhere(outcomes: Outcomes, first: str, second: str) -> Finding:
    return all_hold(
        {
            f"at {budget}": better(
                outcomes.where(first, budget=budget), outcomes.where(second, budget=budget), "accuracy"
            )
            for budget in _common(outcomes, first, second)
        }
    )


CLAIMS = (
    Claim("AutoReP is more accurate than SNL at equal ReLU budgets", "abstract", above_snl),
    Claim(
        "With few ReLUs left, distribution-aware polynomials are at least 15 points better than identities",
        "abstract; the margin is ours",
        polynomial_beats_identity,
    ),
    Claim(
        "Distribution-aware polynomials are better than the fixed x^2 + x",
        "the method: DaPa",
        polynomial_beats_square,
    ),
    Claim(
        "A distribution-aware quadratic misses ReLU by a small part of what the identity does",
        "the method: DaPa",
        small_approximation_error,
    ),
    Claim(
        "Learned positions are at least 4 points better than random ones where a lost ReLU is an identity",
        "the method: learned positions; the margin is ours",
        learned_beats_random,
    ),
    Claim(
        "With polynomials, learned positions are not more than 1.5 points below random ones",
        "the method: learned positions; the margin is ours",
        learned_polynomials_not_below_random,
    ),
    Claim(
        "Hysteresis lowers the flips of the mask and costs at most one point",
        "the method: hysteresis",
        hysteresis_calms,
    ),
    Claim(
        "ReLUs can be cut 176 times within 2 points of the network with all of them",
        "abstract; there EfficientNet-B2 on ImageNet",
        largest_reduction,
    ),
    Claim(
        "Fewer ReLUs make private inference faster, on a local and on a wide-area network",
        "title",
        private_inference_is_faster,
    ),
)
