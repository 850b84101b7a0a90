"""Run your own network privately between two hosts.

The verbs of the model owner, the data owner and the dealer, and what an inference costs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    from tradeoff.engines.two_party import Program
    from tradeoff.engines.two_party.hosts import Served

app = typer.Typer(
    help="Private inference between a model owner and a data owner.",
    no_args_is_help=True,
    add_completion=False,
)

ProgramFolder = Annotated[Path, typer.Option("--program", help="Folder that `two-party compile` wrote.")]
ConfigFile = Annotated[Path, typer.Option(help="TOML file: addresses of the parties, certificates, limits.")]
MAX_BATCH = 1_000_000
"""Images of one predicted inference: its rows take turns, so that the time to count them grows with it."""
PoolFolder = Annotated[Path | None, typer.Option(help="Offline pool of this party, in place of a dealer.")]

OfflineChoice = Annotated[
    str,
    typer.Option(
        "--offline",
        help="dealer: a third process makes the correlated randomness; ot: the two parties do, by oblivious "
        "transfer.",
    ),
]


@app.command()
def keys(
    out: Annotated[Path, typer.Option(help="Folder for the files; existing ones are never overwritten.")],
    days: Annotated[float, typer.Option(help="How long the certificates are valid.")] = 365,
) -> None:
    """Make certificates: party 0 is the model owner, party 1 the data owner, party 2 the dealer."""
    from tradeoff.engines.transport import make_keys

    for path in make_keys(out, 3, days=days):
        typer.echo(str(path))


@app.command("compile")
def compile_(
    out: Annotated[Path, typer.Option(help="Folder for the program; `public` in it is for the others.")],
    plan: Annotated[Path | None, typer.Option(help="A plan file of a traced network.")] = None,
    arch: Annotated[str | None, typer.Option(help="An architecture of tradeoff.nn.models.")] = None,
    model: Annotated[Path | None, typer.Option(help="Its weights (safetensors).")] = None,
    input_shape: Annotated[str, typer.Option(help="Channels,height,width of an image.")] = "3,32,32",
    classes: Annotated[int, typer.Option(help="Outputs of the network.")] = 10,
    output: Annotated[str, typer.Option(help="What is revealed: logits or argmax.")] = "logits",
    weights: Annotated[str, typer.Option(help="private or public.")] = "private",
    ring_bits: Annotated[int, typer.Option(help="64 or 32.")] = 64,
    radix: Annotated[int, typer.Option(help="4: fewest bytes; 2: half the offline bytes.")] = 4,
) -> None:
    """Prepare a network: a folder for the model owner, with a public one in it for the others."""
    from tradeoff.engines import two_party

    shape = parse_shape(input_shape)
    with bad_input():
        network = load_network(plan, arch, model, shape, classes)
        program = two_party.compile(network, ring_bits=ring_bits, weights=weights, radix=radix)  # type: ignore[arg-type]
        program = program.with_options(output=output)
    program.save(out)
    program.public().save(out / "public")
    typer.echo(f"program {program.digest[:16]}: {out} (model owner), {out / 'public'} (data owner, dealer)")


@app.command()
def serve(
    program: ProgramFolder,
    config: ConfigFile,
    pool: PoolFolder = None,
    offline: OfflineChoice = "dealer",
    queries: Annotated[int | None, typer.Option(help="Stop after so many.", min=1)] = None,
    max_batch: Annotated[int, typer.Option(help="Refuse queries of more images.", min=1)] = 256,
) -> None:
    """Answer queries, as the model owner."""
    from tradeoff.engines.transport import Config
    from tradeoff.engines.transport.crew import keep_freed_memory
    from tradeoff.engines.two_party.hosts import serve_queries

    keep_freed_memory()
    chosen = _offline(offline)
    loaded, settings = _load_program(program), Config.load(config)
    if not loaded.plan.has_weights:
        raise typer.BadParameter(f"{program} is the public view; the model owner serves the one with weights")
    typer.echo(f"serving program {loaded.digest[:16]} on {settings.parties[0]}")
    serve_queries(
        loaded,
        settings,
        pool=pool,
        offline=chosen,
        queries=queries,
        max_batch=max_batch,
        on_query=_say_served,
    )


@app.command()
def query(
    program: ProgramFolder,
    config: ConfigFile,
    images: Annotated[Path, typer.Option("--input", help="Inputs (images, *shape), .npy.")],
    out: Annotated[Path | None, typer.Option(help="Where the results go, .npy; printed if absent.")] = None,
    pool: PoolFolder = None,
    offline: OfflineChoice = "dealer",
    report: Annotated[Path | None, typer.Option(help="Where the cost goes, .json or .csv.")] = None,
) -> None:
    """Ask the model owner about inputs, as the data owner; the model owner does not see them."""
    import numpy as np

    from tradeoff.engines.transport import Config
    from tradeoff.engines.transport.crew import keep_freed_memory
    from tradeoff.engines.two_party.hosts import query as ask

    for path in (out, report):
        check_place(path)
    keep_freed_memory()
    chosen = _offline(offline)
    loaded = _load_program(program)
    result, cost = ask(loaded, Config.load(config), load_images(images), pool=pool, offline=chosen)
    if report is not None:
        cost.save(report)
    if result is None:
        typer.echo("the result was revealed to the model owner only")
    elif out is None:
        typer.echo(np.array2string(result, precision=4, threshold=100))
    else:
        np.save(out, result, allow_pickle=False)
    typer.echo(str(cost), err=True)


@app.command()
def dealer(
    program: ProgramFolder,
    config: Annotated[Path | None, typer.Option(help="TOML file, to deal live.")] = None,
    pool: Annotated[Path | None, typer.Option(help="Folder for pool files, to deal in advance.")] = None,
    batch: Annotated[int, typer.Option(help="Images an inference, for pool files.", min=1)] = 1,
    runs: Annotated[int, typer.Option(help="Inferences, for pool files.", min=1)] = 1,
    sessions: Annotated[int | None, typer.Option(help="Stop after so many live sessions.", min=1)] = None,
    max_batch: Annotated[int, typer.Option(help="Refuse live sessions of more images.", min=1)] = 256,
) -> None:
    """Supply correlated randomness, live or as files; the dealer sees no input, weight or result."""
    from tradeoff.engines.transport import Config
    from tradeoff.engines.transport.crew import keep_freed_memory
    from tradeoff.engines.two_party.hosts import deal_sessions
    from tradeoff.engines.two_party.pool import write_pool

    if (config is None) == (pool is None):
        raise typer.BadParameter("give either --config (deal live) or --pool (write files)")
    loaded = _load_program(program)
    if pool is not None:
        for folder in write_pool(pool, loaded.public(), batch, runs):
            typer.echo(f"{folder}: give it to that party over a private channel and keep no copy")
        return
    assert config is not None
    keep_freed_memory()
    settings = Config.load(config)
    deal_sessions(loaded.public(), settings, sessions=sessions, max_batch=max_batch, on_session=_say_dealt)


@app.command()
def cost(
    program: ProgramFolder,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH)] = 1,
    net: Annotated[str, typer.Option(help="loopback, lan, wan or pasnet.")] = "wan",
    offline: OfflineChoice = "dealer",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predict rounds and bytes of one inference, without running it."""
    from tradeoff.engines import two_party

    predicted = two_party.cost(_load_program(program), batch, net, offline=_offline(offline))
    if as_json:
        typer.echo(json.dumps({**predicted.to_json(), "link_seconds": predicted.link_seconds}))
    else:
        typer.echo(f"{predicted}\nthe link alone takes {predicted.link_seconds:.3f} s")


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="Where the calibration goes, .json.")],
    repeats: Annotated[int, typer.Option(min=1, help="Timed inferences of each batch size.")] = 5,
) -> None:
    """Time small networks between two processes here, so that latencies can be predicted and searched for."""
    from tradeoff.engines.two_party.latency import calibrate as measure

    check_place(out)
    found = measure(repeats=repeats)
    found.save(out)
    for name, seconds in found.model_dump(exclude={"format"}).items():
        typer.echo(f"{name:12} {seconds:.3g} s")


