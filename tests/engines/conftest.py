"""The extension built with sanitizers, once for the tests of all engines."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import filelock
import pytest

ROOT = Path(__file__).parents[2]

# Run the kernel tests with the extension at argv[1] in place of the installed one.
RUN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tradeoff._native", sys.argv[1])
sys.modules["tradeoff._native"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["tradeoff._native"])
import hypothesis, pytest
hypothesis.settings.register_profile("short", max_examples=15, deadline=None)
hypothesis.settings.load_profile("short")
sys.exit(pytest.main(sys.argv[2:]))
"""

# Reads one element too many, so that a sanitizer that is not at work is noticed.
OVERRUN = """
#include <vector>
int main(int count, char **) { std::vector<long> x(count); return int(x.data()[count]); }
"""


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1100, env={**os.environ, **environment}, check=False
    )


@pytest.fixture(scope="session")
def sanitizer(tmp_path_factory: pytest.TempPathFactory, require) -> str:
    """What to load before Python: the address sanitizer, and C++'s library, whose ``throw`` it wraps."""
    compiler = shutil.which("g++")
    require(compiler and shutil.which("cmake"), "building with sanitizers needs g++ and cmake")
    folder = tmp_path_factory.mktemp("overrun")
    source = folder / "overrun.cpp"
    source.write_text(OVERRUN)
    built = run([compiler, "-fsanitize=address,undefined", str(source), "-o", str(folder / "overrun")])
    require(built.returncode == 0, f"g++ has no sanitizers: {built.stderr}")
    assert "heap-buffer-overflow" in run([str(folder / "overrun")]).stderr
    names = ("libasan.so", "libstdc++.so")
    return " ".join(run([compiler, f"-print-file-name={name}"]).stdout.strip() for name in names)


@pytest.fixture(scope="session")
def sanitized_extension(tmp_path_factory: pytest.TempPathFactory, sanitizer: str) -> Path:
    """The extension, built with sanitizers into a temporary folder that the processes of one run share."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with filelock.FileLock(shared / "sanitized.lock"):
        return built_extension(shared / "sanitized")


def built_extension(build: Path) -> Path:
    if (build / "complete").exists():
        return next(build.glob("_native*.so"))
    configured = run(
        [
            *("cmake", "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"),
            *("-DTRADEOFF_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=", "-DCMAKE_CXX_FLAGS=-O1"),
        ]
    )
    assert configured.returncode == 0, configured.stderr
    made = run(["cmake", "--build", str(build), "--parallel", "2"])
    assert made.returncode == 0, made.stdout + made.stderr
    (module,) = build.glob("_native*.so")
    (build / "complete").touch()
    return module


@pytest.fixture(scope="session")
def run_sanitized(sanitized_extension: Path, sanitizer: str) -> Callable[[Sequence[Path], str, str], None]:
    """Runs test files with the extension that has sanitizers: ``run(files, expression of -k, instructions)``.

    ``instructions`` is ``best`` or what ``TRADEOFF_ISA`` takes.
    """

    def run_tests(files: Sequence[Path], chosen: str, instructions: str) -> None:
        result = run(
            [
                *(sys.executable, "-c", RUN, str(sanitized_extension), *map(str, files), "-q", "-x"),
                *("--import-mode=importlib", "-k", chosen, "-p", "no:cacheprovider", "-p", "no:xdist"),
                "--capture=sys",  # a sanitizer writes to the file, and ends the process
            ],
            LD_PRELOAD=sanitizer,
            ASAN_OPTIONS="detect_leaks=0",  # the interpreter itself frees little at its end
            TRADEOFF_ISA="" if instructions == "best" else instructions,
            OMP_NUM_THREADS="2",
        )
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
        assert " passed" in result.stdout

    return run_tests
