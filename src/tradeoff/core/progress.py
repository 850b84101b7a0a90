"""Progress of a run on standard error: bars on a terminal, lines elsewhere."""

import logging
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from .executors import Monitor, Result, Status
from .trial import Trial

_LEVEL_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}


class ConsoleMonitor(Monitor):
    """Shows the trials of a run as they go; a context manager.

    Args:
        console: of standard error.
        pending: how many trials there are to run.
    """

    def __init__(self, console: Console, pending: int) -> None:
        self._console = console
        self._pending = pending
        self._finished = 0
        self._bars: dict[Trial, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._overall = self._progress.add_task("trials", total=pending)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, trial: Trial) -> None:
        """Show a bar for the trial."""
        self._bars[trial] = self._progress.add_task(str(trial), total=None)

    def progressed(self, trial: Trial, description: str, done: float, total: float | None) -> None:
        """Move the trial's bar."""
        if trial in self._bars:
            text = f"{trial}: {description}"
            self._progress.update(self._bars[trial], description=text, completed=done, total=total)

    def logged(self, trial: Trial | None, level: int, message: str) -> None:
        """Print the line above the bars."""
        text = f"{trial}: {message}" if trial else message
        self._console.print(Text(text, style=_LEVEL_STYLES.get(level, "dim")))

    def finished(self, result: Result) -> None:
        """Replace the trial's bar by a line where it failed, or where there are no bars."""
        self._finished += 1
        self._progress.update(self._overall, completed=self._finished)
        bar = self._bars.pop(result.trial, None)
        if bar is not None:
            self._progress.remove_task(bar)
        if result.status is Status.FAILED:
            self._console.print(Text(f"failed: {result.trial}: {result.error}", style="red"))
        elif not self._console.is_terminal:
            self._console.print(Text(f"{self._finished} of {self._pending}: {result.trial}"))
