"""Where no compiler is, installing still gives a package that works."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USE = """
import sys, warnings
sys.path[:] = sys.argv[1:]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from tradeoff.engines.kernels import Graph, kernel_info, maxk, spmm
    graph = Graph.from_coo([0, 1], [1, 0])
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(spmm(graph, x), x.flip(0))
    assert maxk(x, 1).index.tolist() == [[1], [1]]
told = [str(w.message)[:40] for w in caught if "compiled kernels" in str(w.message)]
print(kernel_info().cpu_backend, told)
"""


@pytest.mark.slow
def test_a_package_built_without_a_compiler_falls_back_with_one_warning(tmp_path: Path, require) -> None:
    require(
        importlib.util.find_spec("scikit_build_core"), "building without isolation needs scikit-build-core"
    )
    source, folder = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt", "native", "src"):
        (source / name).symlink_to(ROOT / name)
    built = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"),
            *(
                "--config-settings",
                f"build-dir={tmp_path / 'build'}",
                "--wheel-dir",
                str(tmp_path),
                str(source),
            ),
        ],
        env={**os.environ, "CC": "/bin/false", "CXX": "/bin/false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*-none-any.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    # Without site: its hooks would find the extension of this checkout.
    others = [path for path in sys.path if path and Path(path) != ROOT / "src"]
    used = subprocess.run(
        [sys.executable, "-S", "-c", USE, str(folder), *others], capture_output=True, text=True, check=False
    )
    assert used.stdout == "torch ['the compiled kernels are not usable (No ']\n", used.stderr
