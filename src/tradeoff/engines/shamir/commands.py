"""Run your own network among servers none of which sees the data.

The verbs of model owner, servers, dealer and data owner, and what an inference costs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradeoff.nn.plan.command_line import (
    bad_input,
    check_place,
    digits_network,
    load_images,
    load_network,
    parse_shape,
)

if TYPE_CHECKING:
    from tradeoff.engines.shamir import Program
    from tradeoff.engines.shamir.hosts import Served

app = typer.Typer(
    help="Private inference among servers that hold Shamir shares.",
    no_args_is_help=True,
    add_completion=False,
)

ProgramFolder = Annotated[Path, typer.Option("--program", help="Folder that `shamir compile` wrote.")]
ConfigFile = Annotated[Path, typer.Option(help="TOML file: addresses of the parties, certificates, limits.")]
Servers = Annotated[int, typer.Option(help="How many servers compute.")]
Threshold = Annotated[int, typer.Option(help="How many of them together learn nothing.")]
Security = Annotated[str, typer.Option(help="semi-honest, abort or robust.")]
Nonlinear = Annotated[str, typer.Option(help="strict, or masked: cheaper, shows how large values are.")]
MAX_BATCH = 1_000_000


@app.command()
def keys(
    out: Annotated[Path, typer.Option(help="Folder for the files; existing ones are never overwritten.")],
    servers: Servers = 3,
    days: Annotated[float, typer.Option(help="How long the certificates are valid.")] = 365,
) -> None:
    """Make certificates: for the servers, then the dealer, then the data owner."""
    from tradeoff.core.errors import DataError
    from tradeoff.engines.shamir.sharing import MAX_SERVERS
    from tradeoff.engines.transport import make_keys

    if not 3 <= servers <= MAX_SERVERS:
        raise DataError(f"there are 3 to {MAX_SERVERS} servers, not {servers}")
    for path in make_keys(out, servers + 2, days=days):
        typer.echo(str(path))


@app.command("compile")
def compile_(
    out: Annotated[Path, typer.Option(help="Folder for the program and everybody's part of it.")],
    plan: Annotated[Path | None, typer.Option(help="A plan file of a traced network.")] = None,
    arch: Annotated[str | None, typer.Option(help="An architecture of tradeoff.nn.models.")] = None,
    model: Annotated[Path | None, typer.Option(help="Its weights (safetensors).")] = None,
    input_shape: Annotated[str, typer.Option(help="Channels,height,width of an image.")] = "3,32,32",
    classes: Annotated[int, typer.Option(help="Outputs of the network.")] = 10,
    output: Annotated[str, typer.Option(help="What is revealed: logits or argmax.")] = "logits",
    weights: Annotated[str, typer.Option(help="private or public.")] = "private",
    servers: Servers = 3,
    threshold: Threshold = 1,
    security: Security = "semi-honest",
    nonlinear: Nonlinear = "strict",
) -> None:
    """Prepare a network and share its weights: `server-I` is for each server, `public` for the others."""
    from tradeoff.engines import shamir
    from tradeoff.engines.shamir.program import save_shares

    with bad_input():
        network = load_network(plan, arch, model, parse_shape(input_shape), classes)
        program = shamir.compile(
            network,
            servers=servers,
            threshold=threshold,
            security=security,
            nonlinear=nonlinear,
            weights=weights,
            output=output,
        ).shared()
    program.public().save(out / "public")
    for server, shares in enumerate(program.share_weights()):
        program.public().save(out / f"server-{server}")
        save_shares(out / f"server-{server}", shares)
        typer.echo(f"{out / f'server-{server}'}: give it to that server over a private channel, keep no copy")
    typer.echo(f"program {program.digest[:16]}: {out / 'public'} (dealer, data owner)")


@app.command()
def serve(
    program: ProgramFolder,
    config: ConfigFile,
    server: Annotated[int, typer.Option("--id", help="This server's id, from 0.")],
    queries: Annotated[int | None, typer.Option(help="Stop after so many.", min=1)] = None,
    max_batch: Annotated[int, typer.Option(help="Refuse queries of more images.", min=1)] = 256,
) -> None:
    """Compute for queries, as a server."""
    from tradeoff.engines.shamir.hosts import serve_queries
    from tradeoff.engines.shamir.program import load_shares
    from tradeoff.engines.transport import Config
    from tradeoff.engines.transport.crew import keep_freed_memory

    keep_freed_memory()
    loaded, settings = _load_program(program), Config.load(config)
    try:
        shares = load_shares(program, loaded)
    except FileNotFoundError:
        raise typer.BadParameter(
            f"{program} holds no shares of weights; a server has its own folder"
        ) from None
    typer.echo(f"server {server} of program {loaded.digest[:16]}")
    serve_queries(
        loaded, shares, settings, server, queries=queries, max_batch=max_batch, on_query=_say_served
    )


@app.command()
def query(
    program: ProgramFolder,
    config: ConfigFile,
    images: Annotated[Path, typer.Option("--input", help="Inputs (images, *shape), .npy.")],
    out: Annotated[Path | None, typer.Option(help="Where the results go, .npy; printed if absent.")] = None,
    report: Annotated[Path | None, typer.Option(help="Where the cost goes, .json or .csv.")] = None,
) -> None:
    """Ask the servers about inputs, as the data owner; they do not see them."""
    import numpy as np

    from tradeoff.engines.shamir.hosts import query as ask
    from tradeoff.engines.transport import Config
    from tradeoff.engines.transport.crew import keep_freed_memory

    for path in (out, report):
        check_place(path)
    keep_freed_memory()
    result, cost = ask(_load_program(program), Config.load(config), load_images(images))
    if report is not None:
        cost.save(report)
    if out is None:
        typer.echo(np.array2string(result, precision=4, threshold=100))
    else:
        np.save(out, result, allow_pickle=False)
    typer.echo(str(cost), err=True)


@app.command()
def dealer(
    program: ProgramFolder,
    config: ConfigFile,
    sessions: Annotated[int | None, typer.Option(help="Stop after so many.", min=1)] = None,
    max_batch: Annotated[int, typer.Option(help="Refuse sessions of more images.", min=1)] = 256,
) -> None:
    """Supply correlated randomness; the dealer sees no input, weight or result."""
    from tradeoff.engines.shamir.hosts import deal_sessions
    from tradeoff.engines.transport import Config
    from tradeoff.engines.transport.crew import keep_freed_memory

    keep_freed_memory()
    loaded, settings = _load_program(program), Config.load(config)
    deal_sessions(loaded, settings, sessions=sessions, max_batch=max_batch, on_session=_say_dealt)


@app.command()
def cost(
    program: ProgramFolder,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH)] = 1,
    net: Annotated[str, typer.Option(help="loopback, lan, wan or pasnet.")] = "wan",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predict rounds and bytes of one inference at a server, without running it."""
    from tradeoff.engines import shamir

    loaded = _load_program(program)
    predicted = shamir.cost(loaded, batch, net, party=loaded.options.servers - 1)
    if as_json:
        typer.echo(json.dumps({**predicted.to_json(), "link_seconds": predicted.link_seconds}))
    else:
        typer.echo(f"{predicted}\nthe links alone take {predicted.link_seconds:.3f} s")


