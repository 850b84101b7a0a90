"""What the paper states, as checks over the study's outcomes."""

import math

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.claims import all_hold, worst
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.statistics import better, compare, geometric_mean

from .prompts import KINDS

FASTER = 1.3
TOKENS = 1.3
HONEST = 0.15
LEARNED = 0.10
IDLE = 0.1
SAME_LOSS = 0.01


def same_text(outcomes: Outcomes) -> Finding:
    """Every text of every way to decode with heads, on all prompts."""
    rows = [o for o in outcomes if o.trial.variant in ("medusa", "untrained") and "identical" in o.metrics]
    if not rows:
        raise MissingOutcome("no text was compared")
    different = [o for o in rows if o.metrics["identical"].value < 1]
    prompts = sum(_most_prompts(outcomes.where("medusa", kind=kind)) for kind in KINDS)
    return Finding(
        verdict=Verdict.FAILS if different else Verdict.HOLDS,
        numbers={"prompts": prompts, "rows": len(rows), "rows that differ": len(different)},
    )


def faster_than_plain(outcomes: Outcomes) -> Finding:
    """Mean over the kinds (geometric), its interval over the seeds; and on all prompts with one seed."""
    cells = {kind: _medusa(outcomes, kind) for kind in KINDS}
    columns = {kind: cell.values("speedup") for kind, cell in cells.items()}
    means = [geometric_mean(values) for values in zip(*columns.values(), strict=True)]
    finding = compare([math.log(m) for m in means], [0.0] * len(means), math.log(FASTER))
    numbers: dict[str, float | str] = {
        f"on {kind}": math.fsum(values) / len(values) for kind, values in columns.items()
    }
    numbers |= {"mean": geometric_mean(means), "seeds": len(means), "factor": FASTER}
    numbers |= {
        name: math.exp(float(finding.numbers[name])) for name in ("low", "high") if name in finding.numbers
    }
    every = {kind: _all_prompts(outcomes, kind).mean("speedup") for kind in KINDS}
    overall = geometric_mean(every.values())
    numbers |= {f"on all prompts of {kind}": value for kind, value in every.items()}
    numbers["mean on all prompts"] = overall
    verdict = finding.verdict if overall >= FASTER else Verdict.FAILS
    return Finding(verdict=verdict, numbers=numbers)


def several_tokens_a_step(outcomes: Outcomes) -> Finding:
    """On all prompts of every kind; a count, which no clock disturbs."""
    values = {kind: _all_prompts(outcomes, kind).mean("tokens_per_step") for kind in KINDS}
    numbers: dict[str, float | str] = {f"on {kind}": value for kind, value in values.items()}
    return Finding(
        verdict=Verdict.HOLDS if min(values.values()) > TOKENS else Verdict.FAILS,
        numbers={**numbers, "threshold": TOKENS},
    )


def more_text_helps(outcomes: Outcomes) -> Finding:
    """Tokens per step with all texts against the smallest part, means over the kinds."""
    parts = sorted(p for p in outcomes.where("medusa").settings("part") if isinstance(p, float))
    if len(parts) < 2:
        raise MissingOutcome("heads were trained on one part of the texts only")
    ours, theirs = (
        [
            math.fsum(values) / len(values)
            for values in zip(
                *(_medusa(outcomes, kind, part).values("tokens_per_step") for kind in KINDS), strict=True
            )
        ]
        for part in (parts[-1], parts[0])
    )
    finding = compare(ours, theirs)
    named = {f"with {parts[-1]}": finding.numbers["a"], f"with {parts[0]}": finding.numbers["b"]}
    rest = {k: v for k, v in finding.numbers.items() if k not in ("a", "b", "margin")}
    return Finding(verdict=finding.verdict, numbers={**named, **rest})


def heads_learn(outcomes: Outcomes) -> Finding:
    """First guess of the first head on held-out text, against heads as they start."""
    return all_hold(
        {
            f"on {kind}": better(
                _medusa(outcomes, kind), _fixed(outcomes, "untrained", kind), "accuracy", LEARNED
            )
            for kind in KINDS
        }
    )


def speed_is_explained(outcomes: Outcomes) -> Finding:
    """Speed-up against tokens per step over the cost of a step; means over kinds and seeds."""
    rows = [o for kind in KINDS for o in _medusa(outcomes, kind)]
    ratios = [
        o.metrics["speedup"].value * o.metrics["step_cost"].value / o.metrics["tokens_per_step"].value
        for o in rows
    ]
    ratio = geometric_mean(ratios)
    within = 1 / (1 + HONEST) < ratio < 1 + HONEST
    return Finding(
        verdict=Verdict.HOLDS if within else Verdict.FAILS,
        numbers={"measured over predicted": ratio, "rows": len(rows), "tolerance": HONEST},
    )


