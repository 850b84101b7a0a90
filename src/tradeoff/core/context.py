"""What a trial gets from its runner: device, randomness, a work folder, a shared cache, progress, a log."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DeviceError
from .files import digest, sync_folder, write_json

if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True)
class Progress:
    """How far a step of a trial is: ``report(description, done, total)`` receives each advance."""

    description: str
    total: float | None
    report: Callable[[str, float, float | None], None]
    _done: list[float] = field(default_factory=lambda: [0.0])

    def advance(self, amount: float = 1) -> None:
        """Count ``amount`` more of the total as done."""
        self._done[0] += amount
        self.report(self.description, self._done[0], self.total)


@dataclass(frozen=True)
class Context:
    """What a trial may use of its surroundings.

    Attributes:
        seed: the trial's seed.
        requested_device: a torch device, or ``auto``; see :attr:`device`.
        work: this trial's folder for artifacts and checkpoints. After an interruption it still holds what the
            first attempt left, so that training can resume.
        cache_root: where :meth:`cache` keeps its folders.
        log: its lines reach the user as warnings and notes of this trial.
        report: receives the progress.
    """

    seed: int
    requested_device: str
    work: Path
    cache_root: Path
    log: logging.Logger
    report: Callable[[str, float, float | None], None] = lambda description, done, total: None

    @cached_property
    def device(self) -> str:
        """The torch device to work on: the requested one, else the first accelerator, else ``cpu``.

        Raises:
            DeviceError: the requested one is not here.
        """
        return usable_device(self.requested_device)

    @cached_property
    def generator(self) -> "numpy.random.Generator":
        """Random numbers from the trial's seed: the same for every variant, so comparisons are paired."""
        import numpy

        return numpy.random.default_rng(self.seed)

    def cache(self, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """A folder that trials share, such as a trained teacher, built once.

        Args:
            key: everything that the content depends on, as JSON.
            build: fills the empty folder it is given. Other processes that need the same key wait; if it
                raises or is killed, nothing is kept and the next caller builds again.

        Returns:
            The complete folder. Do not write into it.
        """
        return cached_folder(self.cache_root, key, build)

    def artifact(self, path: Path) -> str:
        """How an outcome names a file or folder inside :attr:`work`: its path relative to the run folder."""
        return path.relative_to(self.work.parents[1]).as_posix()

    @contextmanager
    def progress(self, total: float | None, description: str) -> Iterator[Progress]:
        """Show a step of the trial: ``with context.progress(epochs, "training") as bar: bar.advance(1)``."""
        self.report(description, 0, total)
        yield Progress(description, total, self.report)


def usable_device(name: str) -> str:
    """The name of a torch device that works here; ``auto`` gives the first accelerator, else ``cpu``.

    Raises:
        DeviceError: torch knows no such device, or this machine has none.
    """
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator.type if accelerator else "cpu"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def cached_folder(root: Path, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder under ``root`` that ``key`` names, built once under a lock; see :meth:`Context.cache`."""
    from filelock import FileLock

    folder = root / digest(key)
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{folder.name}.lock"):
        if folder.is_dir():
            return folder
        # Only the holder of the lock builds, so an existing partial folder is a dead process's.
        partial = root / f"{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        build(partial)
        write_json(partial / "key.json", key)
        for path in partial.rglob("*"):
            if path.is_dir():
                sync_folder(path)
        partial.rename(folder)
        sync_folder(root)
    return folder
