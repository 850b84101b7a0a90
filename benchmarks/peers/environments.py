"""The peers' own Python environments, made once under the user's cache folder."""

import hashlib
import json
import shutil
import subprocess
import sys
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
    """

    name: str
    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return platformdirs.user_cache_path("tradeoff") / "peers" / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def make(self) -> None:
        """Creates the environment unless it is complete; an interrupted or outdated one is made anew."""
        digest = hashlib.sha256(
            repr((self.requirements, self.alone, sys.version_info[:2])).encode()
        ).hexdigest()
        marker = self.folder / "complete"
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder.with_suffix(".lock")):
            if marker.exists() and marker.read_text() == digest:
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
            pip = [str(self.python), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, *self.requirements], check=True)
            if self.alone:
                subprocess.run([*pip, "--no-deps", *self.alone], check=True)
            marker.write_text(digest)

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