def untrained_heads_cost_nothing(outcomes: Outcomes) -> Finding:
    """The chosen tree is empty, and decoding is plain decoding; geometric mean over kinds and seeds."""
    rows = [o for kind in KINDS for o in _fixed(outcomes, "untrained", kind)]
    if not rows:
        raise MissingOutcome("heads as they start were not tried")
    nodes = max(o.metrics["draft_tokens"].value for o in rows)
    speed = geometric_mean(o.metrics["speedup"].value for o in rows)
    holds = nodes == 0 and abs(speed - 1) <= IDLE
    return Finding(
        verdict=Verdict.HOLDS if holds else Verdict.FAILS, numbers={"guesses": nodes, "speedup": speed}
    )


def faster_than_transformers(outcomes: Outcomes) -> Finding:
    """On every kind, against every decoder of transformers that ran."""
    peers = [name for name in outcomes.variants if name.startswith("transformers")]
    if not peers:
        raise MissingOutcome("no decoder of transformers ran")
    return all_hold(
        {
            f"{peer} on {kind}": better(_medusa(outcomes, kind), _fixed(outcomes, peer, kind), "speedup")
            for peer in peers
            for kind in KINDS
        }
    )


def joint_training_pays(outcomes: Outcomes) -> Finding:
    """Tokens per step against Medusa-1's, and the loss against the backbone's, on bytes."""
    cells = {name: outcomes.where(name, kind="bytes") for name in outcomes.where(kind="bytes").variants}
    if not cells:
        raise MissingOutcome("nothing was trained on bytes")
    findings = {}
    for name in ("medusa-2", "self-distilled medusa-2"):
        findings[f"of {name}"] = better(cells[name], cells["medusa-1"], "tokens_per_step", -0.05)
        base = cells["backbone"].mean("loss")
        findings[f"of {name}, loss"] = better(cells[name], cells["backbone"], "loss", -SAME_LOSS * base)
    return all_hold(findings)


def typical_is_faster(outcomes: Outcomes) -> Finding:
    """Tokens per step of typical against greedy acceptance, with the same heads and tree."""
    typical = outcomes.where("typical", kind="bytes")
    if not len(typical):
        raise MissingOutcome("typical acceptance was not tried")
    finding = better(typical, outcomes.where("medusa-1", kind="bytes"), "tokens_per_step", -0.05)
    numbers = dict(finding.numbers)
    for name in ("typical", "sampling"):
        numbers[f"nats per byte, {name}"] = outcomes.where(name, kind="bytes").mean("text_loss")
    return Finding(verdict=worst([finding.verdict]), numbers=numbers)


def _medusa(outcomes: Outcomes, kind: str, part: float = 1.0) -> Outcomes:
    """The timed rows, which all seeds have."""
    rows = outcomes.where("medusa", kind=kind, part=part)
    timed = [p for p in rows.settings("prompts") if isinstance(p, int)]
    if not timed:
        raise MissingOutcome(f"nothing was decoded on {kind}")
    fewest = min(timed, key=lambda p: -len(rows.where(prompts=p)) * 1000 + p)
    return rows.where(prompts=fewest)


def _all_prompts(outcomes: Outcomes, kind: str) -> Outcomes:
    """The row with the most prompts, which one seed has."""
    rows = outcomes.where("medusa", kind=kind, part=1.0)
    return rows.where(prompts=_most_prompts(rows))


def _fixed(outcomes: Outcomes, variant: str, kind: str) -> Outcomes:
    return outcomes.where(variant, kind=kind)


def _most_prompts(rows: Outcomes) -> int:
    return max((p for p in rows.settings("prompts") if isinstance(p, int)), default=0)


CLAIMS = (
    Claim(
        "Greedy decoding with heads and tree writes the backbone's own text, token for token",
        "section 2.1.3 (lossless with greedy acceptance)",
        same_text,
    ),
    Claim(
        "It is at least 1.3 times as fast as plain decoding with the same kernels, on average over chat, "
        "code and prose",
        "abstract: over 2.2 times, on a GPU; the threshold is ours, for a CPU core and 135 M parameters",
        faster_than_plain,
    ),
    Claim("A step gives more than 1.3 tokens on each kind", "the threshold is ours", several_tokens_a_step),
    Claim(
        "Heads that learn from more of the backbone's text give more tokens per step", "ours", more_text_helps
    ),
    Claim(
        "The first head's first guess is right at least 10 points more often than before training, on "
        "held-out text",
        "the threshold is ours",
        heads_learn,
    ),
    Claim(
        "The speed-up is tokens per step over the cost of a step, within 15 %",
        "section 2.1.2: speed-up is acceleration rate over overhead",
        speed_is_explained,
    ),
    Claim(
        "With heads that cannot guess, plain decoding is chosen, and nothing is lost",
        "ours",
        untrained_heads_cost_nothing,
    ),
    Claim(
        "It is faster than generate, prompt lookup and assisted decoding of transformers with the same "
        "weights",
        "ours",
        faster_than_transformers,
    ),
    Claim(
        "Joint training gives not less tokens per step than training heads alone, and leaves the backbone's "
        "loss within 1 %",
        "section 2.2.2, checked on a small decoder over bytes",
        joint_training_pays,
    ),
    Claim(
        "Typical acceptance gives not less tokens per step than greedy acceptance",
        "section 2.3.1, checked on a small decoder over bytes",
        typical_is_faster,
    ),
)
