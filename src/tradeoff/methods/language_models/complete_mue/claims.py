"""What the paper states, as checks over the study's outcomes."""

from collections.abc import Callable, Iterable

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.claims import all_hold
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.statistics import compare, mean_interval

from .layouts import Layout

OURS, STANDARD = "complete-mue", "standard"
OCTAVE = 1.0
"""A step of the grid of rates."""
STANDARD_MOVE = 2.0
REGRET = 0.02


def _layouts(outcomes: Outcomes, variant: str, fits: Callable[[Layout], bool]) -> list[str]:
    names = [str(text) for text in outcomes.where(variant).settings("layout")]
    found = [text for text in names if fits(Layout(text))]
    if not found:
        raise MissingOutcome(f"{variant} has no target of this kind")
    return found


def _at_most(values: Iterable[float], limit: float) -> Finding:
    """Whether the 95 % interval of the mean over seeds lies at or below a limit."""
    listed = list(values)
    mean, low, high = mean_interval(listed)
    numbers: dict[str, float | str] = {"mean": mean, "seeds": len(listed)}
    if len(listed) < 2:
        return Finding(verdict=Verdict.UNDECIDED, numbers=numbers)
    numbers |= {"low": low, "high": high}
    verdict = Verdict.HOLDS if high <= limit else Verdict.FAILS if low > limit else Verdict.UNDECIDED
    return Finding(verdict=verdict, numbers=numbers)


def _swept(outcomes: Outcomes, fits: Callable[[Layout], bool]) -> dict[str, Outcomes]:
    """Targets of a kind under the rules, without those that were trained at the base's rate alone."""
    cells = {text: outcomes.where(OURS, layout=text) for text in _layouts(outcomes, OURS, fits)}
    found = {text: cell for text, cell in cells.items() if "regret" in cell[0].metrics}
    if not found:
        raise MissingOutcome("no target of this kind was swept")
    return found


def _drift(fits: Callable[[Layout], bool]) -> Callable[[Outcomes], Finding]:
    """The best rate within an octave of the base's, on every target of a kind."""

    def check(outcomes: Outcomes) -> Finding:
        cells = _swept(outcomes, fits)
        return all_hold(
            {f"at {text}": _at_most(cell.values("rate_drift"), OCTAVE) for text, cell in cells.items()}
        )

    return check


def small_regret(outcomes: Outcomes) -> Finding:
    """The loss at the transferred rate within 2 % of that of a sweep at the target, on every target."""
    cells = _swept(outcomes, lambda layout: bool(layout.axes))
    return all_hold({f"at {text}": _at_most(cell.values("regret"), REGRET) for text, cell in cells.items()})


def standard_moves(outcomes: Outcomes) -> Finding:
    """Octaves between the best rates of the narrowest and the widest model."""
    widths = {text: Layout(text).number("width", 0) for text in _layouts(outcomes, STANDARD, _only("width"))}
    narrow, wide = min(widths, key=widths.__getitem__), max(widths, key=widths.__getitem__)
    if narrow == wide:
        raise MissingOutcome("only one width was swept under the standard parametrization")
    first, last = outcomes.where(STANDARD, layout=narrow).paired(
        outcomes.where(STANDARD, layout=wide), "best_rate"
    )
    ours = outcomes.where(OURS, layout=narrow).paired(outcomes.where(OURS, layout=wide), "best_rate")
    # "Two or more" includes two: the margin is a hair below.
    finding = compare(first, last, STANDARD_MOVE - 1e-9)
    numbers = {key: value for key, value in finding.numbers.items() if key not in ("a", "b", "margin")}
    return Finding(
        verdict=finding.verdict,
        numbers={
            f"standard at {narrow}": finding.numbers["a"],
            f"standard at {wide}": finding.numbers["b"],
            **numbers,
            "rules": sum(a - b for a, b in zip(*ours, strict=True)) / len(ours[0]),
        },
    )


