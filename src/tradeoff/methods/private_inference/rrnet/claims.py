"""What the paper states, and what a reduction under a latency model must do, as checks over the outcomes."""

from itertools import pairwise

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.claims import all_hold, worst
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.statistics import better

ORDERS = ("random", "largest", "uniform", "late")


def front_is_monotone(outcomes: Outcomes) -> Finding:
    """Of two neighbors of the front, the one with fewer ReLUs is not better by more than two points."""
    cells = _front(outcomes)
    findings = {}
    for more, less in pairwise(sorted(cells, key=lambda cell: -cell.mean("relu_count"))):
        if less.mean("relu_count") < more.mean("relu_count"):
            label = f"{less.mean('relu_count'):.0f} and {more.mean('relu_count'):.0f} ReLUs"
            findings[label] = better(more, less, "accuracy", margin=-0.02)
    if not findings:
        raise MissingOutcome("no two points of the front differ in ReLUs")
    return all_hold(findings)


def not_worse_than_orders(outcomes: Outcomes) -> Finding:
    """On the mean over the four orders, within a point, at every budget that both have."""
    findings = {}
    for variant in ORDERS:
        for budget in _budgets(outcomes, "budget") & _budgets(outcomes, variant):
            findings[f"{variant} at {budget:g}"] = better(
                outcomes.where("budget", budget=budget),
                outcomes.where(variant, budget=budget),
                "accuracy",
                margin=-0.01,
            )
    if not findings:
        raise MissingOutcome("no other way to choose has a budget in common with the search")
    return all_hold(findings)


def better_than_random(outcomes: Outcomes) -> Finding:
    """By a point, at the tightest budget above none."""
    common = (_budgets(outcomes, "budget") & _budgets(outcomes, "random")) - {0.0}
    if not common:
        raise MissingOutcome("search and random choice have no budget in common")
    budget = min(common)
    finding = better(
        outcomes.where("budget", budget=budget),
        outcomes.where("random", budget=budget),
        "accuracy",
        margin=0.01,
    )
    return Finding(verdict=finding.verdict, numbers={"budget at": budget, **finding.numbers})


def far_more_reduction(outcomes: Outcomes) -> Finding:
    """More accurate than removing the largest sites first, as DeepReDuce does, at equal latency."""
    common = _budgets(outcomes, "budget") & _budgets(outcomes, "largest")
    if not common:
        raise MissingOutcome("search and largest-first have no budget in common")
    return all_hold(
        {
            f"at {budget:g}": better(
                outcomes.where("budget", budget=budget), outcomes.where("largest", budget=budget), "accuracy"
            )
            for budget in sorted(common)
        }
    )


def fewer_sites_than_by_count(outcomes: Outcomes) -> Finding:
    """At the same number of ReLUs or fewer, at every common budget."""
    return _against_count(outcomes, "relu_sites")


def faster_than_by_count(outcomes: Outcomes) -> Finding:
    """Measured seconds over the link that was searched for, at every common budget."""
    return _against_count(outcomes, _latency(outcomes))


def measured_follows_predicted(outcomes: Outcomes) -> Finding:
    """Rank correlation over all networks, at least 0.9."""
    from scipy.stats import spearmanr

    measured = _latency(outcomes)
    pairs = [
        (o.metrics[f"predicted_{measured}"].value, o.metrics[measured].value)
        for o in outcomes
        if measured in o.metrics
    ]
    if len(pairs) < 5:
        raise MissingOutcome("fewer than five networks were run between two parties")
    correlation = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    verdict = Verdict.HOLDS if correlation >= 0.9 else Verdict.FAILS
    return Finding(verdict=verdict, numbers={"rank correlation": correlation, "networks": len(pairs)})


def _against_count(outcomes: Outcomes, quantity: str) -> Finding:
    common = sorted(_budgets(outcomes, "budget") & _budgets(outcomes, "count"))
    if not common:
        raise MissingOutcome("search by latency and by count have no budget in common")
    findings = {}
    verdicts = []
    for budget in common:
        ours = outcomes.where("budget", budget=budget)
        theirs = outcomes.where("count", budget=budget)
        findings[f"at {budget:g}"] = better(ours, theirs, quantity)
        # Theirs may leave part of the budget unused, since sites are whole; never exceed it.
        verdicts.append(
            Verdict.HOLDS if ours.mean("relu_count") >= theirs.mean("relu_count") else Verdict.FAILS
        )
    found = all_hold(findings)
    numbers = dict(found.numbers)
    for budget in common:
        for variant in ("budget", "count"):
            numbers[f"ReLUs of {variant} at {budget:g}"] = outcomes.where(variant, budget=budget).mean(
                "relu_count"
            )
    return Finding(verdict=worst([found.verdict, *verdicts]), numbers=numbers)


def _front(outcomes: Outcomes) -> list[Outcomes]:
    cells = list(outcomes.where("rrnet").cells())
    if not cells:
        raise MissingOutcome("there is no front")
    return cells


def _budgets(outcomes: Outcomes, variant: str) -> set[float]:
    found = outcomes.where(variant).settings("budget")
    return {float(budget) for budget in found if isinstance(budget, int | float)}


def _latency(outcomes: Outcomes) -> str:
    for name in outcomes.quantities:
        if name.startswith("latency_"):
            return name
    raise MissingOutcome("no network was run between two parties")


CLAIMS = (
    Claim(
        "Accuracy does not rise by more than two points as ReLUs fall along the front",
        "the method; the margin is ours",
        front_is_monotone,
    ),
    Claim(
        "At equal latency the search is more accurate than removing the largest sites first",
        "abstract: much higher ReLU reduction than earlier works; there on CIFAR-10",
        far_more_reduction,
    ),
    Claim(
        "At equal latency the search is not more than a point below any fixed or random order",
        "the method; the margin is ours",
        not_worse_than_orders,
    ),
    Claim(
        "At the tightest budget the search is at least a point better than random sites",
        "the method; the margin is ours",
        better_than_random,
    ),
    Claim(
        "A search by latency keeps fewer ReLU sites than one by count, at no fewer ReLUs",
        "the method: latency in the loss",
        fewer_sites_than_by_count,
    ),
    Claim(
        "Its networks are faster between two parties than those by count, at no fewer ReLUs",
        "the method: latency in the loss",
        faster_than_by_count,
    ),
    Claim(
        "Measured two-party times rank the networks as the calibrated model does (correlation at least 0.9)",
        "the method: performance model",
        measured_follows_predicted,
    ),
)
