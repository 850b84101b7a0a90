"""Weights in and out of safetensors files, with errors that name what does not fit."""

from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tradeoff.core.errors import TradeoffError

NAMES_SHOWN = 5


class ArchMismatch(TradeoffError, ValueError):
    """A weight file belongs to another architecture, class count or input size."""


def save_weights(model: nn.Module, path: Path | str) -> None:
    """Write ``model.state_dict()`` to ``path`` (safetensors)."""
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()},
        path,
    )


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Load a safetensors file into ``model``, in place; nothing is changed when it does not fit.

    Raises:
        FileNotFoundError: there is no such file.
        ArchMismatch: the file is not safetensors, or its names or shapes differ from the model's, or a
            number in it is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {path}")
    try:
        stored = load_file(path)
    except safetensors.SafetensorError as error:
        raise ArchMismatch(f"{path} is not a safetensors file: {error}") from error
    expected = model.state_dict()
    _fill_batch_counters(expected, stored)
    problems = _differences(expected, stored)
    if problems:
        raise ArchMismatch(f"{path} does not fit {type(model).__name__}: " + "; ".join(problems))
    model.load_state_dict(stored)


def _fill_batch_counters(expected: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """Other libraries' files may omit batch norm's ``num_batches_tracked``, which inference does not use."""
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            stored.setdefault(name, tensor)


def _differences(expected: dict[str, Tensor], stored: dict[str, Tensor]) -> list[str]:
    problems = []
    for label, names in (
        ("missing", expected.keys() - stored.keys()),
        ("unexpected", stored.keys() - expected.keys()),
    ):
        if names:
            problems.append(f"{label} {_shortened(sorted(names))}")
    shapes = [
        f"{name} (model {tuple(expected[name].shape)}, file {tuple(stored[name].shape)})"
        for name in expected
        if name in stored and expected[name].shape != stored[name].shape
    ]
    if shapes:
        problems.append(f"shapes differ: {_shortened(shapes)}")
    broken = [name for name, tensor in stored.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        problems.append(f"NaN or infinity in {_shortened(sorted(broken))}")
    return problems


def _shortened(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
