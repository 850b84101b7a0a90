"""The peers' own Python environments, made once under the user's cache folder."""

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs


@dataclass(frozen=True)
class Environment:
    """A virtual environment with pinned packages.

    Attributes:
        name: of its folder, `PEER-VERSION`.
        requirements: installed with their dependencies.
        alone: installed afterwards without: their declared dependencies no longer install.
        stands_on_this: whether it also sees the packages of the interpreter that makes it, for peers that are
            timed in one process with this project.
    """

    name: str
    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()
    stands_on_this: bool = False

    @property
    def folder(self) -> Path:
        return platformdirs.user_cache_path("tradeoff") / "peers" / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def make(self) -> None:
        """Creates the environment unless it is complete; an interrupted or outdated one is made anew."""
        digest = hashlib.sha256(
            repr((self.requirements, self.alone, sys.version_info[:2], self._packages_seen())).encode()
        ).hexdigest()
        marker = self.folder / "complete"
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder.with_suffix(".lock")):
            if marker.exists() and marker.read_text() == digest:
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
            pip = [str(self.python), "-m", "pip", "install", "--quiet"]
            if self.requirements:
                subprocess.run([*pip, *self.requirements], check=True)
            if self.alone:
                subprocess.run([*pip, "--no-deps", *self.alone], check=True)
            for index, seen in enumerate(self._packages_seen()):
                # addsitedir, unlike a plain path, also follows editable installations.
                own = sysconfig.get_path("purelib", vars={"base": str(self.folder)})
                line = f"import site; site.addsitedir({seen!r})\n"
                Path(own, f"stands_on_{index}.pth").write_text(line)
            marker.write_text(digest)

    def _packages_seen(self) -> tuple[str, ...]:
        """Folders of packages of this interpreter that the environment sees after its own."""
        if not self.stands_on_this:
            return ()
        return tuple(path for path in sys.path if path.endswith("site-packages"))

    def versions(self) -> dict[str, str]:
        """Installed distributions and their versions."""
        listed = subprocess.run(
            [str(self.python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
            capture_output=True,
            text=True,
            check=True,
        )
        return {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}


CRYPTEN = Environment(
    "crypten-0.4.1",
    ("torch==2.13.0", "numpy", "omegaconf", "onnx==1.16.2", "protobuf<5", "ml_dtypes", "pyyaml"),
    alone=("crypten==0.4.1",),
)
SPU = Environment("spu-0.9.5", ("spu==0.9.5", "jax==0.4.34", "jaxlib==0.4.34", "numpy==1.26.4"))
# Later versions of DGL are not on PyPI for Linux; the CPU kernels of this one load beside current torch once
# the module that does not is replaced (peers/dgl_products.py).
DGL = Environment(
    "dgl-2.1.0",
    ("pandas<3", "requests", "tqdm", "psutil"),
    alone=("dgl==2.1.0", "torchdata==0.7.1"),
    stands_on_this=True,
)
AIHWKIT = Environment("aihwkit-lightning-2.1.0", (), alone=("aihwkit-lightning==2.1.0",), stands_on_this=True)
