"""Where trials run: in this process, in worker processes of this machine, or on a Ray cluster.

All three give the same outcomes in the same run folder: a trial is claimed, run and stored by :func:`execute`
in the process that runs it, and the executor only hears how it went.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol, TextIO

from .context import Context
from .errors import MissingExtra, OutcomeError, StoreError, TrialFailed, warning_line
from .method import Method
from .outcome import Outcome
from .provenance import describe_run
from .recipe import Recipe
from .store import RunFolder
from .trial import Trial

ReportProgress = Callable[[str, float, float | None], None]
_PROGRESS_INTERVAL = 0.1
_SECONDS_TO_CLEAN_UP = 5.0


@dataclass(frozen=True)
class Task:
    """A trial and all that a process needs to run it."""

    method: Method[Any]
    recipe: Recipe
    trial: Trial
    folder: RunFolder
    cache_root: Path
    device: str


class Status(Enum):
    """How a task went."""

    DONE = "done"
    """Its outcome is stored, by this run or another."""
    BUSY = "busy"
    """Another process is running it."""
    FAILED = "failed"
    """It raised an error, or its process died."""


@dataclass(frozen=True)
class Result:
    """How a task went; where it failed, with the error's name and message, and its traceback."""

    trial: Trial
    status: Status
    error: str = ""
    traceback: str = ""


class Monitor:
    """Hears what happens to the trials of a run; this base class ignores it all."""

    def started(self, trial: Trial) -> None:
        """A trial was given to a process."""

    def progressed(self, trial: Trial, description: str, done: float, total: float | None) -> None:
        """A step of a trial advanced."""

    def logged(self, trial: Trial | None, level: int, message: str) -> None:
        """A trial, or the run itself, logged a line."""

    def finished(self, result: Result) -> None:
        """A trial ended."""


class Executor(Protocol):
    """Runs tasks, in any order, and yields the result of each when it ends."""

    def run(self, tasks: Sequence[Task], monitor: Monitor) -> Iterator[Result]:
        """Run the tasks. Closing the iterator stops what still runs."""


def execute(task: Task, report: ReportProgress) -> Result:
    """Claim, run and store one trial in this process. Every error of the trial becomes a failed result."""
    trial = task.trial
    try:
        with task.folder.claim(trial) as claimed:
            if task.folder.load(trial) is not None:
                return Result(trial, Status.DONE)
            if not claimed:
                return Result(trial, Status.BUSY)
            context = Context(
                seed=trial.seed,
                requested_device=task.device,
                work=task.folder.work(trial),
                cache_root=task.cache_root,
                log=logging.getLogger(f"tradeoff.{task.method.card.name}"),
                report=report,
            )
            with describe_run(task.method, context) as provenance:
                outcome = task.method.run(trial, task.recipe, context)
            task.folder.save(_checked(outcome, task).model_copy(update={"provenance": provenance()}))
            return Result(trial, Status.DONE)
    except Exception as error:  # noqa: BLE001 one trial's error must not end the others
        return Result(trial, Status.FAILED, f"{type(error).__name__}: {error}", traceback.format_exc())


def _checked(outcome: object, task: Task) -> Outcome:
    """The outcome, if it is one of this trial; what a method built without validation is validated here."""
    if not isinstance(outcome, Outcome):
        raise OutcomeError(f"{task.method.card.name}.run returned {type(outcome).__name__}, not an Outcome")
    outcome = Outcome.model_validate(outcome.model_dump(mode="json"))
    if outcome.trial.key != task.trial.key:
        raise OutcomeError(f"the outcome is of {outcome.trial}, not of {task.trial}")
    if not outcome.metrics:
        raise OutcomeError("the outcome has no metrics")
    if outcome.artifact is not None and not (task.folder.path / outcome.artifact).exists():
        raise OutcomeError(f"the artifact {outcome.artifact} is not in {task.folder.path}")
    return outcome


class SerialExecutor:
    """One trial after the other in this process: for tests, notebooks and debuggers."""

    def run(self, tasks: Sequence[Task], monitor: Monitor) -> Iterator[Result]:
        """Run the tasks in order."""
        for task in tasks:
            monitor.started(task.trial)

            def report(description: str, done: float, total: float | None, trial: Trial = task.trial) -> None:
                monitor.progressed(trial, description, done, total)

            yield execute(task, report)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class _Worker:
    """A worker process and the task it runs, if any."""

    process: SpawnProcess
    pipe: Connection
    task: Task | None = None


def _stop(workers: Sequence[_Worker]) -> None:
    """Let idle worker processes end, interrupt the others so that they can clean up; kill what stays."""
    for worker in workers:
        worker.pipe.close()
        if worker.task and worker.process.is_alive() and worker.process.pid:
            os.kill(worker.process.pid, signal.SIGINT)
    deadline = time.monotonic() + _SECONDS_TO_CLEAN_UP
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.process.kill()
        worker.process.join()


