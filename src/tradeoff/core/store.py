"""The run folder: one JSON file per trial, written whole or not at all, shared safely by several processes.

Layout of ``runs/NAME/<recipe-hash>/``::

    recipe.json               the method's name and the recipe
    trials/<trial-key>.json   one outcome each
    artifacts/<trial-key>/    what the trial leaves
    locks/<trial-key>.json    who is running the trial: host, process and its start
    report.html, report.png
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import StoreError, TradeoffError, UnknownName
from .files import parse_json, read_bounded, read_json, write_json
from .outcome import Outcome
from .recipe import Recipe
from .trial import Trial

_START_TOLERANCE = 2.0
"""Seconds by which two readings of one process's start may differ."""


class Holder(BaseModel):
    """Who holds a trial: a process, told apart from a later one with the same number by its start."""

    model_config = ConfigDict(extra="forbid")

    host: str
    pid: int
    start: float

    @classmethod
    def current(cls) -> "Holder":
        """This process."""
        return cls(host=socket.gethostname(), pid=os.getpid(), start=psutil.Process().create_time())

    @property
    def here(self) -> bool:
        """Whether the process is one of this host."""
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Whether the process runs still; one on another host is taken to."""
        if not self.here:
            return True
        try:
            process = psutil.Process(self.pid)
            return (
                process.status() != psutil.STATUS_ZOMBIE
                and abs(process.create_time() - self.start) < _START_TOLERANCE
            )
        except (psutil.NoSuchProcess, OverflowError, ValueError):
            return False


def parse_outcome(data: bytes, source: str) -> Outcome:
    """Read an outcome from JSON of unknown origin.

    Raises:
        StoreError: it is no JSON within bounds, or no outcome.
    """
    try:
        return Outcome.model_validate(parse_json(data, source))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise StoreError(f"{source}: not an outcome ({place}: {first['msg']})") from None
    except StoreError:
        raise
    except TradeoffError as error:  # such as a quantity that this version does not know
        raise StoreError(f"{source}: not an outcome ({error})") from None


@dataclass(frozen=True)
class RunFolder:
    """The stored outcomes of one method under one recipe."""

    path: Path

    @classmethod
    def of(cls, runs: Path, method: str, recipe: Recipe) -> "RunFolder":
        """The folder of a recipe, whether or not it exists."""
        return cls(runs.absolute() / method / recipe.hash)

    @classmethod
    def create(cls, runs: Path, method: str, recipe: Recipe) -> "RunFolder":
        """Make the folder of a recipe, or open it where it exists.

        Raises:
            StoreError: it cannot be written.
        """
        folder = cls.of(runs, method, recipe)
        write_json(folder.path / "recipe.json", {"method": method, "recipe": recipe.model_dump(mode="json")})
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run folder.

        Raises:
            UnknownName: there is none.
        """
        if not (path / "recipe.json").is_file():
            raise UnknownName(f"{path} is not a run folder: it has no recipe.json")
        return cls(path.absolute())

    @property
    def shown(self) -> str:
        """The path as a user would type it: relative where it lies below the current folder."""
        here = Path.cwd()
        return str(self.path.relative_to(here) if self.path.is_relative_to(here) else self.path)

    @property
    def header(self) -> tuple[str, dict[str, Any]]:
        """Name of the method, and the recipe's values.

        Raises:
            StoreError: ``recipe.json`` is damaged.
        """
        header = read_json(self.path / "recipe.json")
        match header:
            case {"method": str(method), "recipe": dict(recipe)}:
                return method, recipe
        raise StoreError(f"{self.path / 'recipe.json'}: must hold a method and a recipe")

    def work(self, trial: Trial) -> Path:
        """The trial's folder for artifacts; exists after the call."""
        folder = self.path / "artifacts" / trial.key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def load(self, trial: Trial) -> Outcome | None:
        """The stored outcome of a trial, or None where there is none or its file is damaged."""
        try:
            return self._read(self._file(trial))
        except StoreError:
            return None

    def scan(self) -> tuple[dict[str, Outcome], list[str]]:
        """All outcomes by trial key, and a line for each file that is corrupt or foreign.

        Those files are left where they are.
        """
        outcomes: dict[str, Outcome] = {}
        problems = []
        for path in sorted((self.path / "trials").glob("[!.]*")):
            try:
                outcomes[path.stem] = self._read(path)
            except StoreError as error:
                problems.append(str(error))
        return outcomes, problems

    def save(self, outcome: Outcome) -> None:
        """Store an outcome. A damaged file in its place is kept under another name.

        Raises:
            StoreError: it cannot be written.
        """
        path = self._file(outcome.trial)
        if path.exists() and self.load(outcome.trial) is None:
            path.rename(path.with_name(f"{path.name}.damaged-{time.time_ns()}"))
        write_json(path, outcome.model_dump(mode="json"))

    @contextmanager
    def claim(self, trial: Trial) -> Iterator[bool]:
        """Claim a trial for this process while the block runs; gives False where another holds it."""
        lock = self.lock(trial)
        with self._guard():
            claimed = self.holder(trial) is None
            if claimed:
                write_json(lock, Holder.current().model_dump())
        try:
            yield claimed
        finally:
            if claimed:
                lock.unlink(missing_ok=True)

    def holder(self, trial: Trial) -> Holder | None:
        """The living process that holds a trial; a dead one's claim, or a damaged one, is void."""
        try:
            holder = Holder.model_validate(read_json(self.lock(trial)))
        except (StoreError, ValidationError):
            return None
        return holder if holder.alive else None

    def held(self, trials: Iterable[Trial]) -> dict[Trial, Holder]:
        """Those trials that have no outcome and are held by a living process."""
        holders = {trial: self.holder(trial) for trial in trials if self.load(trial) is None}
        return {trial: holder for trial, holder in holders.items() if holder}

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Makes reading and writing a claim one step; the system frees it when its holder dies."""
        from filelock import FileLock

        locks = self.path / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / ".guard"):
            yield

    def _file(self, trial: Trial) -> Path:
        return self.path / "trials" / f"{trial.key}.json"

    def lock(self, trial: Trial) -> Path:
        """The file that says who runs a trial."""
        return self.path / "locks" / f"{trial.key}.json"

    def _read(self, path: Path) -> Outcome:
        if path.suffix != ".json":
            raise StoreError(f"{path}: not a file of the store")
        outcome = parse_outcome(read_bounded(path), str(path))
        if outcome.trial.key != path.stem:
            raise StoreError(f"{path}: holds the outcome of another trial ({outcome.trial})")
        return outcome


def latest_run(runs: Path, method: str) -> RunFolder:
    """The run of a method that was written last.

    Raises:
        UnknownName: the method has no run there.
    """
    headers = sorted((runs / method).glob("*/recipe.json"), key=lambda path: path.stat().st_mtime)
    if not headers:
        raise UnknownName(f"no run of {method} in {runs}; make one: tradeoff run {method}")
    return RunFolder.open(headers[-1].parent)
