"""What the command lines of private engines have in common: networks, inputs and places for results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from numpy.typing import NDArray


@contextmanager
def bad_input() -> Iterator[None]:
    """A wrong value of an option is the user's, not a fault of the program."""
    from tradeoff.core.errors import DataError, TradeoffError

    try:
        yield
    except TradeoffError:
        raise
    except ValueError as error:
        raise DataError(str(error)) from None


def check_place(path: Path | None) -> None:
    """Refuse a place for results that does not exist before they are computed: they would be lost."""
    from tradeoff.core.errors import DataError

    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise DataError(f"cannot write {path}: it is a folder, or its folder does not exist")


def load_images(path: Path) -> NDArray[Any]:
    """Inputs from an .npy file.

    Raises:
        DataError: it is none.
    """
    import numpy as np

    from tradeoff.core.errors import DataError

    try:
        # Mapped first, so that a header that promises more than the file holds allocates nothing.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise DataError(f"cannot read {path} as an .npy array: {error}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path} holds several arrays; an .npy file holds one")
    return np.array(array)


def load_network(
    plan: Path | None, arch: str | None, model: Path | None, shape: tuple[int, ...], classes: int
) -> Any:
    """A plan from a file, or traced from an architecture with its weights."""
    from tradeoff.nn.plan import load, trace

    if (plan is None) == (arch is None):
        raise typer.BadParameter("give either --plan or --arch with --model")
    if plan is not None:
        return load(plan)
    if model is None:
        raise typer.BadParameter("--arch needs --model, a safetensors file of its weights")
    from tradeoff.nn.models import build, load_weights

    assert arch is not None
    network = build(arch, classes, shape)  # type: ignore[arg-type]
    load_weights(network, model)
    return trace(network.eval(), shape)


def digits_network(arch: str, model: Path | None) -> tuple[Any, Any, Any]:
    """Test images, labels and a network for scikit-learn's digits."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits

    from tradeoff.nn.models import build, load_weights

    digits = load_digits()
    x = (digits.images[:, None] / 8.0 - 1.0).astype(np.float32)
    y = digits.target.astype(np.int64)
    torch.manual_seed(0)
    network = build(arch, 10, (1, 8, 8))
    if model is not None:
        load_weights(network, model)
        return x[1400:], y[1400:], network.eval()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        chosen = torch.randint(0, 1400, (64,), generator=generator).numpy()
        loss = torch.nn.functional.cross_entropy(
            network(torch.from_numpy(x[chosen])), torch.from_numpy(y[chosen])
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return x[1400:], y[1400:], network.eval()


def parse_shape(text: str) -> tuple[int, ...]:
    """``3,32,32`` as a tuple."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"a shape is numbers with commas between, not {text!r}") from None