class LocalExecutor:
    """Worker processes on this machine. The crash of one is a failed trial; the others go on.

    Args:
        workers: how many; by default one for each core.
        threads: of each; by default the cores are shared out evenly.
    """

    def __init__(self, workers: int | None = None, threads: int | None = None) -> None:
        self.workers = workers or available_cores()
        self.threads = threads or max(1, available_cores() // self.workers)

    def run(self, tasks: Sequence[Task], monitor: Monitor) -> Iterator[Result]:
        """Run the tasks on at most as many workers as there are tasks."""
        queue = deque(tasks)
        workers: list[_Worker] = []
        try:
            while queue or workers:
                while queue and len(workers) < self.workers:
                    workers.append(self._start())
                for worker in workers:
                    if worker.task is None and queue:
                        self._assign(worker, queue.popleft(), monitor)
                idle = [worker for worker in workers if worker.task is None]
                workers = [worker for worker in workers if worker.task]
                _stop(idle)
                if workers:
                    yield from self._listen(workers, monitor)
        finally:
            _stop(workers)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.threads), name="tradeoff worker")
        process.start()
        theirs.close()
        return _Worker(process, ours)

    @staticmethod
    def _assign(worker: _Worker, task: Task, monitor: Monitor) -> None:
        worker.task = task
        monitor.started(task.trial)
        with suppress(BrokenPipeError):  # the process died: the listener finds that out and says how
            worker.pipe.send(task)

    @staticmethod
    def _listen(workers: list[_Worker], monitor: Monitor) -> Iterator[Result]:
        """Wait for news and handle it; remove workers that died."""
        ready = wait([worker.pipe for worker in workers])
        for worker in [worker for worker in workers if worker.pipe in ready]:
            assert worker.task is not None
            trial = worker.task.trial
            try:
                message = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                workers.remove(worker)
                _stop([worker])
                yield Result(trial, Status.FAILED, _cause_of_death(worker.process.exitcode))
                continue
            if isinstance(message, Result):
                worker.task = None
                yield message
            elif message[0] == "progress":
                monitor.progressed(trial, *message[1:])
            else:
                monitor.logged(trial, *message[1:])


def _cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"{TrialFailed.__name__}: the worker process was killed by {signal.Signals(-code).name}"
    return f"{TrialFailed.__name__}: the worker process ended with status {code}"


def _serve(connection: Connection, threads: int) -> None:
    """Main function of a worker process: run tasks from the pipe until it closes."""
    _leave_no_orphans()
    pipe = _SharedPipe(connection)
    os.dup2(2, 1)  # a trial that prints must not disturb what the command writes to standard output
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    warnings.showwarning = _log_warning
    logging.getLogger("tradeoff").setLevel(logging.INFO)
    logging.getLogger().addHandler(_PipeHandler(pipe))
    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            task = connection.recv()
            pipe.send(execute(task, _throttled(pipe)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of a process is no place for an interruption


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    logging.getLogger("py.warnings").warning("%s", warning_line(message, category, filename, lineno))


class _SharedPipe:
    """The sending end of a pipe for several threads: results, progress and log lines must not mix."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: object) -> None:
        """Send one message whole."""
        with self._lock:
            self._connection.send(message)


def _leave_no_orphans() -> None:
    """Make this process a group of its own, which dies as a whole when the process that started it dies.

    A terminal's Ctrl-C then reaches the starter only, which interrupts each worker once.
    """
    parent = multiprocessing.parent_process()
    if os.name != "posix" or parent is None:
        return
    os.setpgid(0, 0)

    def watch() -> None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="watch the starter").start()


def _throttled(pipe: _SharedPipe) -> ReportProgress:
    """Sends progress through the pipe, at most ten times a second and always at the end of a step."""
    last = 0.0

    def report(description: str, done: float, total: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_INTERVAL or done == total:
            last = now
            pipe.send(("progress", description, done, total))

    return report


class _PipeHandler(logging.Handler):
    """Sends log lines through the worker's pipe."""

    def __init__(self, pipe: _SharedPipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line; a closed pipe means that nobody listens any more."""
        with suppress(OSError):
            self._pipe.send(("log", record.levelno, self.format(record)))


class RayExecutor:
    """Tasks on a Ray cluster: that of ``RAY_ADDRESS``, else one that is started on this machine.

    The run folder must be on a file system that all nodes share.

    Args:
        threads: cores that each trial takes.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def run(self, tasks: Sequence[Task], monitor: Monitor) -> Iterator[Result]:
        """Run the tasks where the cluster has room.

        Raises:
            MissingExtra: Ray is not installed.
        """
        try:
            import ray
        except ImportError:
            raise MissingExtra("ray", "distributed") from None
        started_here = not ray.is_initialized()
        if started_here:
            search_path = os.pathsep.join(filter(None, sys.path))
            ray.init(
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": search_path}},
            )
        remote = ray.remote(num_cpus=self.threads, max_retries=0)(_execute_quietly)
        running = {remote.remote(task): task for task in tasks}
        for task in tasks:
            monitor.started(task.trial)
        try:
            while running:
                [reference], _ = ray.wait(list(running))
                yield self._result(ray, reference, running.pop(reference))
        finally:
            if started_here:
                ray.shutdown()

    @staticmethod
    def _result(ray: Any, reference: Any, task: Task) -> Result:
        try:
            result: Result = ray.get(reference)
        except ray.exceptions.RayError as error:
            return Result(task.trial, Status.FAILED, f"{TrialFailed.__name__}: {error}")
        if result.status is Status.DONE and task.folder.load(task.trial) is None:
            reason = f"no outcome arrived; {task.folder.path} must be on a file system all nodes share"
            return Result(task.trial, Status.FAILED, f"{StoreError.__name__}: {reason}")
        return result


def _execute_quietly(task: Task) -> Result:
    return execute(task, lambda description, done, total: None)
