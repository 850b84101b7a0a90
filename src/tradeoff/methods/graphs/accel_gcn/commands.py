"""Cut your own graph into blocks, check and time its product, and train on it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tradeoff.engines.kernels import BlockPartition, Graph

    from .bench import ProductTimes

app = typer.Typer(help="Balanced sparse products of your own graph.", no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """Balanced sparse products of your own graph."""


@app.command()
def bench(
    graph: Annotated[
        str,
        typer.Option(help="A .npz of scipy.sparse, a data set, or a text such as pl:200000:15 or road:1000."),
    ],
    dim: Annotated[str, typer.Option(help="Columns of X: 64, 16,64,256, or first:last:step.")] = "64",
    peers: Annotated[
        str,
        typer.Option(help="Those of torch,scipy,cusparse,dgl,pyg to compare with; absent ones are named."),
    ] = "torch,scipy,cusparse,dgl,pyg",
    device: Annotated[str, typer.Option(help="cpu (processor seconds), cuda, or auto.")] = "auto",
    warps: Annotated[int, typer.Option(min=1, max=32, help="Of a block.")] = 12,
    nnz_per_warp: Annotated[int, typer.Option(min=1, max=32767, help="Non-zeros a warp takes at most.")] = 32,
    check: Annotated[bool, typer.Option(help="Compare each product with float64 first.")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each product on a CPU.")] = 7,
    flush: Annotated[bool, typer.Option(help="Overwrite a GPU's L2 cache before each call.")] = False,
    epochs: Annotated[
        int, typer.Option(min=0, help="Of training a GCN by each backend: 0 for none, or 2 and more.")
    ] = 5,
    out: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
) -> None:
    """Partition a graph, check its products, time them beside the peers, and train a 2-layer GCN by each."""
    import torch

    from tradeoff.core.errors import DataError
    from tradeoff.core.files import prepare_file
    from tradeoff.data.graphs import load_structure
    from tradeoff.engines.kernels import BlockPartition, Graph, kernel_info

    from .bench import available_peers, time_products

    widths = _widths(dim)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"--device is cpu, cuda or auto, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("--device cuda: there is no CUDA device here")
    if epochs == 1:
        raise typer.BadParameter("0, or at least 2: the first epoch is not timed", param_hint="--epochs")
    if out is not None:
        prepare_file(out)
    names = [name.strip() for name in peers.split(",") if name.strip()]
    try:
        present = available_peers(device, names)
        arrays = load_structure(graph)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not arrays.num_nodes:
        raise DataError(f"graph {graph!r} has no nodes: there is no product to time")
    for name in names:
        if name not in present:
            typer.echo(f"{name} is not installed, or does not run on {device}: left out", err=True)
    matrix = Graph.from_adjacency(arrays).to(device)
    partition = BlockPartition.from_graph(matrix, warps=warps, nnz_per_warp=nnz_per_warp)
    document: dict[str, Any] = {"graph": graph, "rows": matrix.num_rows, "nnz": matrix.nnz, "device": device}
    document["partition"] = _show_partition(matrix, partition)
    times = time_products(
        matrix, widths, partition=partition, peers=present, rounds=rounds, check=check, flush=flush
    )
    document["products"] = [{"width": row.width, "seconds": row.seconds} for row in times]
    document["kernels"] = str(kernel_info())
    _show_products(times, device)
    if epochs:
        document["training"] = _show_training(matrix, warps, nnz_per_warp, epochs, device)
    if out is not None:
        out.write_text(json.dumps(document, indent=2) + "\n")
        typer.echo(f"written to {out}")


def _widths(text: str) -> list[int]:
    try:
        if ":" in text:
            first, last, step = (int(word) for word in text.split(":"))
            widths = list(range(first, last + 1, step))
        else:
            widths = [int(word) for word in text.split(",")]
    except ValueError:
        widths = []
    if not widths or min(widths) < 1:
        raise typer.BadParameter(f"--dim is 64, 16,64,256 or first:last:step, not {text!r}")
    return widths


def _show_partition(graph: "Graph", partition: "BlockPartition") -> dict[str, Any]:
    from dataclasses import asdict

    from .scheduling import accel_gcn_costs, imbalance, row_per_warp_costs, warp_chunk_costs

    stats, warps = partition.stats(), partition.shape.warps
    typer.echo(
        f"{graph.num_rows:,} rows, {graph.nnz:,} non-zeros: {stats.records:,} blocks, {stats.bytes:,} bytes "
        f"({stats.metadata_ratio:.1f} times fewer than one record a warp), padding {stats.padding:.2f}, "
        f"{stats.split:.0%} in rows cut into segments, made in {stats.seconds:.3f} s"
    )
    costs = {
        "row per warp": row_per_warp_costs(graph, warps),
        "warp-level groups": warp_chunk_costs(graph, warps, partition.shape.nnz_per_warp),
        "blocks": accel_gcn_costs(partition),
    }
    ends = {name: imbalance(cost, graph.nnz, warps) for name, cost in costs.items()}
    typer.echo(
        "end of a computed schedule over that of even work (modelled): "
        + ", ".join(f"{name} {end:.2f}" for name, end in ends.items())
    )
    return {**asdict(stats), "imbalance": ends}


def _show_products(times: "list[ProductTimes]", device: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from tradeoff.core.statistics import geometric_mean

    names = list(times[0].seconds)
    ours = "buckets" if device == "cuda" else "rows"
    unit = "GPU" if device == "cuda" else "processor"
    table = Table(title=f"{unit} ms of a product, result allocated (times as fast as {ours}; geometric mean)")
    table.add_column("columns", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for row in times:
        cells = [
            f"{1e3 * row.seconds[name]:.3f} ({row.seconds[ours] / row.seconds[name]:.2f})" for name in names
        ]
        table.add_row(str(row.width), *cells)
    means = [geometric_mean(row.seconds[ours] / row.seconds[name] for row in times) for name in names]
    table.add_row("mean", *(f"{mean:.2f}" for mean in means))
    Console().print(table)


def _show_training(
    graph: "Graph", warps: int, nnz_per_warp: int, epochs: int, device: str
) -> dict[str, dict[str, Any]]:
    """Train on random features and labels: what counts here is time and that the losses are equal."""
    import torch

    from tradeoff.engines.kernels import BlockPartition

    from .model import GCN, peer_conv
    from .training import train

    features, classes = 64, 16
    normalized = graph.normalize("sym", self_loops=True)
    partition = BlockPartition.from_graph(normalized, warps=warps, nnz_per_warp=nnz_per_warp)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(graph.num_rows, features, generator=generator).to(device)
    y = torch.randint(classes, (graph.num_rows,), generator=generator).to(device)
    every = torch.ones(graph.num_rows, dtype=torch.bool, device=device)
    candidates: dict[str, tuple[dict[str, Any], Any]] = {
        "rows": ({"strategy": "rows"}, normalized),
        "buckets": ({"strategy": "buckets", "partition": partition}, normalized),
        "torch.sparse": ({"conv": peer_conv()}, normalized.to_torch()),
    }
    results = {}
    for name, (options, adjacency) in candidates.items():
        torch.manual_seed(0)
        model = GCN(features, 128, out_dim=classes, **options).to(device)
        trained = train(model, x, adjacency, y, every, every, epochs=epochs)
        results[name] = {"losses": trained.losses, "epoch_seconds": trained.epoch_seconds}
        unit = "GPU" if device == "cuda" else "processor"
        typer.echo(
            f"GCN by {name}: {trained.epoch_seconds:.3f} {unit} seconds an epoch, "
            f"losses {trained.losses[0]:.5f} to {trained.losses[-1]:.5f}"
        )
    return results