def transfer_beats_standard(outcomes: Outcomes) -> Finding:
    """At the base's rate, the widest model under the rules against the standard, with the margin."""
    widths = _layouts(outcomes, STANDARD, _only("width"))
    widest = max(widths, key=lambda text: Layout(text).number("width", 0))
    ours, theirs = outcomes.where(OURS, layout=widest).paired(outcomes.where(STANDARD, layout=widest), "loss")
    gains = compare([b / a - 1 for a, b in zip(ours, theirs, strict=True)], [0.0] * len(ours), REGRET)
    numbers = {key: value for key, value in gains.numbers.items() if key not in ("a", "b")}
    return Finding(
        verdict=gains.verdict,
        numbers={"rules": sum(ours) / len(ours), "standard": sum(theirs) / len(theirs), **numbers},
    )


def sparse_models_learn_faster(outcomes: Outcomes) -> Finding:
    """Steps until the dense model's last loss: fewer than its own, and fewer still with more experts.

    The longest trainings count: an expert sees but a part of the tokens.
    """
    found = _layouts(
        outcomes, OURS, lambda layout: layout.mixture is not None and layout.mixture[1:] == (2, 0)
    )
    longest = max(Layout(text).number("tokens", 1) for text in found)
    totals = {
        layout.mixture[0]: text
        for text in found
        if (layout := Layout(text)).number("tokens", 1) == longest
        and layout.mixture
        and layout.mixture[0] > 2
    }
    if len(totals) < 2:
        raise MissingOutcome("needs two numbers of experts with two active each")
    few, many = (outcomes.where(OURS, layout=totals[total]) for total in (min(totals), max(totals)))
    ones = [1.0] * len(few.values("step_ratio"))
    return all_hold(
        {
            f"of {totals[min(totals)]}": compare(ones, few.values("step_ratio")),
            f"of {totals[max(totals)]} beside it": compare(*few.paired(many, "step_ratio")),
        }
    )


def _only(axis: str) -> Callable[[Layout], bool]:
    return lambda layout: layout.axes == (axis,)


def _mixtures(fits: Callable[[int, int, int], bool]) -> Callable[[Layout], bool]:
    return lambda layout: layout.axes == ("mixture",) and layout.mixture is not None and fits(*layout.mixture)


CLAIMS = (
    Claim(
        "Under the rules the best learning rate stays within an octave of the base's at every width",
        "abstract: stable optima (the octave, a step of the grid, is ours)",
        _drift(_only("width")),
    ),
    Claim(
        "Under the standard parametrization it moves by two octaves or more from the narrowest to the widest",
        "muP (Yang et al., 2022), on which the method stands; the bound is ours",
        standard_moves,
    ),
    Claim(
        "At the base's rate the widest model is better by more than 2 % under the rules than without",
        "muP (Yang et al., 2022), on which the method stands; the margin is ours",
        transfer_beats_standard,
    ),
    Claim(
        "From dense to mixtures of any number of experts, all to few active, the rate stays within an octave",
        "abstract: activated experts, total capacity (the octave is ours)",
        _drift(_mixtures(lambda total, active, shared: active <= 2 and not shared)),
    ),
    Claim(
        "At any granularity of the experts the rate stays within an octave",
        "abstract: granularity (the octave is ours)",
        _drift(_mixtures(lambda total, active, shared: active > 2 and not shared)),
    ),
    Claim(
        "With shared experts the rate stays within an octave",
        "abstract: shared hybrids (the octave is ours)",
        _drift(_mixtures(lambda total, active, shared: shared > 0)),
    ),
    Claim(
        "In deeper models the rate stays within an octave",
        "abstract: depth (the octave is ours)",
        _drift(_only("depth")),
    ),
    Claim(
        "At other batch sizes and durations the rate stays within an octave",
        "abstract: batch, duration (the octave is ours)",
        _drift(lambda layout: bool(layout.axes) and set(layout.axes) <= {"batch", "tokens"}),
    ),
    Claim(
        "Tuned once on the base, every target is within 2 % of the loss of a sweep of its own",
        'abstract: "tune dense once, transfer to all" (the margin is ours)',
        small_regret,
    ),
    Claim(
        "Sparse models reach the dense model's loss in fewer steps, with more experts in fewer still",
        "abstract: acceleration by capacity",
        sparse_models_learn_faster,
    ),
)
