"""What the paper states, as checks over the study's outcomes."""

import torch

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.statistics import compare
from tradeoff.nn.polynomial import approximation_error

PAPER_MARGINS = "6.12 (CIFAR-10), 8.39 (CIFAR-100), 9.45 (Tiny-ImageNet) points"


def above_snl(outcomes: Outcomes) -> Finding:
    """At every budget that both have."""
    return _everywhere(outcomes, "autorep", "snl", note={"paper": PAPER_MARGINS})


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
    flips = compare(*plain.paired(ours, "mask_flips"))
    accuracy = compare(*ours.paired(plain, "accuracy"), margin=-0.01)
    numbers: dict[str, float | str] = {
        "flips with": ours.mean("mask_flips"),
        "flips without": plain.mean("mask_flips"),
        "accuracy difference": accuracy.numbers["difference"],
        "budget": budget,
    }
    return Finding(verdict=_worst(flips.verdict, accuracy.verdict), numbers=numbers)


def largest_reduction(outcomes: Outcomes) -> Finding:
    """The largest factor at which the accuracy stays within two points of the network with all ReLUs."""
    base = outcomes.where("relu")
    total = base.values("relu_count")[0]
    numbers: dict[str, float | str] = {
        "paper": "176.1 (EfficientNet-B2, ImageNet)",
        "base accuracy": base.mean("accuracy"),
    }
    undecided = False
    for budget in sorted(_budgets(outcomes, "autorep")):
        cell = outcomes.where("autorep", budget=budget)
        finding = compare(*cell.paired(base, "accuracy"), margin=-0.02)
        if finding.verdict is Verdict.HOLDS:
            kept = cell.mean("relu_count")
            numbers |= {
                "budget": budget,
                "factor": total / kept if kept else "all",
                "accuracy": cell.mean("accuracy"),
            }
            enough = not kept or total / kept >= 176.1
            return Finding(verdict=Verdict.HOLDS if enough else Verdict.FAILS, numbers=numbers)
        undecided |= finding.verdict is Verdict.UNDECIDED
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
        verdicts.append(compare(*base.paired(ours, quantity)).verdict)
        numbers |= {f"{link} all ReLUs": base.mean(quantity), f"{link} autorep": ours.mean(quantity)}
    numbers["rounds"] = f"{base.mean('rounds'):.0f} and {ours.mean('rounds'):.0f}"
    return Finding(verdict=_worst(*verdicts), numbers=numbers)


def _budgets(outcomes: Outcomes, variant: str) -> set[int]:
    budgets = {outcome.trial.setting["budget"] for outcome in outcomes.where(variant)}
    return {budget for budget in budgets if isinstance(budget, int)}


def _common(outcomes: Outcomes, first: str, second: str) -> set[int]:
    both = _budgets(outcomes, first) & _budgets(outcomes, second)
    if not both:
        raise MissingOutcome(f"{first} and {second} have no budget in common")
    return both


def _accuracy(outcomes: Outcomes, first: str, second: str, budget: int, margin: float = 0.0) -> Finding:
    a, b = (outcomes.where(variant, budget=budget) for variant in (first, second))
    finding = compare(*a.paired(b, "accuracy"), margin)
    named = {"a": first, "b": second}
    numbers = {named.get(key, key): value for key, value in finding.numbers.items()}
    return Finding(verdict=finding.verdict, numbers={"budget": budget, **numbers})


def _everywhere(
    outcomes: Outcomes, first: str, second: str, note: dict[str, float | str] | None = None
) -> Finding:
    numbers: dict[str, float | str] = dict(note or {})
    verdicts = []
    for budget in sorted(_common(outcomes, first, second)):
        finding = _accuracy(outcomes, first, second, budget)
        verdicts.append(finding.verdict)
        numbers |= {
            f"{key} at {budget}": finding.numbers[key]
            for key in ("difference", "low", "high")
            if key in finding.numbers
        }
    return Finding(verdict=_worst(*verdicts), numbers=numbers)


def _worst(*verdicts: Verdict) -> Verdict:
    for verdict in (Verdict.FAILS, Verdict.UNDECIDED):
        if verdict in verdicts:
            return verdict
    return Verdict.HOLDS


CLAIMS = (
    Claim("AutoReP is more accurate than SNL at equal ReLU budgets", "abstract", above_snl),
    Claim(
        "With few ReLUs left, distribution-aware polynomials are at least 15 points better than identities",
        "abstract (the margin is ours)",
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
        "the method: learned positions (the margin is ours)",
        learned_beats_random,
    ),
    Claim(
        "With polynomials, learned positions are not more than 1.5 points below random ones",
        "the method: learned positions (the margin is ours)",
        learned_polynomials_not_below_random,
    ),
    Claim(
        "Hysteresis lowers the flips of the mask and costs at most one point",
        "the method: hysteresis",
        hysteresis_calms,
    ),
    Claim(
        "ReLUs can be cut 176 times within 2 points of the network with all of them",
        "abstract (there EfficientNet-B2 on ImageNet)",
        largest_reduction,
    ),
    Claim(
        "Fewer ReLUs make private inference faster, on a local and on a wide-area network",
        "title",
        private_inference_is_faster,
    ),
)
