"""Run your own network on encrypted data: the verbs of model owner, server and client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tradeoff.nn.plan.command_line import (
    bad_input,
    check_place,
    load_images,
    load_network,
    parse_shape,
)

if TYPE_CHECKING:
    from tradeoff.engines.ckks.server import Served

app = typer.Typer(
    help="Inference on encrypted data (CKKS): the server never has the secret key.",
    no_args_is_help=True,
    add_completion=False,
)

ProgramFolder = Annotated[Path, typer.Option("--program", help="Folder that `ckks compile` wrote.")]
PublicFolder = Annotated[Path, typer.Option("--program", help="Its subfolder public: the plan.")]
ConfigFile = Annotated[Path, typer.Option(help="TOML file: addresses of server and client, certificates.")]
KeysFolder = Annotated[
    Path, typer.Option("--keys", help="Folder of the client's keys, secret.bin among them.")
]
_GIB = 1 << 30


@app.command()
def keys(
    out: Annotated[Path, typer.Option(help="Folder for the files; existing ones are never overwritten.")],
    clients: Annotated[int, typer.Option(min=1, max=1000, help="How many clients there are.")] = 1,
    days: Annotated[float, typer.Option(help="How long the certificates are valid.")] = 365,
) -> None:
    """Make certificates: party 0 is the server, the others are clients."""
    from tradeoff.engines.transport import make_keys

    for path in make_keys(out, clients + 1, days=days):
        typer.echo(str(path))


@app.command("compile")
def compile_(
    samples: Annotated[Path, typer.Option(help="Typical inputs (inputs, *shape), .npy: ranges are checked.")],
    out: Annotated[Path, typer.Option(help="Folder for the program.")],
    plan: Annotated[Path | None, typer.Option(help="A plan file of a traced network.")] = None,
    arch: Annotated[str | None, typer.Option(help="An architecture of tradeoff.nn.models.")] = None,
    model: Annotated[Path | None, typer.Option(help="Its weights (safetensors).")] = None,
    input_shape: Annotated[str, typer.Option(help="Shape of an input, numbers with commas.")] = "64",
    classes: Annotated[int, typer.Option(help="Outputs of the network.")] = 10,
    preset: Annotated[str, typer.Option(help="standard (40-bit scale) or compact (28-bit).")] = "standard",
    margin_bits: Annotated[int, typer.Option(min=0, help="Stay this far below the security table.")] = 0,
) -> None:
    """Prepare a network: choose secure parameters, check ranges, write the encrypted program."""
    import numpy as np

    from tradeoff.engines import ckks

    with bad_input():
        network = load_network(plan, arch, model, parse_shape(input_shape), classes)
        program = ckks.compile(network)
        typical = load_images(samples)
        typical = typical.reshape(len(typical), -1).astype(np.float64)
        made = ckks.prepare(program, typical, preset=preset, margin_bits=margin_bits)
    ckks.save_program(out, program, made)
    typer.echo(made.parameters.describe())
    typer.echo(f"program {made.digest[:16]} in {out}; give {out / 'public'} to clients, keep the rest")


@app.command()
def keygen(
    program: PublicFolder, out: Annotated[Path, typer.Option(help="Folder; existing keys stay.")]
) -> None:
    """Make a client's keys for a plan. secret.bin decrypts: it never leaves this folder."""
    from tradeoff.engines.ckks import Keys, load_plan

    made = load_plan(program)
    chosen = Keys.create(made, out)
    typer.echo(made.parameters.describe())
    typer.echo(f"{made.key_count} evaluation keys of {len(chosen.evaluation):,} bytes in {out}")


@app.command()
def serve(
    program: ProgramFolder,
    config: ConfigFile,
    keys: Annotated[Path, typer.Option(help="Folder for clients' evaluation keys.")] = Path("server-keys"),
    quota_gib: Annotated[float, typer.Option(min=0.01, help="Room for all clients' keys, GiB.")] = 8,
    cache_gib: Annotated[float, typer.Option(min=0, help="Memory for encoded weights, GiB.")] = 2,
    max_clients: Annotated[int, typer.Option(min=1, help="At once.")] = 8,
) -> None:
    """Compute on what clients encrypted, until stopped."""
    import signal
    import threading

    from tradeoff.engines.ckks.files import load_program
    from tradeoff.engines.ckks.server import serve_program
    from tradeoff.engines.transport import Config

    loaded, made = load_program(program)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = serve_program(
        loaded,
        made,
        Config.load(config),
        keys,
        quota=int(quota_gib * _GIB),
        cache_bytes=int(cache_gib * _GIB),
        max_clients=max_clients,
        on_query=_say_served,
    )
    with server:
        print(f"serving on {server.address} plan {made.digest[:16]}", flush=True)
        stop.wait()


