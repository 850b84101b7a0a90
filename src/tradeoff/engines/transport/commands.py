"""Make keys for parties, check their links, build a test network."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Links between parties: make keys, check a session, build a test network.",
    no_args_is_help=True,
    add_completion=False,
)
lab = typer.Typer(help="A test network of namespaces on this host (Linux, root).", no_args_is_help=True)
app.add_typer(lab, name="lab")

LabName = Annotated[str, typer.Option(help="Name of the network: up to ten lower-case letters and digits.")]


@app.command()
def keys(
    parties: Annotated[int, typer.Option(help="Number of parties.", min=1)],
    out: Annotated[Path, typer.Option(help="Folder for the files; existing ones are never overwritten.")],
    days: Annotated[float, typer.Option(help="How long the certificates are valid.")] = 365,
) -> None:
    """Make a private authority and a certificate for each party."""
    from tradeoff.engines.transport import make_keys

    for path in make_keys(out, parties, days=days):
        typer.echo(str(path))


@app.command()
def check(
    config: Annotated[Path, typer.Option(help="TOML file that describes the session.")],
    me: Annotated[int, typer.Option(help="Id of this party.", min=0)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Connect to the other parties, which run the same command, and measure every link."""
    from tradeoff.engines.transport import Config, Party
    from tradeoff.engines.transport.check import check_links

    with Party(Config.load(config), me) as net:
        session = f"{net.session:016x}"
        reports = check_links(net)
    if as_json:
        typer.echo(
            json.dumps({"session": session, "me": me, "links": [asdict(report) for report in reports]})
        )
        return
    typer.echo(f"session {session}, party {me}")
    for report in reports:
        tls = "{version} {cipher} {name}".format(**report.tls) if report.tls else "in the clear"
        trip = f"{report.round_trip_ms:.3f} ms"
        typer.echo(f"party {report.peer}: round trip {trip}, {report.mb_per_s:.0f} MB/s, {tls}")


@lab.command()
def up(
    hosts: Annotated[int, typer.Option(help="Number of hosts.", min=2)],
    mbit: Annotated[float | None, typer.Option(help="Bandwidth that each host may send at, Mbit/s.")] = None,
    name: LabName = "lab",
) -> None:
    """Build the network; prints the hosts and how to run a program on one."""
    from tradeoff.engines.transport.lab import lab_up

    members = lab_up(hosts, mbit=mbit, name=name)
    for host in members:
        typer.echo(f"{host.namespace}  {host.address}")
    typer.echo(f"run a program on a host: ip netns exec {members[0].namespace} PROGRAM")


@lab.command()
def down(name: LabName = "lab") -> None:
    """Remove exactly what `up` built."""
    from tradeoff.engines.transport.lab import lab_down

    for namespace in lab_down(name):
        typer.echo(f"removed {namespace}")
