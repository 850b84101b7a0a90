"""What the paper states, and what a search under a latency model must do, as checks over the outcomes."""

import statistics
from itertools import pairwise

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.claims import all_hold, worst
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.statistics import better, compare, times_better

LATENCIES = {"ResNet-18": 0.063, "ResNet-50": 0.228}
"""Seconds of all-polynomial networks on ImageNet between two ZCU104 (abstract)."""


def published_latencies(outcomes: Outcomes) -> Finding:
    """Arithmetic on layer shapes: no outcome is needed."""
    from tradeoff.data.devices import fpga_latency
    from tradeoff.nn.models import build
    from tradeoff.nn.plan import trace
    from tradeoff.nn.search import Architecture, apply_to_plan, gates, insert_gates

    del outcomes
    numbers: dict[str, float | str] = {}
    verdicts = []
    shape = (3, 224, 224)
    for name, arch in (("ResNet-18", "resnet18"), ("ResNet-50", "resnet50")):
        network = build(arch, 1000, shape).eval()
        gated = insert_gates(network, shape)
        chosen = Architecture.uniform(gated, "poly", "average")
        assert gates(gated)
        seconds = fpga_latency("zcu104").network(apply_to_plan(trace(network, shape), chosen)).seconds
        numbers |= {f"{name} modelled": seconds, f"{name} published": LATENCIES[name]}
        off = abs(seconds / LATENCIES[name] - 1)
        verdicts.append(Verdict.HOLDS if off <= 0.05 else Verdict.FAILS)
    return Finding(verdict=worst(verdicts), numbers=numbers)


def straight_through_start(outcomes: Outcomes) -> Finding:
    """20 points in accuracy against both naive starts, and logits that stay where they were."""
    ours = outcomes.where("poly")
    findings = {
        name: better(ours, outcomes.where(name), "accuracy", margin=0.20)
        for name in ("naive-square", "naive-random")
    }
    calm = Verdict.HOLDS if max(ours.values("swap_logit")) < 4 else Verdict.FAILS
    wild = min(outcomes.where("naive-square").values("swap_logit"))
    found = all_hold(findings)
    numbers = {
        **found.numbers,
        "largest logit at the swap, log10": max(ours.values("swap_logit")),
        "with x^2, log10": wild,
    }
    return Finding(
        verdict=worst([found.verdict, calm, Verdict.HOLDS if wild > 10 else Verdict.FAILS]), numbers=numbers
    )


def near_relu(outcomes: Outcomes) -> Finding:
    """The searched network without any ReLU, or the cheapest one, within four points of all ReLUs."""
    return _fewest(outcomes, margin=-0.04)


def polynomials_are_faster(outcomes: Outcomes) -> Finding:
    """Modelled on FPGA, all quadratics against all ReLUs."""
    return times_better(outcomes.where("poly"), outcomes.where("relu"), "fpga_latency", 8)


def latency_falls_with_penalty(outcomes: Outcomes) -> Finding:
    """Mean over seeds of what the search optimizes, for each link; ties are allowed."""
    numbers: dict[str, float | str] = {}
    verdicts = []
    for link in _links(outcomes):
        means = [
            _cell(outcomes, link, penalty).mean(f"predicted_latency_{link}")
            for penalty in _penalties(outcomes, link)
        ]
        numbers |= {
            f"{link} at {penalty:g}": mean
            for penalty, mean in zip(_penalties(outcomes, link), means, strict=True)
        }
        falls = all(later <= earlier * 1.0001 for earlier, later in pairwise(means))
        verdicts.append(Verdict.HOLDS if falls else Verdict.FAILS)
    return Finding(verdict=worst(verdicts), numbers=numbers)


def fewer_sites_when_far(outcomes: Outcomes) -> Finding:
    """On the mean over the penalties that both links have, seed by seed."""
    return _contrast(outcomes, "wan", "narrow", "relu_sites")


def fewer_elements_when_narrow(outcomes: Outcomes) -> Finding:
    """On the mean over the penalties that both links have, seed by seed."""
    return _contrast(outcomes, "narrow", "wan", "relu_count")


def measured_follows_predicted(outcomes: Outcomes) -> Finding:
    """Rank correlation of measured with predicted seconds over all networks, for each link, at least 0.9."""
    from scipy.stats import spearmanr

    numbers: dict[str, float | str] = {}
    verdicts = []
    for link in ("wan", "narrow"):
        measured, predicted = f"latency_{link}", f"predicted_latency_{link}"
        pairs = [
            (o.metrics[predicted].value, o.metrics[measured].value)
            for o in outcomes
            if measured in o.metrics and predicted in o.metrics
        ]
        if len(pairs) < 5:
            continue
        correlation = float(spearmanr(*zip(*pairs, strict=True)).statistic)
        ratio = statistics.median(got / expected for expected, got in pairs)
        numbers |= {
            f"{link} rank correlation": correlation,
            f"{link} networks": len(pairs),
            f"{link} measured over predicted, median": ratio,
        }
        verdicts.append(Verdict.HOLDS if correlation >= 0.9 else Verdict.FAILS)
    if not verdicts:
        raise MissingOutcome("fewer than five networks were run between two parties")
    return Finding(verdict=worst(verdicts), numbers=numbers)


