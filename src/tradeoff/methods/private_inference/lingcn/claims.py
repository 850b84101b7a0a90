"""What the paper states, as checks over the study's outcomes."""

import itertools

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.claims import all_hold
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.statistics import better, times_better

PAPER_RATIO = "14.2 at about 75 % (NTU, cross view)"
EQUAL = 0.02
"""Accuracies nearer than this are called equal here."""


def faster_at_equal_accuracy(outcomes: Outcomes) -> Finding:
    """The fastest network of LinGCN that is as accurate as CryptoGCN's plan, against that plan's latency."""
    theirs = _baseline(outcomes)
    candidates = [
        (ours.mean("latency"), mu, ours)
        for mu, ours in _cells(outcomes)
        if better(ours, theirs, "accuracy", margin=-EQUAL).verdict is Verdict.HOLDS
    ]
    numbers: dict[str, float | str] = {"paper": PAPER_RATIO, "accuracy cryptogcn": theirs.mean("accuracy")}
    if not candidates:
        best = max((ours.mean("accuracy"), mu) for mu, ours in _cells(outcomes))
        numbers |= {
            "accuracy lingcn": best[0],
            "at mu": best[1],
            "reason": "no network is surely as accurate",
        }
        return Finding(verdict=Verdict.UNDECIDED, numbers=numbers)
    _, mu, ours = min(candidates, key=lambda found: found[:2])
    finding = times_better(ours, theirs, "latency")
    numbers |= {"at mu": mu, "accuracy lingcn": ours.mean("accuracy"), **finding.numbers}
    for name in ("he_levels", "he_rotations", "he_modulus_bits", "ciphertext_bytes", "key_bytes"):
        numbers[f"{name} ratio"] = theirs.mean(name) / ours.mean(name)
    return Finding(verdict=finding.verdict, numbers=numbers)


def fewer_levels_are_faster(outcomes: Outcomes) -> Finding:
    """Largest against smallest mu, each with its own smallest parameters."""
    cells = _cells(outcomes)
    (low, many), (high, few) = cells[0], cells[-1]
    if len(cells) < 2:
        raise MissingOutcome("one weight mu only")
    finding = times_better(few, many, "latency")
    numbers = {
        "levels at " + str(low): many.mean("he_levels"),
        "levels at " + str(high): few.mean("he_levels"),
        "ring at " + str(low): many.mean("he_ring"),
        "ring at " + str(high): few.mean("he_ring"),
    }
    return Finding(verdict=finding.verdict, numbers={**finding.numbers, **numbers})


def levels_fall_with_mu(outcomes: Outcomes) -> Finding:
    """Mean levels over seeds, within one."""
    levels = {mu: ours.mean("activation_levels") for mu, ours in _cells(outcomes)}
    if len(levels) < 2:
        raise MissingOutcome("one weight mu only")
    means = list(levels.values())
    falls = all(b <= a + 1 for a, b in itertools.pairwise(means)) and means[-1] < means[0]
    numbers: dict[str, float | str] = {f"levels at {mu}": value for mu, value in levels.items()}
    return Finding(verdict=Verdict.HOLDS if falls else Verdict.FAILS, numbers=numbers)


def accuracy_is_kept(outcomes: Outcomes) -> Finding:
    """Within four points of the teacher, at the smallest weight that closes gates."""
    mu, ours = next(((mu, cell) for mu, cell in _cells(outcomes) if mu > 0), (None, None))
    if ours is None:
        raise MissingOutcome("no weight above 0")
    finding = better(ours, outcomes.where("relu"), "accuracy", margin=-0.04)
    return Finding(verdict=finding.verdict, numbers={"at mu": str(mu), **finding.numbers})


