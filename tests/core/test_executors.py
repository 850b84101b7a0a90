"""Where trials run: failures and crashes cost one trial, and what a method returns is checked."""

import atexit
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

import tradeoff
from tests.conftest import TOY
from tradeoff.core import Card, Context, Method, Outcome, Recipe, Trial, measured
from tradeoff.core.executors import LocalExecutor, Monitor, Result, SerialExecutor, Status
from tradeoff.core.study import Study, run_study


class WaywardRecipe(Recipe):
    """Variants to run, by what they do."""

    variants: list[str]
    minutes: float = 1


class Wayward(Method[WaywardRecipe]):
    """A method whose trials do what their variant says."""

    card = Card.load(TOY / "src" / "toy_rounding" / "card.md")
    Recipe = WaywardRecipe

    def trials(self, recipe: WaywardRecipe) -> list[Trial]:
        return [Trial(variant=variant) for variant in recipe.variants]

    def run(self, trial: Trial, recipe: WaywardRecipe, context: Context) -> Outcome:
        good = Outcome(trial=trial, metrics={"accuracy": measured(0.5), "model_bytes": measured(1)})
        match trial.variant:
            case "raise":
                raise ValueError("as asked")
            case "exit":
                sys.exit(3)
            case "die":
                os._exit(7)
            case "dict":
                return {"accuracy": 1}  # type: ignore[return-value]
            case "empty":
                return Outcome(trial=trial, metrics={})
            case "other":
                return Outcome(trial=Trial(variant="x"), metrics=good.metrics)
            case "artifact":
                return good.model_copy(update={"artifact": "artifacts/absent"})
            case "infinite":
                return Outcome(trial=trial, metrics={"accuracy": measured(float("nan"))})
            case "unregistered":
                return Outcome.model_construct(trial=trial, metrics={"niceness": measured(1)}, artifact=None)
            case "linger":
                atexit.register(time.sleep, 0.5)
            case "talk":
                print("to standard output")
                context.log.warning("look at %s", "this")
                warnings.warn("mind that", stacklevel=1)
                with context.progress(2, "steps") as bar:
                    bar.advance()
                    bar.advance()
        return good


class Recorder(Monitor):
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self.progress: list[tuple[str, float, float | None]] = []
        self.results: list[Result] = []

    def logged(self, trial: Trial | None, level: int, message: str) -> None:
        self.lines.append((level, message))

    def progressed(self, trial: Trial, description: str, done: float, total: float | None) -> None:
        self.progress.append((description, done, total))

    def finished(self, result: Result) -> None:
        self.results.append(result)


def run(runs: Path, *variants: str, **options: Any) -> Study:
    return run_study(Wayward(), WaywardRecipe(variants=list(variants)), runs, **options)


FAULTS = {
    "raise": "ValueError: as asked",
    "dict": "OutcomeError: toy-rounding.run returned dict, not an Outcome",
    "empty": "OutcomeError: the outcome has no metrics",
    "other": "OutcomeError: the outcome is of x seed=0, not of other seed=0",
    "artifact": "OutcomeError: the artifact artifacts/absent is not in",
    "infinite": "OutcomeError: a measured metric must be finite, not nan",
    "unregistered": "UnknownQuantity: unknown quantity 'niceness'",
}


def test_each_fault_is_named_and_the_other_trials_go_on(tmp_path: Path) -> None:
    study = run(tmp_path, *FAULTS, "good", executor=SerialExecutor())
    assert {failure.trial.variant: failure.error for failure in study.failures}.keys() == FAULTS.keys()
    for failure in study.failures:
        assert failure.error.startswith(FAULTS[failure.trial.variant])
        assert "Traceback" in failure.traceback
    assert study.outcomes.variants == ["good"]
    assert [trial.variant for trial in study.missing] == list(FAULTS)


def test_worker_processes_report_crashes_logs_and_progress(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    study = run(tmp_path, "die", "exit", "raise", "talk", "good", executor=LocalExecutor(2), monitor=recorder)
    assert {failure.trial.variant: failure.error for failure in study.failures} == {
        "die": "TrialFailed: the worker process ended with status 7",
        "exit": "TrialFailed: the worker process ended with status 3",
        "raise": "ValueError: as asked",
    }
    assert study.outcomes.variants == ["talk", "good"]
    assert (logging.WARNING, "look at this") in recorder.lines
    assert (logging.WARNING, "mind that") in recorder.lines
    assert recorder.progress[-1] == ("steps", 2, 2)
    assert len(recorder.results) == 5
    assert capfd.readouterr().out == "", "a trial's print reached standard output"


def test_a_worker_that_has_nothing_to_do_ends_in_peace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not run(tmp_path, "linger", executor=LocalExecutor(1)).failures
    assert capfd.readouterr().err == "", "the end of a worker was interrupted"


def test_an_outcome_says_where_it_comes_from(tmp_path: Path) -> None:
    provenance = run(tmp_path, "good", executor=SerialExecutor()).outcomes[0].provenance
    assert provenance is not None
    assert provenance.versions["tradeoff"]
    assert provenance.cores >= 1
    assert provenance.seconds >= 0


class Elsewhere:
    """Another process, as far as the runner can see: it holds a trial and stores its outcome later."""

    def __init__(self, release: bool) -> None:
        self.release = release

    def run(self, tasks: Any, monitor: Monitor) -> Any:
        for task in tasks:
            with task.folder.claim(task.trial) as claimed:
                assert claimed
                yield Result(task.trial, Status.BUSY)
                time.sleep(0.1)
                if not self.release:
                    task.folder.save(Outcome(trial=task.trial, metrics={"accuracy": measured(0.25)}))


def test_waits_for_a_trial_that_another_process_runs(tmp_path: Path) -> None:
    recorder = Recorder()
    study = run(tmp_path, "good", executor=Elsewhere(release=False), monitor=recorder)
    assert study.outcomes.values("accuracy") == [0.25]
    assert [result.status for result in recorder.results] == [Status.DONE]


def test_stored_outcomes_of_another_version_are_used_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "good", executor=SerialExecutor())
    recorder = Recorder()
    monkeypatch.setattr(tradeoff, "__version__", "99")
    run(tmp_path, "good", executor=SerialExecutor(), monitor=recorder)
    assert recorder.results == []
    (line,) = recorder.lines
    assert "1 stored outcomes are of tradeoff" in line[1]


def test_the_same_trial_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="lists the same trial twice"):
        run(tmp_path, "good", "good")
