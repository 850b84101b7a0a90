"""Small random graphs, and the backends to hold against the float64 oracle."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tradeoff.core import native
from tradeoff.engines.kernels import Graph


def make_graph(
    rows: int,
    columns: int,
    density: float,
    seed: int,
    weighted: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Graph:
    """Uniformly random entries, some rows and columns empty, one row full."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < density
    if rows > 2 and columns > 2:
        mask[1], mask[:, 0] = False, False
        mask[2, 1:] = True
    row, column = mask.nonzero(as_tuple=True)
    values = torch.randn(row.numel(), generator=generator, dtype=dtype) if weighted else None
    return Graph.from_coo(row, column, values, (rows, columns))


def make_features(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(scope="session")
def random_graph() -> Callable[..., Graph]:
    return make_graph


@pytest.fixture(scope="session")
def features() -> Callable[..., Tensor]:
    return make_features


@pytest.fixture(params=["cpp", "torch"], scope="module")
def backend(request: pytest.FixtureRequest, require) -> str:
    """Every operator test runs with the compiled kernels and with the reference."""
    if request.param == "cpp":
        require(native.extension(), "the compiled extension is missing: install a C++17 compiler")
    return request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
