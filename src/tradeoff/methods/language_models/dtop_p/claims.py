"""What the paper states, as checks over the study's outcomes."""

from collections.abc import Callable, Sequence

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.claims import all_hold
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.statistics import compare, mean_interval

from .diagnostics import SWINGS

OURS = "dtop_p"
HELD = 0.05
DRIFT = 0.25
MISSED = 0.15
LOSS = 0.02
SWITCH = 0.06


def _steady(outcomes: Outcomes, router: str) -> Outcomes:
    """A router without a disturbance, at the first size."""
    found = outcomes.where(router, run="steady")
    if not found:
        raise MissingOutcome(f"{router} was not trained")
    return found.where(size=found.settings("size")[0])


def _every(values: Sequence[float], fits: Callable[[float], bool], name: str) -> Finding:
    """Whether something is so in every seed: one in which it is not decides."""
    numbers: dict[str, float | str] = {
        f"lowest {name}": min(values),
        f"highest {name}": max(values),
        "seeds": len(values),
    }
    if not all(map(fits, values)):
        return Finding(verdict=Verdict.FAILS, numbers=numbers)
    return Finding(verdict=Verdict.HOLDS if len(values) > 1 else Verdict.UNDECIDED, numbers=numbers)


def _fixed(outcomes: Outcomes) -> dict[str, Outcomes]:
    names = dict.fromkeys(o.trial.variant for o in outcomes if o.trial.variant.startswith("topp:"))
    if not names:
        raise MissingOutcome("no fixed threshold was trained")
    return {name: _steady(outcomes, name) for name in names}


def holds_the_target(outcomes: Outcomes) -> Finding:
    """Every mean of 20 steps after the warm-up within 5 %, in every seed."""
    return _every(_steady(outcomes, OURS).values("budget_excursion"), lambda x: x <= HELD, "excursion")


def _above(values: Sequence[float], limit: float, name: str) -> Finding:
    """Whether the 95 % interval of the mean over seeds lies above a limit."""
    mean, low, high = mean_interval(values)
    numbers: dict[str, float | str] = {name: mean, "seeds": len(values)}
    if len(values) < 2:
        return Finding(verdict=Verdict.UNDECIDED, numbers=numbers)
    verdict = Verdict.HOLDS if low > limit else Verdict.FAILS if high <= limit else Verdict.UNDECIDED
    return Finding(verdict=verdict, numbers={**numbers, "low": low, "high": high})


def fixed_top_p_leaves(outcomes: Outcomes) -> Finding:
    """At every fixed threshold some mean of 20 steps leaves the target by more than 25 %, on average."""
    return all_hold(
        {
            f"at {name}": _above(cell.values("budget_excursion"), DRIFT, "excursion")
            for name, cell in _fixed(outcomes).items()
        }
    )


def fixed_top_p_misses(outcomes: Outcomes) -> Finding:
    """At one fixed threshold at least, the last 50 steps are more than 15 % from the target."""
    findings = {
        f"at {name}": _above(cell.values("budget_error"), MISSED, "error")
        for name, cell in _fixed(outcomes).items()
    }
    verdicts = {finding.verdict for finding in findings.values()}
    best = next(v for v in (Verdict.HOLDS, Verdict.UNDECIDED, Verdict.FAILS) if v in verdicts)
    return Finding(verdict=best, numbers=all_hold(findings).numbers)


def as_good_as_top_k(outcomes: Outcomes) -> Finding:
    """Held-out loss at most 2 % above top-k's, paired by seed."""
    ours, theirs = _steady(outcomes, OURS).paired(_steady(outcomes, "topk"), "loss")
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    found = compare(ratios, [1.0] * len(ratios), -LOSS)
    numbers = {key: value for key, value in found.numbers.items() if key not in ("a", "b", "difference")}
    return Finding(
        verdict=found.verdict,
        numbers={OURS: sum(ours) / len(ours), "topk": sum(theirs) / len(theirs), **numbers},
    )


def better_than_top_k(outcomes: Outcomes) -> Finding:
    """Held-out loss below top-k's, at every size."""
    sizes = outcomes.where(OURS, run="steady").settings("size")
    if not sizes:
        raise MissingOutcome(f"{OURS} was not trained")
    findings = {}
    for size in sizes:
        ours, theirs = (outcomes.where(name, run="steady", size=size) for name in (OURS, "topk"))
        mine, other = ours.paired(theirs, "loss")
        found = compare(other, mine)
        numbers = dict(found.numbers)
        means = {OURS: numbers.pop("b"), "topk": numbers.pop("a")}
        findings[f"at {size}"] = Finding(verdict=found.verdict, numbers={**means, **numbers})
    return all_hold(findings)


