"""Time the sparse kernels on graphs of your own.

Side by side with the sparse products of torch and scipy.
"""

from __future__ import annotations

import json as json_
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.table import Table

    from tradeoff.engines.kernels import Graph
    from tradeoff.engines.kernels.bench import Row

app = typer.Typer(
    help="Sparse-dense products for graph learning: what runs them here, and how fast.",
    no_args_is_help=True,
    add_completion=False,
)

_GRAPH_HELP = (
    "Repeat for several: a data set such as debian, rmat:SCALE:DEGREE, pl:NODES:DEGREE:EXPONENT, road:SIDE, "
    "community:NODES:DEGREE, like:arxiv (a stand-in of a published graph), pl200k, pl1m, road1m, reddit23k, "
    "an edge list (.txt, .edges), a .mtx, or a .npz of scipy.sparse.save_npz."
)


@app.command()
def info() -> None:
    """What runs the sparse kernels here."""
    from tradeoff.engines.kernels import kernel_info

    typer.echo(str(kernel_info()))


@app.command()
def bench(
    context: typer.Context,
    graph: Annotated[list[str], typer.Option(help=_GRAPH_HELP)],
    dim: Annotated[str, typer.Option(help="Columns of X, with commas between.")] = "64,128,256",
    threads: Annotated[
        str, typer.Option(help="Threads, with commas between; at most one for each processor.")
    ] = "1",
    peers: Annotated[str, typer.Option(help="Libraries to compare with: torch, scipy.")] = "torch,scipy",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each library.")] = 7,
    seed: Annotated[int, typer.Option(min=0, help="Of generated graphs.")] = 0,
    json: Annotated[
        Path | None, typer.Option(help="Also write the rows to this file; - for only them.")
    ] = None,
) -> None:
    """Products by turns with those of other libraries, and beside what memory allows.

    Seconds are those of a call with a new result; in brackets how many times ours a library takes. One thread
    is timed in processor seconds, several by the clock.
    """
    from dataclasses import asdict

    # Before torch is loaded: threads that wait must not count as work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from rich.console import Console

    from tradeoff.core.files import prepare_file
    from tradeoff.engines.kernels import kernel_info
    from tradeoff.engines.kernels.bench import bench, peers_of

    console = Console(stderr=json == Path("-"))
    if not console.is_terminal:
        console.width = 150
    console.print(str(kernel_info()), markup=False, highlight=False)
    widths, counts = _numbers("--dim", dim), _numbers("--threads", threads)
    processors = os.cpu_count() or 1
    if max(counts) > processors:
        message = f"{max(counts)} threads on {processors} processors would wait for each other"
        raise typer.BadParameter(message, param_hint="--threads")
    chosen = peers_of(_words(peers))
    if json is not None and json != Path("-"):
        prepare_file(json)
    rows = list(bench(_graphs(context, graph, seed), widths, counts, chosen, rounds))
    console.print(table(rows))
    if json is not None:
        text = json_.dumps({"kernels": str(kernel_info()), "rows": [asdict(row) for row in rows]}, indent=1)
        sys.stdout.write(text + "\n") if json == Path("-") else json.write_text(text + "\n")


def table(rows: Iterable[Row]) -> Table:
    """The rows for people."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tradeoff.core.statistics import geometric_mean
    from tradeoff.engines.kernels.bench import OURS

    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.ratios))
    result = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading in (
        "graph",
        "d",
        "threads",
        "ms",
        *names,
        "out= ms",
        *names,
        "GB/s gathered",
        "of bound",
        "CPU",
    ):
        result.add_column(heading, justify="left" if heading == "graph" else "right")
    for row in rows:
        result.add_row(
            *(row.graph, str(row.columns), str(row.threads), f"{1e3 * row.seconds[OURS]:.2f}"),
            *(_times(row.ratios, name) for name in names),
            f"{1e3 * row.seconds_out[OURS]:.2f}",
            *(_times(row.ratios_out, name) for name in names),
            *(f"{row.gather_bytes_per_second / 1e9:.1f}", f"{row.bound:.2f}", f"{row.share:.2f}"),
        )

    def means(group: list[dict[str, tuple[float, float, float]]]) -> list[str]:
        found = [[ratios[name][0] for ratios in group if name in ratios] for name in names]
        return [f"{geometric_mean(ratios):.2f}x" if ratios else "" for ratios in found]

    texts = means([row.ratios for row in rows]), means([row.ratios_out for row in rows])
    result.add_section()
    result.add_row("geometric mean", "", "", "", *texts[0], "", *texts[1], "", "", "")
    return result


def _times(ratios: dict[str, tuple[float, float, float]], name: str) -> str:
    return f"{ratios[name][0]:.2f}x" if name in ratios else ""


def _graphs(context: typer.Context, texts: list[str], seed: int) -> Iterator[tuple[str, Graph]]:
    """The graphs of the texts, loaded when they are reached.

    Data sets lie beside the engines; whoever mounts these verbs and knows them gives ``load_graph``.
    """
    from tradeoff.core.errors import DataError
    from tradeoff.engines.kernels import Graph
    from tradeoff.nn.graphs import generate

    load = (context.obj or {}).get("load_graph", generate)
    for text in texts:
        try:
            made = load(text, seed)
        except DataError:
            raise
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--graph") from None
        if not made.num_nodes:
            raise DataError(f"graph {text!r} has no nodes: there is no product to time")
        yield text, Graph.from_adjacency(made)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise typer.BadParameter(
            f"numbers of at least 1 with commas between, not {text!r}", param_hint=option
        )
    return [int(word) for word in words]
