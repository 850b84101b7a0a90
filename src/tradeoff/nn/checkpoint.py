"""One safetensors file that holds a training in progress: tensors, and everything else as JSON in its header.

Nothing is pickled, and the file is replaced in one rename: a kill at any moment leaves the last whole one.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor

from tradeoff.core.errors import TradeoffError
from tradeoff.core.files import read_json, write_json


class CheckpointMismatch(TradeoffError, ValueError):
    """A checkpoint is corrupt, or belongs to another training."""


class CheckpointInUse(TradeoffError, RuntimeError):
    """Another process is writing this checkpoint."""


@contextmanager
def hold_checkpoint(path: Path) -> Iterator[None]:
    """Keep other processes from training with the same checkpoint while the block runs.

    The claim is a locked file beside it, which the operating system frees however this process ends.

    Raises:
        CheckpointInUse: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointInUse(
            f"another process is training with {path}; wait for its end, or give another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


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


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder for the checkpoints of one training, or check that it is that training's.

    Args:
        folder: gets ``settings.json``.
        settings: JSON values that the training depends on, beyond what each checkpoint knows itself.

    Raises:
        CheckpointMismatch: the folder was made by a training with other settings; the message names them.
        StoreError: it cannot be written, or its ``settings.json`` is damaged.
    """
    path, mine = folder / "settings.json", json.loads(json.dumps(settings))
    if path.exists():
        theirs = read_json(path)
        if theirs != mine:
            known = theirs if isinstance(theirs, dict) else {}
            different = sorted(key for key in known.keys() | mine.keys() if known.get(key) != mine.get(key))
            raise CheckpointMismatch(
                f"{folder} holds another training ({', '.join(different)} differ); give another folder, or "
                "remove this one to start anew"
            )
    else:
        write_json(path, mine)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal characters that name the values of a ``state_dict``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
