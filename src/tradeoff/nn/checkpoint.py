"""One safetensors file that holds a training in progress: tensors, and everything else as JSON in its header.

Nothing is pickled, and the file is replaced in one rename: a kill at any moment leaves the last whole one.
"""

import json
import os
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save
from torch import Tensor

from tradeoff.core.errors import TradeoffError


class CheckpointMismatch(TradeoffError, ValueError):
    """A checkpoint is corrupt, or belongs to another training."""


def save_checkpoint(path: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Write ``tensors`` and the JSON values ``progress`` to ``path``, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A tensor with shared or non-contiguous memory has no place in the format: each is copied.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = save(copies, metadata={"progress": json.dumps(progress)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_checkpoint` wrote.

    Raises:
        CheckpointMismatch: the file is truncated, or is no checkpoint.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            progress = json.loads((file.metadata() or {})["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointMismatch(
            f"{path} is no training checkpoint, or a damaged one; remove it to start anew"
        ) from error
    return tensors, progress