def nothing_is_saved_without_structure(outcomes: Outcomes) -> Finding:
    """Unstructured gates leave every level in use; structured ones at the same weight do not."""
    checks = {}
    for mu in outcomes.where("unstructured").settings("mu"):
        checks[f"at mu {mu}"] = better(
            outcomes.where("lingcn", mu=mu), outcomes.where("unstructured", mu=mu), "he_levels"
        )
    if not checks:
        raise MissingOutcome("no unstructured gates")
    return all_hold(checks)


def distillation_helps(outcomes: Outcomes) -> Finding:
    """Two levels of it against cross-entropy alone, at the same gates' weight."""
    checks = {}
    for mu in outcomes.where("cross-entropy").settings("mu"):
        ours = outcomes.where("lingcn", mu=mu)
        checks[f"at mu {mu}"] = better(ours, outcomes.where("cross-entropy", mu=mu), "accuracy")
    if not checks:
        raise MissingOutcome("no training without distillation")
    return all_hold(checks)


def joints_beat_layers(outcomes: Outcomes) -> Finding:
    """A choice of each joint against one of the whole layer, at the same weight; levels beside it."""
    checks = {}
    for mu in outcomes.where("layer-wise").settings("mu"):
        ours, theirs = outcomes.where("lingcn", mu=mu), outcomes.where("layer-wise", mu=mu)
        finding = better(ours, theirs, "accuracy")
        levels = {"levels lingcn": ours.mean("he_levels"), "levels layer-wise": theirs.mean("he_levels")}
        checks[f"at mu {mu}"] = Finding(verdict=finding.verdict, numbers={**finding.numbers, **levels})
    if not checks:
        raise MissingOutcome("no layer-wise gates")
    return all_hold(checks)


def encryption_is_exact(outcomes: Outcomes) -> Finding:
    """The same labels as in the clear, in every encrypted inference."""
    runs = [outcome for outcome in outcomes if "label_agreement" in outcome.metrics]
    if not runs:
        raise MissingOutcome("nothing was encrypted")
    worst = min(run.metrics["label_agreement"].value for run in runs)
    error = max(run.metrics["logit_error_max"].value for run in runs)
    numbers: dict[str, float | str] = {"inferences": len(runs), "agreement": worst, "largest error": error}
    return Finding(verdict=Verdict.HOLDS if worst == 1.0 else Verdict.FAILS, numbers=numbers)


def _cells(outcomes: Outcomes) -> list[tuple[float, Outcomes]]:
    """LinGCN's outcomes by weight, ascending."""
    ours = outcomes.where("lingcn")
    weights = sorted(float(mu) for mu in ours.settings("mu") if isinstance(mu, int | float))
    if not weights:
        raise MissingOutcome("lingcn has no outcome")
    return [(mu, ours.where(mu=mu)) for mu in weights]


def _baseline(outcomes: Outcomes) -> Outcomes:
    cell = outcomes.where("cryptogcn")
    if not len(cell):
        raise MissingOutcome("cryptogcn has no outcome")
    return cell


CLAIMS = (
    Claim(
        "At equal accuracy LinGCN answers sooner than a CryptoGCN-style plan, each at its smallest modulus",
        "abstract: 14.2 times there",
        faster_at_equal_accuracy,
    ),
    Claim("Fewer activation levels make encrypted inference faster", "the method", fewer_levels_are_faster),
    Claim("A larger weight of open gates leaves fewer levels", "the method", levels_fall_with_mu),
    Claim(
        "With some activations gone and the rest quadratic, accuracy is within four points of the teacher",
        "the method; the margin is ours",
        accuracy_is_kept,
    ),
    Claim(
        "Gates without the structure save no level",
        "the method: structural linearization",
        nothing_is_saved_without_structure,
    ),
    Claim(
        "Distillation at two levels gives a better polynomial network than cross-entropy alone",
        "abstract",
        distillation_helps,
    ),
    Claim("Gates of joints are more accurate than gates of layers", "the method", joints_beat_layers),
    Claim("Encrypted inference gives the labels of the plaintext network", "the method", encryption_is_exact),
)