def not_below_random(outcomes: Outcomes) -> Finding:
    """Within a point of random and greedy choices at the same latency."""
    findings = {}
    for variant in ("random", "greedy"):
        for outcome in outcomes.where(variant)[:1]:
            link, penalty = outcome.trial.setting["link"], outcome.trial.setting["penalty"]
            ours = outcomes.where("search", link=link, penalty=penalty)
            theirs = outcomes.where(variant, link=link, penalty=penalty)
            findings[f"{link} at {penalty}, {variant}"] = better(ours, theirs, "accuracy", margin=-0.01)
    if not findings:
        raise MissingOutcome("there is neither a random nor a greedy choice")
    return all_hold(findings)


def _links(outcomes: Outcomes) -> list[str]:
    return [str(link) for link in outcomes.where("search").settings("link")]


def _penalties(outcomes: Outcomes, link: str) -> list[float]:
    found = outcomes.where("search", link=link).settings("penalty")
    return sorted(float(penalty) for penalty in found if isinstance(penalty, int | float))


def _cell(outcomes: Outcomes, link: str, penalty: float) -> Outcomes:
    return outcomes.where("search", link=link, penalty=penalty)


def _common(outcomes: Outcomes) -> list[float]:
    """Penalties of both links, that of no latency apart."""
    common = set(_penalties(outcomes, "wan")) & set(_penalties(outcomes, "narrow")) - {0.0}
    if not common:
        raise MissingOutcome("the two links have no penalty in common")
    return sorted(common)


def _contrast(outcomes: Outcomes, fewer: str, more: str, quantity: str) -> Finding:
    """Whether the networks for one link have less of a quantity than those for the other."""
    common = _common(outcomes)
    means = {}
    for link in (fewer, more):
        columns = [_cell(outcomes, link, penalty).values(quantity) for penalty in common]
        means[link] = [statistics.fmean(row) for row in zip(*columns, strict=True)]
    found = compare(means[more], means[fewer])
    numbers = dict(found.numbers)
    named = {more: numbers.pop("a"), fewer: numbers.pop("b")}
    for penalty in common:
        for link in (fewer, more):
            named[f"{link} at {penalty:g}"] = _cell(outcomes, link, penalty).mean(quantity)
    return Finding(verdict=found.verdict, numbers={**named, **numbers})


def _fewest(outcomes: Outcomes, margin: float) -> Finding:
    cells = list(outcomes.where("search").cells())
    if not cells:
        raise MissingOutcome("there is no searched network")
    fewest = min(cells, key=lambda cell: (cell.mean("relu_count"), -cell.mean("accuracy")))
    finding = better(fewest, outcomes.where("relu"), "accuracy", margin)
    return Finding(
        verdict=finding.verdict,
        numbers={"ReLUs": fewest.mean("relu_count"), "cell": fewest[0].trial.cell, **finding.numbers},
    )


CLAIMS = (
    Claim(
        "The latency model gives the published latencies of the two all-polynomial ResNets within 5 %",
        "abstract: 63 ms and 228 ms",
        published_latencies,
    ),
    Claim(
        "Quadratics that start as the identity end at least 20 points above naive starts, with calm logits",
        "the method: straight-through initialization; the margin is ours",
        straight_through_start,
    ),
    Claim(
        "The searched network with the fewest ReLUs is within 4 points of the one with all of them",
        "abstract: ReLU-free networks of high accuracy; the margin is ours",
        near_relu,
    ),
    Claim(
        "Without ReLUs and max pooling the modelled FPGA latency is at least 8 times lower",
        "the method; the factor is ours",
        polynomials_are_faster,
    ),
    Claim(
        "A larger penalty never gives a slower network",
        "the method: latency in the loss",
        latency_falls_with_penalty,
    ),
    Claim(
        "For a link of high latency the search keeps fewer ReLU sites than for one of low bandwidth",
        "the method: latency in the loss",
        fewer_sites_when_far,
    ),
    Claim(
        "For a link of low bandwidth it keeps fewer ReLUs than for one of high latency",
        "the method: latency in the loss",
        fewer_elements_when_narrow,
    ),
    Claim(
        "Measured two-party times rank the networks as the calibrated model does (correlation at least 0.9)",
        "the method: latency model",
        measured_follows_predicted,
    ),
    Claim(
        "Searched sites are not more than a point below random or greedy ones at the same latency",
        "the method: differentiable search; the margin is ours",
        not_below_random,
    ),
)
