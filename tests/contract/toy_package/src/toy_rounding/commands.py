"""Verbs of the toy."""

import typer

app = typer.Typer(help="Round numbers of your own.", no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """Round numbers of your own."""


@app.command()
def store(value: float, bits: int = 4) -> None:
    """Round one number."""
    steps = 2**bits - 1
    typer.echo(round(value * steps) / steps)