@app.command()
def bench(
    arch: Annotated[str, typer.Option(help="An architecture of tradeoff.nn.models.")] = "small_cnn",
    model: Annotated[Path | None, typer.Option(help="Weights; trained here on digits if absent.")] = None,
    net: Annotated[str, typer.Option(help="loopback, lan, wan or pasnet.")] = "loopback",
    batch: Annotated[int, typer.Option(min=1)] = 32,
    servers: Servers = 3,
    threshold: Threshold = 1,
    security: Security = "semi-honest",
    nonlinear: Nonlinear = "strict",
    out: Annotated[Path | None, typer.Option("--json", help="Where the report goes.")] = None,
) -> None:
    """Train on 8x8 digits, compile, run all parties as processes, compare with plaintext, print the cost."""
    from dataclasses import asdict

    from tradeoff.engines import shamir
    from tradeoff.engines.transport import profile

    profile(net)  # refuses an unknown one before anything is trained
    check_place(out)
    with bad_input():
        shamir.Options(servers=servers, threshold=threshold, security=security, nonlinear=nonlinear)  # type: ignore[arg-type]
        x, y, network = digits_network(arch, model)
    program = shamir.compile(
        network,
        (1, 8, 8),
        calibration=x[:64],
        servers=servers,
        threshold=threshold,
        security=security,
        nonlinear=nonlinear,
    )
    with shamir.Session.local(net=net) as session:
        session.infer(program, x[:batch], batch=batch)  # starts the processes
        logits = session.infer(program, x[:batch], batch=batch)
        report = session.report()
    agreement = shamir.agreement(program, x[:batch], logits)
    accuracy = float((logits.argmax(axis=1) == y[:batch]).mean())
    typer.echo(str(report))
    typer.echo(
        f"accuracy {accuracy:.4f}; logits differ from plaintext by {agreement.largest:.2e} at most, "
        f"{agreement.mean:.2e} on average; same label for {agreement.labels:.2%}"
    )
    if out is not None:
        document = {**report.to_json(), "accuracy": accuracy, "agreement": asdict(agreement)}
        out.write_text(json.dumps(document, indent=2) + "\n")


def _load_program(folder: Path) -> Program:
    from tradeoff.core.errors import DataError
    from tradeoff.engines.shamir import Program

    try:
        return Program.load(folder)
    except FileNotFoundError:
        raise DataError(f"{folder} is not a program: make one with `tradeoff shamir compile`") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{folder} is not a program: {error}") from None


def _say_served(served: Served) -> None:
    if served.error is not None:
        typer.echo(f"a query failed after {served.seconds:.2f} s: {served.error}")
        return
    assert served.report is not None
    total = served.report.total
    typer.echo(
        f"computed {served.images} image(s) in {served.seconds:.2f} s: {total.rounds} rounds, "
        f"{total.sent:,} bytes sent, {total.received:,} received"
    )


def _say_dealt(dealt: int, error: str | None) -> None:
    typer.echo(f"dealt for {dealt} inference(s)" if error is None else f"a session failed: {error}")
