"""Choose servers and protection for your own network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tradeoff.nn.plan import Plan

app = typer.Typer(
    help="Choose servers and protection for your own network.", no_args_is_help=True, add_completion=False
)

SETTINGS = (
    (3, 1, "semi-honest"),
    (3, 1, "abort"),
    (4, 1, "abort"),
    (5, 1, "robust"),
    (5, 2, "semi-honest"),
    (5, 2, "abort"),
    (7, 3, "semi-honest"),
)


@app.callback()
def _verbs() -> None:
    """Choose servers and protection for your own network."""


@app.command()
def compare(
    plan: Annotated[Path | None, typer.Option(help="A plan file of a traced network.")] = None,
    arch: Annotated[str | None, typer.Option(help="An architecture of tradeoff.nn.models.")] = None,
    input_shape: Annotated[str, typer.Option(help="Channels,height,width of an image.")] = "3,32,32",
    classes: Annotated[int, typer.Option(help="Outputs of the network.")] = 10,
    batch: Annotated[int, typer.Option(help="Images an inference.", min=1)] = 1,
    link: Annotated[str, typer.Option(help="loopback, lan, wan or pasnet.")] = "wan",
) -> None:
    """Print what an inference costs among three to seven servers, with and without protection.

    `tradeoff shamir compile` then makes the program; weights are not needed here.
    """
    from rich.console import Console
    from rich.table import Table

    from tradeoff.core.errors import DataError
    from tradeoff.engines.transport import profile
    from tradeoff.methods.private_inference.ssnet.comparison import Setting, compare_settings
    from tradeoff.nn.plan.command_line import bad_input, parse_shape

    if (plan is None) == (arch is None):
        raise DataError("give either --plan or --arch")
    profile(link)
    with bad_input():
        network = _plan(plan, arch, parse_shape(input_shape), classes)
        settings = [
            Setting(servers, threshold, security, nonlinear)  # type: ignore[arg-type]
            for servers, threshold, security in SETTINGS
            for nonlinear in ("strict", "masked")
        ]
        costs = compare_settings(network, settings, batch=batch, link=link)
    table = Table(
        "servers", "threshold", "security", "comparisons", "rounds", "bytes", "offline", f"{link} s"
    )
    for cost in costs:
        chosen = cost.setting
        named = (str(chosen.servers), str(chosen.threshold), chosen.security, chosen.nonlinear)
        numbers = (f"{cost.rounds}", f"{cost.online:,}", f"{cost.offline:,}", f"{cost.link_seconds:.3f}")
        table.add_row(*named, *numbers)
    Console().print(table)
    typer.echo("masked comparisons show every server about how large values are; strict ones show nothing")


def _plan(plan: Path | None, arch: str | None, shape: tuple[int, ...], classes: int) -> Plan:
    from tradeoff.nn.models import build
    from tradeoff.nn.plan import load, trace

    if plan is not None:
        return load(plan)
    assert arch is not None
    return trace(build(arch, classes, shape).eval(), shape)  # type: ignore[arg-type]
