"""What the paper's abstract states, as checks over the study's outcomes."""

from __future__ import annotations

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.claims import all_hold, worst
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.statistics import times_better

SEMI_HONEST, ABORT = "semi-honest", "abort"
PAPER_BAND = "3 to 14 times, AWS"
LEAK = "masked comparisons show every server about how large values are"
MOST_FOR_VERIFICATION = 2.5
LEAST_SAVING = 5.0


def cell(outcomes: Outcomes, variant: str, servers: int, threshold: int, security: str) -> Outcomes:
    """The outcomes of one setting at the larger batch that it was run with.

    Raises:
        MissingOutcome: it was not run.
    """
    found = outcomes.where(variant, servers=servers, threshold=threshold, security=security)
    if not len(found):
        raise MissingOutcome(f"no {variant} with {servers} servers, threshold {threshold}, {security}")
    return found.where(images=max(int(str(images)) for images in found.settings("images")))


def faster_than_mpyc(outcomes: Outcomes) -> Finding:
    """Strict comparisons, as MPyC's: the same network, images and thresholds, on this host."""
    findings = {}
    for servers in outcomes.where("mpyc").settings("servers"):
        peer = outcomes.where("mpyc", servers=servers)
        images = peer.settings("images")[0]
        ours = outcomes.where("strict", servers=servers, images=images, security=SEMI_HONEST)
        findings[f"with {servers} servers"] = times_better(ours, peer, "latency", 3.0)
    if not findings:
        raise MissingOutcome("MPyC was not run")
    finding = all_hold(findings)
    return Finding(verdict=finding.verdict, numbers={"paper": PAPER_BAND, **finding.numbers})


def more_servers(outcomes: Outcomes) -> Finding:
    """Five servers, two of which may collude: the labels of the plaintext network, and what it costs."""
    three = cell(outcomes, "ssnet", 3, 1, SEMI_HONEST)
    five = cell(outcomes, "ssnet", 5, 2, SEMI_HONEST)
    agreement = five.mean("label_agreement")
    numbers: dict[str, int | float | str] = {
        "label agreement": agreement,
        "bytes over those of three": five.mean("online_bytes") / three.mean("online_bytes"),
        "seconds over those of three": five.mean("latency") / three.mean("latency"),
    }
    holds = Verdict.HOLDS if agreement >= 0.995 else Verdict.FAILS
    return Finding(verdict=holds, numbers=numbers)


def cheap_verification(outcomes: Outcomes) -> Finding:
    """At n = 2t + 1, where products are opened without redundancy, at most 2.5 times the bytes."""
    verdicts, numbers = [], {}
    for servers, threshold in ((3, 1), (5, 2)):
        plain = cell(outcomes, "ssnet", servers, threshold, SEMI_HONEST)
        checked = cell(outcomes, "ssnet", servers, threshold, ABORT)
        ratio = checked.mean("online_bytes") / plain.mean("online_bytes")
        verdicts.append(Verdict.HOLDS if ratio <= MOST_FOR_VERIFICATION else Verdict.FAILS)
        numbers[f"bytes with {servers} servers"] = ratio
        numbers[f"seconds with {servers} servers"] = checked.mean("latency") / plain.mean("latency")
    return Finding(verdict=worst(verdicts), numbers={"limit": MOST_FOR_VERIFICATION, **numbers})


def masking_saves(outcomes: Outcomes) -> Finding:
    """Bytes of whole inferences, strict over masked."""
    masked = cell(outcomes, "ssnet", 3, 1, SEMI_HONEST)
    strict = cell(outcomes, "strict", 3, 1, SEMI_HONEST)
    finding = times_better(masked, strict, "online_bytes", LEAST_SAVING)
    return Finding(verdict=finding.verdict, numbers={**finding.numbers, "price": LEAK})


CLAIMS = [
    Claim(
        "It is at least three times faster than another framework for the same security",
        "abstract: 3 to 14 times; here MPyC, with strict comparisons on both sides",
        faster_than_mpyc,
    ),
    Claim("The number of parties scales: five servers give the same labels", "abstract", more_servers),
    Claim(
        "Correctness is authenticated at low cost: at most 2.5 times the bytes",
        "abstract; the limit is ours",
        cheap_verification,
    ),
    Claim(
        "Masking cuts the traffic of non-linear operations, five times over the whole network",
        "abstract; the factor is ours",
        masking_saves,
    ),
]