@app.command()
def bench(
    arch: Annotated[str, typer.Option(help="An architecture of tradeoff.nn.models.")] = "small_cnn",
    model: Annotated[Path | None, typer.Option(help="Weights; trained here on digits if absent.")] = None,
    net: Annotated[str, typer.Option(help="loopback, lan, wan or pasnet.")] = "loopback",
    offline: OfflineChoice = "dealer",
    batch: Annotated[int, typer.Option(min=1)] = 32,
    out: Annotated[Path | None, typer.Option("--json", help="Where the report goes.")] = None,
) -> None:
    """Train on 8x8 digits, compile, run it between processes, compare with plaintext, print the cost."""
    from dataclasses import asdict

    from tradeoff.engines import two_party
    from tradeoff.engines.transport import profile

    profile(net)  # refuses an unknown one before anything is trained
    _offline(offline)
    check_place(out)
    with bad_input():
        x, y, network = digits_network(arch, model)
    program = two_party.compile(network, (1, 8, 8))
    with two_party.Session.local(_offline(offline), net) as session:
        session.infer(program, x[:batch], batch=batch)  # starts the processes
        logits = session.infer(program, x[:batch], batch=batch)
        report = session.report()
    agreement = two_party.agreement(program, x[:batch], logits)
    accuracy = float((logits.argmax(axis=1) == y[:batch]).mean())
    typer.echo(str(report))
    typer.echo(
        f"accuracy {accuracy:.4f}; logits differ from plaintext by {agreement.largest:.2e} at most, "
        f"{agreement.mean:.2e} on average; same label for {agreement.labels:.2%}"
    )
    if out is not None:
        document = {**report.to_json(), "accuracy": accuracy, "agreement": asdict(agreement)}
        out.write_text(json.dumps(document, indent=2) + "\n")


def _offline(choice: str) -> Literal["dealer", "ot"]:
    if choice not in ("dealer", "ot"):
        raise typer.BadParameter(f"the offline phase is by dealer or ot, not {choice!r}")
    return choice  # type: ignore[return-value]


def _load_program(folder: Path) -> Program:
    from tradeoff.core.errors import DataError
    from tradeoff.engines.two_party import Program

    try:
        return Program.load(folder)
    except FileNotFoundError:
        raise DataError(f"{folder} is not a program: make one with `tradeoff two-party compile`") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{folder} is not a program: {error}") from None


def _say_served(served: Served) -> None:
    if served.error is not None:
        typer.echo(f"a query failed after {served.seconds:.2f} s: {served.error}")
        return
    assert served.report is not None
    total = served.report.total
    typer.echo(
        f"answered {served.images} image(s) in {served.seconds:.2f} s: {total.rounds} rounds, "
        f"{total.sent:,} bytes sent, {total.received:,} received"
    )


def _say_dealt(dealt: int, error: str | None) -> None:
    typer.echo(f"dealt {dealt} inference(s)" if error is None else f"a session failed: {error}")