def deep_layers_take_more(outcomes: Outcomes) -> Finding:
    """The last layer above the first in every seed."""
    cell = _steady(outcomes, OURS)
    firsts, lasts = cell.values("active_first_layer"), cell.values("active_last_layer")
    found = _every(
        [b - a for a, b in zip(firsts, lasts, strict=True)], lambda x: x > 0, "last less first layer"
    )
    numbers = {"first layer": sum(firsts) / len(firsts), "last layer": sum(lasts) / len(lasts)}
    return Finding(verdict=found.verdict, numbers={**numbers, **found.numbers})


def layers_hold_it_each(outcomes: Outcomes) -> Finding:
    """Under control by layer every layer's mean of the last 50 steps within 5 %, in every seed."""
    values = _steady(outcomes, f"{OURS}:layer").values("layer_error")
    return _every(values, lambda x: x <= HELD, "error of a layer")


def survives_a_switch(outcomes: Outcomes) -> Finding:
    """From 20 steps after a switch of the data on, every mean of 20 steps within 6 %, in every seed."""
    return _every(
        outcomes.where(OURS, run="switch").values("budget_excursion"), lambda x: x <= SWITCH, "excursion"
    )


def follows_a_new_target(outcomes: Outcomes) -> Finding:
    """From 60 steps after a change of the target by half on, within 5 %, in every seed."""
    return _every(
        outcomes.where(OURS, run="retarget").values("budget_excursion"), lambda x: x <= HELD, "excursion"
    )


def high_gains_oscillate(outcomes: Outcomes) -> Finding:
    """With K_p 2 and K_i 1 the controller names itself oscillating; with its own gains it does not."""
    high = outcomes.where(OURS, run="high-gains").values("swings")
    return all_hold(
        {
            "with high gains": _every(high, lambda x: x >= SWINGS, "swings"),
            "with its own": _every(_steady(outcomes, OURS).values("swings"), lambda x: x < SWINGS, "swings"),
        }
    )


def noise_changes_the_work(outcomes: Outcomes) -> Finding:
    """Noisy and clean images use different numbers of experts: the interval of the difference excludes 0."""
    cell = _steady(outcomes, OURS)
    clean, noisy = cell.values("active_clean"), cell.values("active_noisy")
    differences = [b - a for a, b in zip(clean, noisy, strict=True)]
    mean, low, high = mean_interval(differences)
    numbers: dict[str, float | str] = {
        "clean": sum(clean) / len(clean),
        "noisy": sum(noisy) / len(noisy),
        "difference": mean,
        "seeds": len(clean),
    }
    if len(clean) < 2:
        return Finding(verdict=Verdict.UNDECIDED, numbers=numbers)
    apart = low > 0 or high < 0
    return Finding(
        verdict=Verdict.HOLDS if apart else Verdict.UNDECIDED, numbers={**numbers, "low": low, "high": high}
    )


CLAIMS = (
    Claim(
        "After warm-up the active experts stay within 5 % of the target",
        "abstract: precise control over the number of activated experts (the margin is ours)",
        holds_the_target,
    ),
    Claim(
        "Fixed thresholds leave it by more than 25 %",
        "abstract: uncontrolled computational costs (the margin is ours)",
        fixed_top_p_leaves,
    ),
    Claim(
        "A fixed threshold ends more than 15 % off the target",
        "abstract: uncontrolled computational costs (the margin is ours)",
        fixed_top_p_misses,
    ),
    Claim(
        "At equal average operations the loss is at most 2 % above top-k's",
        "the margin is ours: at this size no gain can be asserted",
        as_good_as_top_k,
    ),
    Claim(
        "At equal average operations the loss is below top-k's, at every number and granularity of experts",
        "abstract: consistently outperforms top-k; strong scaling with granularity and total capacity",
        better_than_top_k,
    ),
    Claim(
        "Under one threshold the last layer uses more experts than the first",
        "routing normalization lets layers choose (summary of version 3)",
        deep_layers_take_more,
    ),
    Claim(
        "Under control by layer every layer stays within 5 % of the target",
        "layer-wise variant (summary of version 3; the margin is ours)",
        layers_hold_it_each,
    ),
    Claim(
        "After a switch of the data the active experts are within 6 % of the target from 20 steps on",
        "ours: a disturbance",
        survives_a_switch,
    ),
    Claim(
        "A target that is raised by half is held within 5 % from 60 steps on",
        "ours: a disturbance",
        follows_a_new_target,
    ),
    Claim(
        "Gains that are too high are named as oscillating, the default ones are not",
        "ours: the controller's diagnosis",
        high_gains_oscillate,
    ),
    Claim(
        "Images with much and with little noise use different numbers of experts",
        "diffusion transformers of the paper; which of the two uses more is not stated",
        noise_changes_the_work,
    ),
)
