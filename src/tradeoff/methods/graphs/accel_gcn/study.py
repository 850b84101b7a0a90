"""The study: what a partition costs and how even it is, products on this machine, and training."""

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import torch
from pydantic import Field

from tradeoff.core import Card, Context, Method, Metric, Outcome, Recipe, Trial, counted, measured, modelled
from tradeoff.core.errors import EngineError, MissingExtra
from tradeoff.data.graphs import LOADERS, NodeData, load, load_structure
from tradeoff.engines.kernels import BlockPartition, Graph
from tradeoff.nn.graphs import generate

from .bench import available_peers, time_products
from .claims import CLAIMS
from .model import GCN, peer_conv
from .scheduling import SLOTS, accel_gcn_costs, imbalance, row_per_warp_costs, warp_chunk_costs
from .training import train

Width = Annotated[int, Field(ge=1, le=4096)]
Peer = Literal["torch", "scipy", "cusparse", "dgl", "pyg"]


class _Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class ProductSettings(_Settings):
    """Which products are timed."""

    graphs: list[str] = []
    widths: list[Width] = [64]
    device: Literal["cpu", "cuda"] = "cpu"
    peers: list[Peer] = ["torch", "scipy"]
    rounds: int = Field(default=7, ge=1)


class TrainingSettings(_Settings):
    """Which networks are trained, on all of a graph at once, by each backend."""

    data: list[str] = []
    hidden: int = Field(default=128, ge=1)
    layers: int = Field(default=2, ge=1)
    epochs: int = Field(default=50, ge=2)
    learning_rate: float = Field(default=0.01, gt=0)


class AccelGcnRecipe(Recipe):
    """What the study varies."""

    graphs: list[str] = Field(description="graphs to cut: names of data sets, or texts such as pl:2000:8")
    warps: int = Field(12, ge=1, le=32, description="of a block")
    nnz_per_warp: int = Field(32, ge=1, le=32767, description="non-zeros that a warp takes at most")
    slots: int = Field(SLOTS, ge=1, description="blocks that run at once on the modelled GPU")
    products: ProductSettings = Field(ProductSettings(), description="the products that are timed")
    training: TrainingSettings = Field(TrainingSettings(), description="the networks that are trained")

    @pydantic.model_validator(mode="after")
    def _can_be_run(self) -> Self:
        for name in self.training.data:
            if name not in LOADERS:
                raise ValueError(f"training.data: {name!r} is none of {', '.join(LOADERS)}")
        return self


