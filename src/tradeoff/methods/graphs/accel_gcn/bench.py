"""Products of one matrix by blocks, by rows and by peers: checked against float64, then timed."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from operator import matmul
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tradeoff.core.errors import EngineError
from tradeoff.core.timing import ProcessorClock, SideBySide, side_by_side
from tradeoff.engines.kernels import BlockPartition, Graph, spmm
from tradeoff.engines.kernels.device_timing import side_by_side_on_gpu, threads

PEERS = ("torch", "scipy", "cusparse", "dgl", "pyg")
"""``torch`` is torch.sparse on the CPU, ``cusparse`` the same on a GPU."""

Product = Callable[[], Any]


class WrongProduct(EngineError, ValueError):
    """A product differs from the one in float64 by more than rounding."""


@dataclass(frozen=True)
class ProductTimes:
    """What products at one width took.

    Attributes:
        width: columns of X.
        timings: of the candidates by turns: processor seconds of one thread on a CPU, its own time on a GPU.
    """

    width: int
    timings: SideBySide

    @property
    def seconds(self) -> dict[str, float]:
        """Candidate -> median seconds."""
        return {name: timing.median for name, timing in self.timings.timings.items()}

    def speedup(self, ours: str, peer: str) -> float:
        """How many times as fast ``ours`` is: median over the turns, in which both had the same machine."""
        return self.timings.ratio(peer, ours)[0]


def available_peers(device: str, wanted: Iterable[str] = PEERS) -> list[str]:
    """Those peers that are installed and run on the device.

    Raises:
        ValueError: an unknown peer.
    """
    peers = []
    for name in wanted:
        if name not in PEERS:
            raise ValueError(f"no peer {name!r}; there are: {', '.join(PEERS)}")
        module = {"pyg": "torch_geometric", "dgl": "dgl", "scipy": "scipy"}.get(name, "torch")
        here = {"torch": device == "cpu", "scipy": device == "cpu", "cusparse": device != "cpu"}.get(
            name, True
        )
        if here and importlib.util.find_spec(module):
            peers.append(name)
    return peers


def our_products(graph: Graph, x: Float[Tensor, "m d"], partition: BlockPartition) -> dict[str, Product]:
    """By rows and by buckets; results are allocated at each call, as those of the peers."""
    return {
        "rows": partial(spmm, graph, x, strategy="rows"),
        "buckets": partial(spmm, graph, x, strategy="buckets", partition=partition),
    }


def peer_products(graph: Graph, x: Float[Tensor, "m d"], peers: Iterable[str]) -> dict[str, Product]:
    """The product by each peer, in the form in which it takes matrices fastest."""
    products: dict[str, Product] = {}
    for name in peers:
        if name in ("torch", "cusparse"):
            products[name] = partial(matmul, graph.to_torch(), x)
        elif name == "scipy":
            matrix, array = graph.to_scipy(), x.numpy()
            products[name] = partial(matmul, matrix, array)
        elif name == "pyg":
            from torch_geometric.utils import spmm as pyg_spmm

            products[name] = partial(pyg_spmm, graph.to_torch(), x)
        elif name == "dgl":
            import dgl

            indptr, indices = graph.indptr, graph.indices.long()
            other = dgl.sparse.from_csr(indptr, indices, _weights(graph), shape=graph.shape)
            products[name] = partial(dgl.sparse.spmm, other, x)
    return products


def check_product(graph: Graph, x: Float[Tensor, "m d"], products: dict[str, Product]) -> dict[str, float]:
    """The largest error of each product, relative to the sum of absolute terms of its element.

    Raises:
        WrongProduct: one exceeds 1e-4.
    """
    wide = graph.to(dtype=torch.float64) if graph.values is not None else graph
    exact = spmm(wide, x.double(), strategy="rows")
    weights = None if wide.values is None else wide.values.abs()
    scale = spmm(wide.with_values(weights), x.double().abs(), strategy="rows").clamp(min=1e-30)
    errors = {}
    for name, product in products.items():
        result = torch.as_tensor(product(), device=x.device)
        errors[name] = float(((result.double() - exact).abs() / scale).max()) if exact.numel() else 0.0
        if not errors[name] <= 1e-4:
            raise WrongProduct(f"{name}: relative error {errors[name]:.3g} at {x.shape[1]} columns")
    return errors


def time_products(
    graph: Graph,
    widths: Iterable[int],
    *,
    partition: BlockPartition | None = None,
    peers: Iterable[str] = (),
    rounds: int = 7,
    check: bool = True,
    flush: bool = False,
    seed: int = 0,
) -> list[ProductTimes]:
    """Time the product of a graph with random features of some widths, all candidates by turns.

    Args:
        graph: on the CPU, where processor seconds of one thread are taken, or on a GPU.
        widths: columns of X.
        partition: of the graph; one is made if not given.
        peers: of :data:`PEERS`, which must be here.
        rounds: samples of each on the CPU; a GPU takes 100.
        check: compare all with float64 first.
        flush: overwrite the L2 cache of a GPU before each call.
        seed: of the features.

    Raises:
        WrongProduct: a product is wrong.
    """
    partition = partition or BlockPartition.from_graph(graph)
    generator = torch.Generator().manual_seed(seed)
    results = []
    for width in widths:
        x = torch.randn(graph.num_columns, width, generator=generator).to(graph.device)
        products = our_products(graph, x, partition) | peer_products(graph, x, peers)
        if check:
            check_product(graph, x, products)
        if graph.device.type == "cpu":
            with threads(1):
                timings = side_by_side(products, rounds=rounds, clock=ProcessorClock())
        else:
            timings = side_by_side_on_gpu(products, flush=flush)
        results.append(ProductTimes(width, timings))
    return results


def _weights(graph: Graph) -> Tensor:
    return torch.ones(graph.nnz, device=graph.device) if graph.values is None else graph.values
