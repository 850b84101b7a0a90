"""The kernel tests again, with the extension built with the address and undefined-behavior sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent

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


@pytest.fixture(scope="module")
def sanitizer(tmp_path_factory: pytest.TempPathFactory, require) -> str:
    """Path of the address sanitizer's library, of a compiler whose sanitizers work."""
    compiler = shutil.which("g++")
    require(compiler and shutil.which("cmake"), "building with sanitizers needs g++ and cmake")
    folder = tmp_path_factory.mktemp("overrun")
    source = folder / "overrun.cpp"
    source.write_text(OVERRUN)
    built = run([compiler, "-fsanitize=address,undefined", str(source), "-o", str(folder / "overrun")])
    require(built.returncode == 0, f"g++ has no sanitizers: {built.stderr}")
    assert "heap-buffer-overflow" in run([str(folder / "overrun")]).stderr
    return run([compiler, "-print-file-name=libasan.so"]).stdout.strip()


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory, sanitizer: str) -> Path:
    """The extension, built with sanitizers into a temporary folder."""
    build = tmp_path_factory.mktemp("sanitized")
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
    return module


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("instructions", ["best", "portable"])
def test_kernels_are_clean_under_sanitizers(extension: Path, sanitizer: str, instructions: str) -> None:
    tests = [str(HERE / f"test_{name}.py") for name in ("ring", "bits", "elementwise")]
    result = run(
        [
            *(sys.executable, "-c", RUN, str(extension), *tests, "-q", "-x", "--import-mode=importlib"),
            *("-k", "native and not realistic and not without", "-p", "no:cacheprovider", "-p", "no:xdist"),
        ],
        LD_PRELOAD=sanitizer,
        ASAN_OPTIONS="detect_leaks=0",  # the interpreter itself frees little at its end
        TRADEOFF_ISA="portable" if instructions == "portable" else "",
        OMP_NUM_THREADS="2",
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " passed" in result.stdout
