"""What works on this machine, and how to get the rest."""

import os
import platform
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from . import native
from .errors import MissingTool
from .executors import available_cores
from .provenance import processor
from .sandbox import sandbox_kind
from .tools import KNOWN_TOOLS


@dataclass(frozen=True)
class Examined:
    """One thing that was looked for.

    Attributes:
        found: whether it is here and works.
        detail: what is here, or what is missing.
        remedy: how to get it; empty where it is found.
    """

    area: str
    name: str
    found: bool
    detail: str
    remedy: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def examine() -> list[Examined]:
    """Look at the machine, the extras, native code, outside tools, the sandbox and the data."""
    return [*_machine(), *_extras(), _native(), *_tools(), _sandbox(), _data()]


def examination_table(findings: Iterable[Examined]) -> Table:
    """The findings for people."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("", "what", "found", "how to get it"):
        table.add_column(name, overflow="fold")
    area = ""
    for finding in findings:
        if area and finding.area != area:
            table.add_section()
        area = finding.area
        mark = Text("ok", style="green") if finding.found else Text("--", style="yellow")
        table.add_row(mark, Text(f"{area}: {finding.name}"), Text(finding.detail), Text(finding.remedy))
    return table


def _machine() -> Iterator[Examined]:
    yield Examined("machine", "python", True, f"{platform.python_version()} at {sys.executable}")
    memory = psutil.virtual_memory().total / 2**30
    yield Examined(
        "machine", "processor", True, f"{processor()}, {available_cores()} cores, {memory:.0f} GiB"
    )
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    detail = (
        f"{accelerator.type} (torch {torch.__version__})"
        if accelerator
        else f"none for torch {torch.__version__}"
    )
    yield Examined("machine", "accelerator", accelerator is not None, detail)


def _extras() -> Iterator[Examined]:
    """Each extra of this project, with the versions of what it brings or the names of what is missing."""
    wanted: dict[str, list[str]] = {}
    for requirement in metadata.requires("tradeoff") or []:
        match = re.match(r"([\w.-]+).*extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if match and match[1] != "tradeoff":
            wanted.setdefault(match[2], []).append(match[1])
    for extra, packages in wanted.items():
        versions = {package: _installed(package) for package in packages}
        missing = [package for package, version in versions.items() if version is None]
        here = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
        detail = f"missing: {', '.join(missing)}" if missing else here
        remedy = f"pip install 'tradeoff[{extra}]'" if missing else ""
        yield Examined("extra", extra, not missing, detail, remedy)


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _native() -> Examined:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", native.NativeMissingWarning)
        found = native.instruction_set() is not None
    remedy = "" if found else "apt-get install g++, then install tradeoff again"
    return Examined("native", "compiled kernels", found, native.describe(), remedy)


def _tools() -> Iterator[Examined]:
    for tool in KNOWN_TOOLS:
        try:
            yield Examined("tool", tool.name, True, f"{tool.find()}: {tool.version}")
        except MissingTool:
            yield Examined("tool", tool.name, False, "absent", tool.package)


def _sandbox() -> Examined:
    kind = sandbox_kind()
    if kind:
        return Examined("sandbox", "programs that a model wrote", True, f"boxed by {kind}")
    remedy = "apt-get install bubblewrap, and allow user namespaces if the system forbids them"
    return Examined("sandbox", "programs that a model wrote", False, "none works: they will not run", remedy)


def _data() -> Examined:
    root = os.environ.get("TRADEOFF_DATA")
    if not root:
        remedy = "set TRADEOFF_DATA to a folder of data sets to use local copies"
        return Examined(
            "data", "TRADEOFF_DATA", False, "not set: data sets are embedded or downloaded", remedy
        )
    if not Path(root).is_dir():
        return Examined("data", "TRADEOFF_DATA", False, f"{root} is no folder", "correct the variable")
    folders = sorted(path.name for path in Path(root).iterdir() if path.is_dir())
    return Examined("data", "TRADEOFF_DATA", True, f"{root}: {', '.join(folders) or 'empty'}")
