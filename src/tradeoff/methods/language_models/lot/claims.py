"""What the paper states, as checks over the study's outcomes."""

import math

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.claims import all_hold, worst
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.quantities import Direction, quantity
from tradeoff.core.statistics import better

FOLD = 5.0
HARDER = 2.0
IMITATED = 0.05


def lower_loss_at_equal_updates(outcomes: Outcomes) -> Finding:
    """On each text, after each number of updates that both have."""
    return all_hold(
        {
            f"on {task} at {steps}": better(
                _row(outcomes, "lot", task, steps), _row(outcomes, "plain", task, steps), "loss"
            )
            for task in _texts(outcomes)
            for steps in _common(outcomes, "lot", "plain", task)
        }
    )


def lower_loss_at_equal_operations(outcomes: Outcomes) -> Finding:
    """On each text: LoT's longest training against the shortest plain one that computes as much."""
    return all_hold({f"on {task}": better(*_matched(outcomes, task), "loss") for task in _texts(outcomes)})


def best_regularizer(outcomes: Outcomes) -> Finding:
    """On each text, against every other regularizer at the same updates."""
    findings = {}
    for task in _texts(outcomes):
        for peer in _peers(outcomes, task):
            for steps in _common(outcomes, "lot", peer, task)[-1:]:
                ours, theirs = (_row(outcomes, name, task, steps) for name in ("lot", peer))
                findings[f"{peer} on {task}"] = better(ours, theirs, "loss")
    if not findings:
        raise MissingOutcome("no other regularizer was tried on a text with as many updates")
    return all_hold(findings)


def robust_to_wrong_labels(outcomes: Outcomes) -> Finding:
    """Accuracy after the last update and, beside it, that of plain training with as many operations."""
    findings = {}
    for task in _noisy_images(outcomes):
        steps = _common(outcomes, "lot", "plain", task)[-1]
        ours = _row(outcomes, "lot", task, steps)
        findings[f"at {steps} updates"] = not_worse(ours, _row(outcomes, "plain", task, steps), "accuracy")
        findings["at equal operations"] = not_worse(*_matched(outcomes, task), "accuracy")
    if not findings:
        raise MissingOutcome("no task has images with wrong labels")
    return all_hold(findings)


def generalizable_is_imitable(outcomes: Outcomes) -> Finding:
    """Divergence from a teacher on unseen inputs, before and after imitating it; means over the seeds."""
    steps = [s for s in outcomes.where(task="imitation").settings("steps") if isinstance(s, int)]
    if not steps:
        raise MissingOutcome("no teacher was imitated")
    before = _row(outcomes, "true-labels", "imitation", 0).mean("student_kl")
    true, random = (
        _row(outcomes, name, "imitation", max(steps)).values("student_kl")
        for name in ("true-labels", "random-labels")
    )
    after, noise = (math.fsum(values) / len(values) for values in (true, random))
    numbers: dict[str, float | str] = {
        "true labels before": before,
        "true labels after": after,
        "random labels after": noise,
        "fold": before / after,
        "times harder": noise / after,
        "seeds": len(true),
    }
    holds = before >= FOLD * after and noise >= HARDER * after
    if len(true) < 2:
        return Finding(verdict=Verdict.UNDECIDED, numbers=numbers)
    return Finding(verdict=Verdict.HOLDS if holds else Verdict.FAILS, numbers=numbers)


def policies_do_not_suffer(outcomes: Outcomes) -> Finding:
    """Returns within a standard error, and students that imitate."""
    tasks = [t for t in outcomes.settings("task") if _measures(outcomes.where(task=t), "episode_return")]
    if not tasks:
        raise MissingOutcome("no policy was learned")
    findings = {}
    for task in tasks:
        ours, plain = outcomes.where("lot", task=task), outcomes.where("plain", task=task)
        kl = ours.mean("student_kl")
        finding = not_worse(ours, plain, "episode_return")
        imitated = Verdict.HOLDS if kl < IMITATED else Verdict.FAILS
        findings[f"in {task}"] = Finding(
            verdict=worst([finding.verdict, imitated]), numbers={**finding.numbers, "student KL": kl}
        )
    return all_hold(findings)


