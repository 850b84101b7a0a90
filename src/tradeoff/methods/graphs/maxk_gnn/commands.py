"""Train graph networks whose hidden features are cut to the k largest, and see what that saves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from .report import Report

app = typer.Typer(help="Train graph networks with few hidden features a node.", no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """Train graph networks whose hidden features are cut to the k largest, and see what that saves."""


@app.command()
def train(
    data: Annotated[str, typer.Option(help="Graph data set, or a generated graph such as reddit23k.")],
    model: Annotated[Literal["sage", "gcn", "gin"], typer.Option(help="Kind of network.")] = "sage",
    hidden: Annotated[int, typer.Option(min=1, help="Hidden features of a node.")] = 256,
    layers: Annotated[int, typer.Option(min=1, help="Blocks.")] = 3,
    k: Annotated[str, typer.Option(help="Features kept, one network each: 16,32,64.")] = "32",
    baseline: Annotated[Literal["relu", "none"], typer.Option(help="The dense network beside.")] = "relu",
    epochs: Annotated[int, typer.Option(min=1, help="Steps, each on all training nodes.")] = 100,
    lr: Annotated[float, typer.Option(min=1e-9, help="Adam's learning rate, falls as a cosine.")] = 0.003,
    dropout: Annotated[float, typer.Option(min=0, max=0.99, help="Of the features that pass.")] = 0.5,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each network.")] = 1,
    self_loops: Annotated[bool, typer.Option("--self-loops", help="Join each node with itself.")] = False,
    peers: Annotated[str, typer.Option(help="Dense systems timed beside: torch,pyg (sage only).")] = "",
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the weights of each network (safetensors).")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the numbers.")] = None,
) -> None:
    """Train the dense network and one for each k; print accuracy, epoch time, its parts, Amdahl's limit."""
    from tradeoff.core.context import usable_device
    from tradeoff.core.files import prepare_file, prepare_folder

    from .errors import ModelError
    from .report import compare_networks, write_json

    # Before the first network is trained: what would fail after it.
    ks, device = _numbers(k), usable_device(device)
    if wrong := [kept for kept in ks if not 1 <= kept <= hidden]:
        raise ModelError(f"--k is from 1 to the {hidden} of --hidden, not {wrong[0]}")
    if out is not None:
        prepare_folder(out)
    if json is not None:
        prepare_file(json)
    report = compare_networks(
        data,
        kind=model,
        hidden=hidden,
        layers=layers,
        ks=ks,
        baseline=baseline == "relu",
        epochs=epochs,
        lr=lr,
        dropout=dropout,
        seeds=seeds,
        self_loops=self_loops,
        peers=[peer.strip() for peer in peers.split(",") if peer.strip()],
        device=device,
        out=out,
        progress=lambda line: typer.echo(line, err=True),
    )
    _print(report)
    if json is not None:
        write_json(report, json)


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise typer.BadParameter(f"write whole numbers with commas between, as 16,32, not {text!r}") from None


def _print(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table

    from .breakdown import PARTS

    console = Console()
    networks = Table(title=f"{report.data}: {report.nodes:,} nodes, {report.entries:,} entries of the graph")
    parts = Table(title="seconds of an epoch")
    networks.add_column("network")
    parts.add_column("part")
    for heading in ("score", "epoch s", "speed-up"):
        networks.add_column(heading, justify="right")
    for row in report.rows:
        score = f"{row.score:.4f} ± {row.deviation:.4f}" if row.score is not None else ""
        speed_up = f"{row.speed_up:.2f}" if row.speed_up is not None else ""
        networks.add_row(row.network, score, f"{row.epoch_seconds:.3f}", speed_up)
        parts.add_column(row.network, justify="right")
    for part in PARTS:
        parts.add_row(part, *(f"{row.breakdown[part]:.3f}" for row in report.rows))
    console.print(networks)
    console.print(parts)
    if report.limit is not None:
        console.print(
            f"aggregation takes {report.aggregation_share:.0%} of the dense epoch, all that gets shorter "
            f"{report.share:.0%}: Amdahl's limit is {report.limit:.2f}"
        )
    for row in report.rows:
        if row.traffic_ratio is not None:
            bytes_ = _times(row.traffic_ratio, "fewer", "as many")
            line = f"{row.network}: {bytes_} bytes in aggregation (modelled)"
            if row.aggregation_ratio is not None:
                line += f", {_times(row.aggregation_ratio, 'less', 'as much')} time (measured)"
            console.print(line)


def _times(ratio: float, less: str, equal: str) -> str:
    """Dense over sparse in words: ``2.0 times less``, or ``2.0 times as much`` where nothing is saved."""
    return f"{ratio:.1f} times {less}" if ratio >= 1 else f"{1 / ratio:.1f} times {equal}"
