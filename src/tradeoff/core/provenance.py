"""Where an outcome comes from: machine, versions, commit and times."""

import hashlib
import importlib.util
import inspect
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from .context import Context
from .method import Method
from .outcome import Provenance

_LIBRARIES = ("numpy", "scipy", "torch", "transformers")


@contextmanager
def describe_run(method: Method[Any], context: Context) -> Iterator[Callable[[], Provenance]]:
    """Times the block and describes its surroundings; call what it gives after the block."""
    started = datetime.now(UTC)
    clock = time.perf_counter()
    seconds = 0.0

    def provenance() -> Provenance:
        return Provenance(
            host=platform.node(),
            machine=f"{platform.system()} {platform.machine()}, {processor()}",
            cores=os.cpu_count() or 1,
            threads=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
            device=context.device if "torch" in sys.modules else "cpu",
            versions=_versions(type(method).__module__.partition(".")[0]),
            commit=commit_of(Path(inspect.getfile(type(method)))),
            started=started,
            seconds=seconds,
        )

    yield provenance
    seconds = time.perf_counter() - clock


@lru_cache
def processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def _versions(package: str) -> dict[str, str]:
    """Versions of Python, of this project, of the method's package and of the libraries that were loaded."""
    versions = {"python": platform.python_version()}
    for name in dict.fromkeys(["tradeoff", package, *(lib for lib in _LIBRARIES if lib in sys.modules)]):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@lru_cache
def commit_of(source: Path) -> str | None:
    """The git commit that a source file belongs to, with ``-dirty`` after local changes; None outside git."""
    git = ["git", "-C", str(source.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", source.name], check=True, capture_output=True)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


@lru_cache
def source_digest(*names: str) -> str:
    """16 hexadecimal characters that change with the code of modules and packages, subpackages included.

    For keys of :meth:`Context.cache`: what an earlier version of the code made is not taken for today's.

    Args:
        names: importable, such as ``tradeoff.nn``.

    Raises:
        ModuleNotFoundError: one has no source here.
    """
    content = hashlib.sha256()
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"no source of a module {name!r}")
        origin = Path(spec.origin)
        paths = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
        for path in paths:
            source = path.read_bytes()
            content.update(f"{name} {path.relative_to(origin.parent)} {len(source)}\n".encode() + source)
    return content.hexdigest()[:16]