@app.command()
def query(
    program: PublicFolder,
    config: ConfigFile,
    keys: KeysFolder,
    inputs: Annotated[Path, typer.Option("--input", help="One input, or several (inputs, *shape), .npy.")],
    out: Annotated[Path | None, typer.Option(help="Where the results go, .npy; printed if absent.")] = None,
    report: Annotated[Path | None, typer.Option(help="Where the cost goes, .json.")] = None,
) -> None:
    """Encrypt inputs, let the server compute, decrypt the results."""
    import numpy as np

    from tradeoff.engines.ckks import Client, Keys, load_plan
    from tradeoff.engines.transport import Config

    for path in (out, report):
        check_place(path)
    made = load_plan(program)
    x = load_images(inputs)
    shape = made.layout_in.shape
    with bad_input():
        several = x.reshape(-1, *shape) if x.size and x.size % int(np.prod(shape)) == 0 else x[None]
        for one in several:
            made.layout_in.pack(one)
        with Client(made, Keys.load(made, keys)).connect(Config.load(config)) as server:
            results = [server.infer(one) for one in several]
    values = np.stack([result.values for result in results])
    if report is not None:
        report.write_text(json.dumps([result.report.to_json() for result in results], indent=2) + "\n")
    if out is None:
        typer.echo(np.array2string(values, precision=4, threshold=100))
    else:
        np.save(out, values, allow_pickle=False)
    typer.echo(str(results[-1].report), err=True)


@app.command()
def cost(
    program: ProgramFolder,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Time operations here, predict.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """What an inference does, layer by layer, before anything is encrypted."""
    from tradeoff.engines.ckks import load_program, measure, predict, predicted_counts
    from tradeoff.engines.ckks.meter import format_rows

    loaded, made = load_program(program)
    meter = predicted_counts(loaded, made.parameters)
    document: dict[str, Any] = {
        "parameters": made.parameters.to_json(),
        "total_bits": made.parameters.total_bits,
        "limit_bits": made.parameters.limit_bits,
        "layers": list(meter.rows()),
        "keys": made.key_count,
        "key_bytes": made.key_bytes,
    }
    if calibrate:
        evaluation, encoding = predict(loaded, made, measure(made.parameters, backend=made.backend))
        document |= {"evaluate_seconds": evaluation, "encode_seconds": encoding}
    if as_json:
        typer.echo(json.dumps(document))
        return
    typer.echo(f"{made.parameters.describe()}\n{format_rows(meter.rows())}")
    typer.echo(f"{made.key_count} keys of {made.key_bytes:,} bytes in the server's memory")
    if calibrate:
        typer.echo(f"predicted: {evaluation:.2f} s evaluation, {encoding:.2f} s encoding, on one core")


@app.command()
def bench(
    log_n: Annotated[list[int] | None, typer.Option("--logn", help="log2 of ring degrees.")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Where the report goes.")] = None,
) -> None:
    """Time every operation by level on this machine, at 128-bit parameters."""
    from tradeoff.engines.ckks import Parameters, measure
    from tradeoff.engines.ckks.calibration import TIMED

    check_place(out)
    settings = {12: (1, 28, 38, 38), 13: (3, 36, 50, 60), 14: (7, 40, 50, 60), 15: (14, 40, 50, 60)}
    rows = []
    with bad_input():
        for size in log_n or [13, 14]:
            if size not in settings:
                raise ValueError(
                    f"log2 of a ring degree is one of {', '.join(map(str, settings))}, not {size}"
                )
            parameters = Parameters(size, *settings[size])
            timings = measure(parameters, levels=range(1, parameters.depth + 1))
            typer.echo(parameters.describe())
            typer.echo("level  " + "  ".join(f"{name:>9}" for name in TIMED) + "   ms")
            for level in range(parameters.depth, 0, -1):
                found = {name: 1e3 * timings.of(name, level) for name in TIMED}
                typer.echo(f"{level:5}  " + "  ".join(f"{value:9.2f}" for value in found.values()))
                rows.append({"log_n": size, "level": level, **found})
            typer.echo(f"encrypt {1e3 * timings.encrypt:.2f}, decrypt {1e3 * timings.decrypt:.2f}")
    if out is not None:
        out.write_text(json.dumps(rows, indent=2) + "\n")


def _say_served(served: Served) -> None:
    who = f"{served.client}: " if served.client else ""
    if served.error is not None:
        line = f"{who}a client failed after {served.seconds:.2f} s: {served.error}"
    else:
        assert served.meter is not None
        total = served.meter.total
        line = (
            f"{who}computed in {served.seconds:.2f} s: {total('rotate'):,} rotations, "
            f"{total('ct_pt'):,} ct-pt, {total('ct_ct'):,} ct-ct"
        )
    typer.echo(line, err=True)
