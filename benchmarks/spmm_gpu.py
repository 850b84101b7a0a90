"""Sparse products on a GPU: by blocks and by rows, beside cuSPARSE, DGL and PyTorch Geometric where they are.

Medians of 100 calls after 20 that are not counted, by CUDA events, all candidates by turns; every product is
compared with float64 first. Example:

    python benchmarks/spmm_gpu.py --graphs reddit.npz like:arxiv --dims 16 32 64 --flush --json out.json

Graphs are .npz files of scipy.sparse (SuiteSparse, OGB or Reddit, saved by you), names of data sets, or texts
as `tradeoff accel-gcn bench --help` gives them. Without a CUDA device the script says so and ends with
status 2.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tradeoff.core.statistics import geometric_mean
from tradeoff.data.graphs import load_structure
from tradeoff.engines.kernels import BlockPartition, Graph, cbsr_spmm, maxk, spmm
from tradeoff.engines.kernels.device_timing import side_by_side_on_gpu
from tradeoff.methods.graphs.accel_gcn import bench

GRAPHS = ["like:arxiv", "like:artist", "pl200k", "road1m", "reddit23k"]


def products(graph: Graph, width: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each candidate at one width; those with dense features are checked before."""
    partition = BlockPartition.from_graph(graph)
    x = torch.randn(graph.num_columns, width, device=graph.device)
    candidates = bench.our_products(graph, x, partition) | bench.peer_products(graph, x, options.present)
    bench.check_product(graph, x, candidates)
    if options.backward:
        leaf = x.clone().requires_grad_()
        grad = torch.randn(graph.num_rows, width, device=graph.device)

        def backward() -> None:
            spmm(graph, leaf, strategy="buckets", partition=partition).backward(grad)

        candidates["buckets, forward and backward"] = backward
    for k in options.maxk:
        if k < width:
            features = maxk(x, k)
            for deterministic in (False, True):
                name = f"k={k}, {'bitmaps' if deterministic else 'atomics'}"
                candidates[name] = lambda f=features, d=deterministic: cbsr_spmm(graph, f, deterministic=d)
    timed = side_by_side_on_gpu(candidates, warmups=options.warmups, runs=options.runs, flush=options.flush)
    return {name: timing.median for name, timing in timed.timings.items()}


def main() -> None:
    """Print a table for each graph, and write the numbers as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", nargs="+", default=GRAPHS)
    parser.add_argument("--dims", nargs="+", type=int, default=[16, 32, 64, 96, 128])
    parser.add_argument("--peers", nargs="*", default=["cusparse", "dgl", "pyg"])
    parser.add_argument(
        "--maxk", nargs="*", type=int, default=[], help="also products of the k largest features"
    )
    parser.add_argument("--backward", action="store_true", help="also forward and backward together")
    parser.add_argument("--warmups", type=int, default=20)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--flush", action="store_true", help="overwrite the L2 cache before each call")
    parser.add_argument("--json", help="write the measurements to this file; - for standard output")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("spmm_gpu needs a CUDA device and a torch built for it; there is none here", file=sys.stderr)
        raise SystemExit(2)
    try:
        options.present = bench.available_peers("cuda", options.peers)
    except ValueError as error:
        parser.error(str(error))
    console = Console(file=sys.stderr if options.json == "-" else sys.stdout)
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, peers {options.present}")
    results: list[dict[str, Any]] = []
    ratios: dict[str, list[float]] = {}
    for text in options.graphs:
        graph = Graph.from_adjacency(load_structure(text)).to("cuda")
        table = Table(title=f"{text}: {graph.num_rows:,} rows, {graph.nnz:,} entries; median ms (of buckets)")
        table.add_column("columns", justify="right")
        for width in options.dims:
            seconds = products(graph, width, options)
            if len(table.columns) == 1:
                for name in seconds:
                    table.add_column(name, justify="right")
            table.add_row(
                str(width), *(f"{1e3 * s:.3f} ({s / seconds['buckets']:.2f})" for s in seconds.values())
            )
            for name, value in seconds.items():
                ratios.setdefault(name, []).append(value / seconds["buckets"])
            results.append({"graph": text, "nnz": graph.nnz, "width": width, "seconds": seconds})
        console.print(table)
    means = {name: geometric_mean(values) for name, values in ratios.items()}
    console.print("geometric mean over buckets: " + ", ".join(f"{n} {m:.2f}" for n, m in means.items()))
    if options.json:
        document = {
            "device": torch.cuda.get_device_name(),
            "flush": options.flush,
            "runs": options.runs,
            "results": results,
            "geometric_mean": means,
        }
        text = json.dumps(document, indent=2)
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
