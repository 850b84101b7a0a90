"""Train with students beside, and see what that is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from .comparison import Row

app = typer.Typer(help="Train networks so that students can imitate them.", no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """Train networks so that students can imitate them."""


@app.command()
def train(
    task: Annotated[
        str,
        typer.Option(
            help="Image set or folder of images, corpus or text file, or an environment such as CartPole-v1."
        ),
    ],
    alpha: Annotated[str, typer.Option(help="Weights of the imitation, a row each: 0.5,1.")] = "0.5",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each row.")] = 3,
    steps: Annotated[
        int, typer.Option(min=1, help="Updates of the network, or steps in the environment.")
    ] = 400,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples, or windows of a text.")] = 32,
    lr: Annotated[float, typer.Option(min=1e-9, help="Learning rate of AdamW.")] = 0.003,
    student_steps: Annotated[int, typer.Option(min=1, help="Updates of the student for each.")] = 2,
    temperature: Annotated[float, typer.Option(min=1e-3, help="Of the imitation.")] = 1.5,
    student_loss: Annotated[
        Literal["kl", "kl_ce", "symmetric_kl", "symmetric_kl_ce"],
        typer.Option(help="_ce: students learn the task, too."),
    ] = "kl_ce",
    arch: Annotated[str, typer.Option(help="Of images: mlp, small_cnn, resnet20, resnet18, ...")] = "mlp",
    examples: Annotated[int | None, typer.Option(min=1, help="Training images; all if not given.")] = None,
    noise: Annotated[float, typer.Option(min=0, max=0.99, help="Part of them labeled at random.")] = 0.0,
    train_bytes: Annotated[int, typer.Option(min=1, help="Of a text, from its beginning.")] = 20_000,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder for the weights with the last alpha.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for the numbers.")] = None,
) -> None:
    """Train with each alpha, and plainly with as many updates and as many operations; print the table.

    In an environment, --alpha, --seeds, --steps and --json count; all else is as in the recipe `policies`.
    """
    from .comparison import compare_policies, compare_training, is_policy
    from .experiment import LoTSettings

    def say(line: str) -> None:
        typer.echo(line, err=True)

    alphas = _numbers(alpha)
    if is_policy(task):
        title, rows = compare_policies(task, alphas=alphas, seeds=seeds, steps=steps, say=say)
    else:
        title, rows = compare_training(
            task,
            alphas=alphas,
            seeds=seeds,
            steps=steps,
            batch_size=batch_size,
            learning_rate=lr,
            lot=LoTSettings(student_steps=student_steps, temperature=temperature, student_loss=student_loss),
            arch=arch,
            examples=examples,
            noise=noise,
            train_bytes=train_bytes,
            out=out,
            device=device,
            say=say,
        )
    _print(task, title, rows)
    if json is not None:
        _write(json, task, title, rows)


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise typer.BadParameter(f"write numbers with commas between, as 0.5,1, not {text!r}") from None
    if not numbers or not all(0 <= number < float("inf") for number in numbers):
        raise typer.BadParameter(f"alpha must not be negative: {text}")
    return numbers


def _print(task: str, title: str, rows: "list[Row]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{task}: {title}, mean ± standard deviation over the seeds")
    for heading in ("training", "steps", "score", "student KL", "GFLOP", "seconds", "MB"):
        table.add_column(heading, justify="left" if heading == "training" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.steps:,}",
            f"{row.score:.4g} ± {row.deviation:.2g}" if row.deviation else f"{row.score:.4g}",
            "" if row.student_kl is None else f"{row.student_kl:.4f}",
            "" if row.flops is None else f"{row.flops / 1e9:,.1f}",
            f"{row.seconds:.1f}",
            "" if row.peak_memory is None else f"{row.peak_memory / 1e6:,.0f}",
        )
    Console().print(table)


def _write(path: Path, task: str, title: str, rows: "list[Row]") -> None:
    from dataclasses import asdict

    from tradeoff.core.files import write_json

    write_json(path, {"task": task, "score": title, "rows": [asdict(row) for row in rows]})