def not_worse(ours: Outcomes, theirs: Outcomes, name: str) -> Finding:
    """Whether the mean paired difference is above minus its standard error; undecided with one seed."""
    finding = better(ours, theirs, name)
    mine, other = ours.paired(theirs, name)
    sign = 1 if quantity(name).direction is Direction.HIGHER else -1
    differences = [sign * (a - b) for a, b in zip(mine, other, strict=True)]
    count = len(differences)
    if count < 2:
        return finding
    mean = math.fsum(differences) / count
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (count - 1) / count)
    verdict = Verdict.HOLDS if mean >= -error else Verdict.FAILS
    return Finding(verdict=verdict, numbers={**finding.numbers, "standard error": error})


def _row(outcomes: Outcomes, variant: str, task: str, steps: int) -> Outcomes:
    return outcomes.where(variant, task=task, steps=steps)


def _measures(outcomes: Outcomes, name: str) -> bool:
    return name in outcomes.quantities


def _tasks(outcomes: Outcomes, accuracy: bool) -> list[str]:
    """Those where LoT was trained by labels; images have an accuracy, texts have none."""
    rows = outcomes.where("lot")
    names = [task for task in rows.settings("task") if isinstance(task, str)]
    cells = {task: rows.where(task=task) for task in names}
    return [
        t for t, cell in cells.items() if _measures(cell, "loss") and _measures(cell, "accuracy") == accuracy
    ]


def _texts(outcomes: Outcomes) -> list[str]:
    texts = _tasks(outcomes, accuracy=False)
    if not texts:
        raise MissingOutcome("no text was learned")
    return texts


def _noisy_images(outcomes: Outcomes) -> list[str]:
    return [task for task in _tasks(outcomes, accuracy=True) if task.endswith("noise")]


def _peers(outcomes: Outcomes, task: str) -> list[str]:
    return [name for name in outcomes.where(task=task).variants if name not in ("lot", "plain")]


def _steps(outcomes: Outcomes, variant: str, task: str) -> list[int]:
    return sorted(s for s in outcomes.where(variant, task=task).settings("steps") if isinstance(s, int))


def _common(outcomes: Outcomes, first: str, second: str, task: str) -> list[int]:
    both = set(_steps(outcomes, first, task)) & set(_steps(outcomes, second, task))
    if not both:
        raise MissingOutcome(f"{first} and {second} have no number of updates in common on {task}")
    return sorted(both)


def _matched(outcomes: Outcomes, task: str) -> tuple[Outcomes, Outcomes]:
    """LoT's longest training on a task, and the shortest plain one with at least its operations."""
    ours = _row(outcomes, "lot", task, _steps(outcomes, "lot", task)[-1])
    for steps in _steps(outcomes, "plain", task):
        plain = _row(outcomes, "plain", task, steps)
        if plain.mean("training_flops") >= ours.mean("training_flops"):
            return ours, plain
    raise MissingOutcome(f"no plain training on {task} has as many operations as that with LoT")


CLAIMS = (
    Claim(
        "On held-out text LoT gives a language model a lower loss than plain training of as many updates",
        "abstract: language modeling",
        lower_loss_at_equal_updates,
    ),
    Claim(
        "It is also lower than after plain training with as many operations, stopped where that is best",
        "abstract; the comparison is ours",
        lower_loss_at_equal_operations,
    ),
    Claim(
        "On text LoT has a lower loss than each other regularizer after as many updates",
        "the comparison is ours",
        best_regularizer,
    ),
    Claim(
        "With wrong labels among the training images, LoT is not less accurate than plain training of as "
        "many updates, nor than one of as many operations",
        "abstract: image classification",
        robust_to_wrong_labels,
    ),
    Claim(
        "A student comes at least 5 times closer to a teacher of true labels, and stays at least twice as "
        "far from one of random labels",
        "the hypothesis: generalizable correlations are easy to imitate",
        generalizable_is_imitable,
    ),
    Claim(
        "Policies regularized by LoT return no less, and students imitate them within a divergence of 0.05",
        "abstract: reinforcement learning",
        policies_do_not_suffer,
    ),
)
