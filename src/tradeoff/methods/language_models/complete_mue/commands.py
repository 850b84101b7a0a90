"""Carry hyper-parameters from a small dense model to any size and mixture of experts."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Carry hyper-parameters from a small model to any size and mixture.", no_args_is_help=True
)


@app.callback()
def _verbs() -> None:
    """Carry hyper-parameters from a small dense model to any size and mixture of experts."""


@app.command()
def plan(
    base: Annotated[Path, typer.Option(help="YAML: model, tuned, batch_tokens, total_tokens.")],
    target: Annotated[Path, typer.Option(help="YAML: model, and where they differ the numbers of tokens.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Print initial deviation, rate, decay and eps of every tensor of a target, its multipliers and betas.

    Nothing is built: a target may be of any size.
    """
    from rich.console import Console

    from .files import plan_files

    made = plan_files(base, target)
    if as_json:
        typer.echo(made.model_dump_json(indent=1))
    else:
        Console().print(made.table())


@app.command()
def sweep(
    widths: Annotated[str, typer.Option(help="Of dense models: 32,64,128.")] = "32,64,128",
    layouts: Annotated[str, typer.Option(help="Further targets: d8,b4,t2,e8k2,e8k1s1,w128-e8k2.")] = "",
    param: Annotated[
        str, typer.Option(help="Parametrizations: complete-mue,standard,per-expert.")
    ] = "complete-mue,standard",
    corpus: Annotated[str, typer.Option(help="Text of tradeoff.data.text, or a file.")] = "foldoc",
    base: Annotated[int, typer.Option(min=1, help="Width of the base.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Of the base's training.")] = 100,
    start: Annotated[int, typer.Option(min=-40, max=10, help="Base-2 logarithm of the first rate.")] = -6,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and the order of the data.")] = 0,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
) -> None:
    """Sweep the learning rate of each target in octaves; print losses, best rate, drift and regret."""
    from rich.console import Console

    from tradeoff.core.context import usable_device

    from .report import sweep_table
    from .training import Setup

    setup = Setup(corpus=corpus, width=base, steps=steps)
    targets = [*(f"w{width}" for width in _words(widths) if width != str(base)), *_words(layouts)]
    table = sweep_table(
        setup,
        targets,
        _words(param),
        start,
        seed,
        usable_device(device),
        progress=lambda line: typer.echo(line, err=True),
    )
    Console().print(table)


@app.command()
def check(
    widths: Annotated[str, typer.Option(help="Widths to compare.")] = "64,128,256",
    depths: Annotated[str, typer.Option(help="Depths to compare.")] = "2,4,8",
    param: Annotated[
        str, typer.Option(help="Parametrizations: complete-mue,standard.")
    ] = "complete-mue,standard",
    corpus: Annotated[str, typer.Option(help="Text of tradeoff.data.text, or a file.")] = "foldoc",
    rate: Annotated[float, typer.Option(min=1e-12, help="Learning rate of the base.")] = 2.0**-6,
    steps: Annotated[int, typer.Option(min=1, help="Before activations are compared.")] = 5,
) -> None:
    """Coordinate check: slopes of log change of activations over log size, about 0 under right rules."""
    from rich.console import Console

    from .report import coordinate_table
    from .training import Setup

    sizes = {"w": _words(widths), "d": _words(depths)}
    Console().print(coordinate_table(Setup(corpus=corpus), sizes, _words(param), rate, steps))


@app.command()
def plot(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/complete-mue/4f2a...")],
    out: Annotated[Path, typer.Option(help="Picture to write (.png, .svg, .pdf).")],
) -> None:
    """Draw the sweeps of a run: loss against learning rate."""
    from tradeoff.core.registry import load_method
    from tradeoff.core.store import RunFolder
    from tradeoff.core.study import load_study

    from .figure import curves, draw

    draw(curves(load_study(RunFolder.open(run), load_method("complete-mue"))), out)
    typer.echo(f"written to {out}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