class AccelGCN(Method[AccelGcnRecipe]):
    """Degree-sorted, block-partitioned sparse products."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = AccelGcnRecipe
    claims = CLAIMS
    timed = True

    def trials(self, recipe: AccelGcnRecipe) -> list[Trial]:
        """Each graph cut in each way, each product, and each training."""
        return [
            Trial(variant=variant, setting=setting, seed=seed)
            for variants, setting in _cells(recipe)
            for seed in range(recipe.seeds)
            for variant in variants
        ]

    def run(self, trial: Trial, recipe: AccelGcnRecipe, context: Context) -> Outcome:
        """Cut a graph, time its product, or train on it."""
        match trial.setting["job"]:
            case "partition":
                metrics = _partition(trial, recipe)
            case "product":
                metrics = _product(trial, recipe)
            case _:
                metrics = _training(trial, recipe, context)
        return Outcome(trial=trial, metrics=metrics)


def _cells(recipe: AccelGcnRecipe) -> Iterator[tuple[list[str], dict[str, Any]]]:
    for name in recipe.graphs:
        yield ["accel-gcn", "compat", "warp-chunks", "row-per-warp"], {"job": "partition", "graph": name}
    products = recipe.products
    for name in products.graphs:
        for width in products.widths:
            setting = {"job": "product", "graph": name, "width": width, "device": products.device}
            yield ["rows", "accel-gcn", *products.peers], setting
    for name in recipe.training.data:
        yield ["rows", "accel-gcn", "torch", "pyg"], {"job": "training", "graph": name}


def _partition(trial: Trial, recipe: AccelGcnRecipe) -> dict[str, Metric]:
    graph = _graph(str(trial.setting["graph"]), trial.seed)
    warps, nnz_per_warp = recipe.warps, recipe.nnz_per_warp
    cut = partial(BlockPartition.from_graph, graph, warps=warps, nnz_per_warp=nnz_per_warp)
    metrics: dict[str, Metric] = {}
    match trial.variant:
        case "row-per-warp":
            costs = row_per_warp_costs(graph, warps)
        case "warp-chunks":
            costs = warp_chunk_costs(graph, warps, nnz_per_warp)
            metrics["metadata_bytes"] = counted(cut().stats().warp_level_bytes)
        case variant:
            partition = cut(compat=variant == "compat")
            stats, costs = partition.stats(), accel_gcn_costs(partition)
            metrics["metadata_bytes"] = counted(stats.bytes)
            metrics["padding"] = counted(stats.padding)
            metrics["preprocessing_seconds"] = measured(stats.seconds)
    # A schedule on a GPU that is not here, from counts of non-zeros: nothing that a clock has seen.
    metrics["imbalance"] = modelled(imbalance(costs, graph.nnz, warps, recipe.slots))
    metrics["average_degree"] = counted(graph.nnz / max(1, graph.num_rows))
    return metrics


def _product(trial: Trial, recipe: AccelGcnRecipe) -> dict[str, Metric]:
    """One candidate beside ``rows``, by turns; each trial keeps its own seconds."""
    device = recipe.products.device
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("products.device is cuda, but there is no CUDA device here")
    ours = {"accel-gcn": "buckets", "rows": "rows"}
    peers = [] if trial.variant in ours else [trial.variant]
    if available_peers(device, peers) != peers:
        raise MissingExtra(trial.variant, "graphs")
    graph = _graph(str(trial.setting["graph"]), trial.seed).to(device)
    partition = BlockPartition.from_graph(graph, warps=recipe.warps, nnz_per_warp=recipe.nnz_per_warp)
    (times,) = time_products(
        graph,
        [int(trial.setting["width"] or 0)],
        partition=partition,
        peers=peers,
        rounds=recipe.products.rounds,
        seed=trial.seed,
    )
    candidate = ours.get(trial.variant, trial.variant)
    return {
        "product_seconds": measured(times.seconds[candidate]),
        "slowdown": measured(times.speedup("rows", candidate)),
    }


def _training(trial: Trial, recipe: AccelGcnRecipe, context: Context) -> dict[str, Metric]:
    settings = recipe.training
    data = _data(str(trial.setting["graph"]))
    graph = Graph.from_adjacency(data.graph).normalize("sym", self_loops=True).to(context.device)
    adjacency: Graph | torch.Tensor = graph
    options: dict[str, Any] = {"strategy": "rows"}
    if trial.variant == "accel-gcn":
        partition = BlockPartition.from_graph(graph, warps=recipe.warps, nnz_per_warp=recipe.nnz_per_warp)
        options = {"strategy": "buckets", "partition": partition}
    elif trial.variant in ("torch", "pyg"):
        options, adjacency = _peer(trial.variant, graph)
    torch.manual_seed(trial.seed)
    model = GCN(
        data.x.shape[1], settings.hidden, out_dim=data.num_classes, layers=settings.layers, **options
    ).to(context.device)
    tensors = [part.to(context.device) for part in (data.y, data.train, data.test)]
    with context.progress(None, f"training by {trial.variant}"):
        trained = train(
            model,
            data.x.to(context.device),
            adjacency,
            *tensors,
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            seed=trial.seed,
        )
    return {
        "training_loss": measured(trained.losses[-1]),
        "accuracy": measured(trained.accuracy),
        "epoch_seconds": measured(trained.epoch_seconds),
    }


def _peer(name: str, graph: Graph) -> tuple[dict[str, Any], torch.Tensor]:
    """PyG's own layers: on a torch sparse matrix, or on an edge list with weights."""
    conv = peer_conv()
    if name == "torch":
        return {"conv": conv}, graph.to_torch()
    targets = torch.repeat_interleave(torch.arange(graph.num_rows, device=graph.device), graph.degrees())

    class Weighted(torch.nn.Module):
        def __init__(self, in_dim: int, out_dim: int) -> None:
            super().__init__()
            self.layer = conv(in_dim, out_dim)

        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layer(x, edge_index, graph.values)
            return result

    return {"conv": Weighted}, torch.stack([graph.indices.long(), targets])


@lru_cache(maxsize=1)
def _graph(name: str, seed: int) -> Graph:
    """A data set's graph, or one generated from the seed."""
    return Graph.from_adjacency(load_structure(name) if name in LOADERS else generate(name, seed))


@lru_cache(maxsize=1)
def _data(name: str) -> NodeData:
    return load(name)
