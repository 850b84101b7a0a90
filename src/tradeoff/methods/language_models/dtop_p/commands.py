"""Train with routers and compare them."""

from typing import Annotated

import typer

app = typer.Typer(
    help="Hold the average number of active experts at a target by dynamic top-p routing.",
    no_args_is_help=True,
)


@app.callback()
def _verbs() -> None:
    """Hold the average number of active experts at a target by dynamic top-p routing."""


@app.command()
def train(
    router: Annotated[
        str,
        typer.Option(
            help="Of topk, topp:THRESHOLD, pi, pi:layer, dtop_p, dtop_p:layer, expert_choice, sigmoid, dense."
        ),
    ] = "topk,topp:0.4,dtop_p",
    experts: Annotated[int, typer.Option(min=1, help="Of a layer.")] = 16,
    active: Annotated[int, typer.Option(min=1, help="Experts of a token, on average.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Of each training.")] = 300,
    corpus: Annotated[
        str, typer.Option(help="Text of tradeoff.data.text, a file, or digits for a diffusion transformer.")
    ] = "foldoc",
    seed: Annotated[int, typer.Option(min=0, help="Of weights and the order of the data.")] = 0,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
) -> None:
    """Train a small model with each router; print loss, active experts, deviation, operations, seconds."""
    import time

    from rich.console import Console

    from tradeoff.core.context import usable_device

    from .report import run_table
    from .routers import RouterChoice
    from .tasks import DigitsTask, TextTask
    from .training import Size
    from .training import train as train_one

    choices = [RouterChoice.parse(word) for word in router.split(",") if word.strip()]
    if not choices:
        raise typer.BadParameter(f"name one or more routers with commas between, not {router!r}")
    size = Size.checked(experts, active)
    task = DigitsTask(steps=steps) if corpus == "digits" else TextTask(steps=steps, corpus=corpus)
    place, runs = usable_device(device), {}
    for choice in choices:
        started = time.perf_counter()
        run = train_one(task, choice, size, "steady", seed, place)
        runs[str(choice)] = run, time.perf_counter() - started
        typer.echo(
            f"{choice}: loss {run.loss:.3f}" + (f"; {run.diagnosis}" if run.diagnosis else ""), err=True
        )
    Console().print(run_table(runs))
