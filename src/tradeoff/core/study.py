"""A study: a method run under a recipe, with its outcomes, claims and frontier."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tradeoff

from .claims import Claim, Finding, Verdict
from .errors import MethodError
from .executors import Executor, LocalExecutor, Monitor, Result, Status, Task
from .frontier import frontier
from .method import Method
from .outcome import Outcome, Outcomes
from .recipe import Recipe
from .store import RunFolder
from .trial import Trial

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Study:
    """A method's outcomes under a recipe.

    Attributes:
        trials: the cells of the recipe.
        outcomes: those of the trials that are stored, in the same order.
        failures: results of the trials that failed in this run.
        problems: lines about corrupt or foreign files in the run folder.
        seconds: how long this run took.
    """

    method: Method[Any]
    recipe: Recipe
    folder: RunFolder
    trials: Sequence[Trial]
    outcomes: Outcomes
    failures: Sequence[Result] = ()
    problems: Sequence[str] = ()
    seconds: float = 0.0

    @cached_property
    def findings(self) -> list[tuple[Claim, Finding]]:
        """Each claim of the method with what the outcomes say about it."""
        return [(claim, claim.evaluate(self.outcomes)) for claim in self.method.claims]

    @cached_property
    def frontier(self) -> list[int]:
        """Indices of the outcomes on the frontier of the card's two quantities."""
        axes = self.method.card.frontier
        return frontier(self.outcomes, axes.x, axes.y, axes.within)

    @property
    def quantities(self) -> list[str]:
        """Quantities that the outcomes hold, the two that the method trades first."""
        card = self.method.card
        present = self.outcomes.quantities
        order = dict.fromkeys([card.frontier.x, card.frontier.y, *card.quantities, *present])
        return [name for name in order if name in present]

    @property
    def missing(self) -> list[Trial]:
        """Trials without an outcome."""
        stored = {outcome.trial.key for outcome in self.outcomes}
        return [trial for trial in self.trials if trial.key not in stored]

    @property
    def claims_fail(self) -> bool:
        """Whether a claim was checked and failed."""
        return any(finding.verdict is Verdict.FAILS for _, finding in self.findings)

    def document(self) -> dict[str, Any]:
        """The study as one JSON document, as ``tradeoff run --json`` prints it."""
        return {
            "method": self.method.card.name,
            "recipe": self.recipe.model_dump(mode="json"),
            "run": self.folder.shown,
            "seconds": round(self.seconds, 3),
            "outcomes": [o.model_dump(mode="json", exclude={"provenance"}) for o in self.outcomes],
            "claims": [
                {"text": claim.text, "source": claim.source, **finding.model_dump(mode="json")}
                for claim, finding in self.findings
            ],
            "frontier": self.frontier,
        }


def run_study(
    method: Method[Any],
    recipe: Recipe,
    runs: Path = Path("runs"),
    *,
    executor: Executor | None = None,
    device: str = "auto",
    monitor: Monitor | None = None,
) -> Study:
    """Run the trials of a recipe whose outcomes are not stored yet.

    Args:
        method: what to study.
        recipe: its recipe.
        runs: the folder that holds all runs.
        executor: where trials run; by default in worker processes.
        device: a torch device, or ``auto`` for the first accelerator, else the processor.
        monitor: hears about progress.

    Returns:
        The study, also where trials failed: see its ``failures``.

    Raises:
        StoreError: the run folder cannot be written.
    """
    begin = time.perf_counter()
    monitor = monitor or Monitor()
    executor = executor or LocalExecutor(workers=1 if method.timed else None)
    folder = RunFolder.create(runs, method.card.name, recipe)
    trials = _trials(method, recipe)
    for line in _of_other_versions(folder.scan()[0].values(), folder):
        monitor.logged(None, logging.WARNING, line)

    failures: list[Result] = []
    pending = [trial for trial in trials if folder.load(trial) is None]
    while pending:
        tasks = [Task(method, recipe, trial, folder, runs.absolute() / ".cache", device) for trial in pending]
        busy = []
        for result in executor.run(tasks, monitor):
            if result.status is Status.BUSY:
                busy.append(result.trial)
            else:
                monitor.finished(result)
            if result.status is Status.FAILED:
                failures.append(result)
        pending = _wait_for_others(folder, busy, monitor)
        for trial in set(busy) - set(pending):
            monitor.finished(Result(trial, Status.DONE))
    return _collect(method, recipe, folder, failures, time.perf_counter() - begin)


def pending_trials(method: Method[Any], recipe: Recipe, runs: Path) -> tuple[int, int]:
    """How many trials of a recipe have no stored outcome yet, and how many there are."""
    folder = RunFolder.of(runs, method.card.name, recipe)
    trials = _trials(method, recipe)
    return sum(folder.load(trial) is None for trial in trials), len(trials)


def load_study(folder: RunFolder, method: Method[Any]) -> Study:
    """The study that a run folder holds, with whatever trials are stored.

    Raises:
        StoreError: the folder's header is damaged.
        RecipeError: its recipe is not one of the method any more.
    """
    _, values = folder.header
    return _collect(method, method.Recipe(**values), folder, [], 0.0)


def _of_other_versions(stored: Iterable[Outcome], folder: RunFolder) -> Iterator[str]:
    """A line about stored outcomes of each other version of this project; they are used as they are."""
    versions = Counter(o.provenance.versions.get("tradeoff") for o in stored if o.provenance)
    for version, count in versions.items():
        if version != tradeoff.__version__:
            yield f"{count} stored outcomes are of tradeoff {version}; to repeat them, remove {folder.shown}"


def _collect(
    method: Method[Any], recipe: Recipe, folder: RunFolder, failures: Sequence[Result], seconds: float
) -> Study:
    stored, problems = folder.scan()
    trials = _trials(method, recipe)
    outcomes = Outcomes(stored[trial.key] for trial in trials if trial.key in stored)
    return Study(method, recipe, folder, trials, outcomes, failures, problems, seconds)


def _trials(method: Method[Any], recipe: Recipe) -> list[Trial]:
    trials = list(method.trials(recipe))
    twice = [trial for trial, count in Counter(trials).items() if count > 1]
    if twice:
        raise MethodError(f"{method.card.name} lists the same trial twice under this recipe: {twice[0]}")
    return trials


def _wait_for_others(folder: RunFolder, busy: Sequence[Trial], monitor: Monitor) -> list[Trial]:
    """Wait until a trial that another process holds is stored or free; gives those that are free."""
    told = False
    while busy:
        held = folder.held(busy)
        free = [trial for trial in busy if trial not in held and folder.load(trial) is None]
        if free or not held:
            return free + list(held)
        if not told:
            told = True
            for trial, holder in held.items():
                line = f"process {holder.pid} on {holder.host} is running this trial; waiting for it"
                if not holder.here:  # a container that was killed, for example, has another name next time
                    line += f" (if that host is gone, remove {folder.lock(trial)})"
                monitor.logged(trial, logging.INFO, line)
        time.sleep(_POLL_SECONDS)
    return []
