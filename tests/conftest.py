"""Helpers of the whole suite."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import hypothesis
import pytest

# Test processes run beside each other; before any of them loads torch, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no failure.
hypothesis.settings.register_profile("tradeoff", deadline=None)
hypothesis.settings.load_profile("tradeoff")

TOY = Path(__file__).parent / "contract" / "toy_package"


def require(condition: object, reason: str) -> None:
    """Skip the test where something optional is absent, or fail it where the suite must be complete.

    Args:
        condition: whether what the test needs is here.
        reason: what is missing and how to get it.
    """
    if not condition:
        if os.environ.get("TRADEOFF_REQUIRE_ALL") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(name="require", scope="session")
def _require() -> Callable[[object, str], None]:
    """:func:`require` as a fixture, for test modules that cannot import this file."""
    return require


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that has the toy method installed as pip would install it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(TOY / "src" / "toy_rounding", folder / "toy_rounding")
    facts = folder / "toy_rounding-1.2.3.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-rounding\nVersion: 1.2.3\n")
    (facts / "entry_points.txt").write_text(
        "[tradeoff.methods]\ntoy-rounding = toy_rounding.study:ToyRounding\n\n"
        "[tradeoff.commands]\ntoy-rounding = toy_rounding.commands:app\n"
    )
    return folder


@pytest.fixture(scope="session")
def tradeoff(site: Path) -> "Tradeoff":
    """The command line as a user types it, with the toy method installed."""
    return Tradeoff([site])


class Tradeoff:
    """Runs ``tradeoff`` in a process of its own.

    Args:
        packages: folders of packages that are installed besides the usual ones.
    """

    def __init__(self, packages: Sequence[Path]) -> None:
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, packages)),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def start(self, *words: str, cwd: Path, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start a command and return its process."""
        return subprocess.Popen(
            [sys.executable, "-m", "tradeoff", *words],
            cwd=cwd,
            env={**self.environment, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A suite that runs in the background may have inherited that interrupts are ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def __call__(
        self, *words: str, cwd: Path, env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        process = self.start(*words, cwd=cwd, env=env)
        stdout, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
