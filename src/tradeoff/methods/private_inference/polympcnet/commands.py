"""Search for your own network, and what it would take on a pair of FPGA boards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tradeoff.data.images import ImageData
    from tradeoff.methods.private_inference.polympcnet import Point
    from tradeoff.nn.plan import Plan

app = typer.Typer(help="Search for quadratics in place of ReLUs of your own network.", no_args_is_help=True)

Arch = Annotated[str, typer.Option(help="Architecture, one of tradeoff.nn.models.")]
InputShape = Annotated[str, typer.Option(help="Channels,height,width of an image.")]
Board = Annotated[str, typer.Option(help="A board of tradeoff.data.devices.")]
Bandwidth = Annotated[float, typer.Option(min=1, help="Of the network, bit/s.")]
BaseLatency = Annotated[float, typer.Option(min=0, help="Of a message, in milliseconds.")]
Chosen = Annotated[Path | None, typer.Option(help="architecture.json of a search.")]
AllSites = Annotated[
    str | None, typer.Option("--all", help="In place of it: poly (and average pooling) or relu at all sites.")
]


@app.callback()
def _verbs() -> None:
    """Search for quadratics in place of ReLUs of your own network."""


@app.command()
def search(
    model: Annotated[Path, typer.Option(help="Weights of the trained network (safetensors).")],
    arch: Arch,
    data: Annotated[str, typer.Option(help="Data set, or a folder with one subfolder of images per class.")],
    penalty: Annotated[list[float], typer.Option(min=0, help="Loss of a millisecond; give several.")],
    out: Annotated[Path, typer.Option(help="Folder for the networks.")],
    latency: Annotated[
        str, typer.Option(help="What is optimized: a link (wan, lan, narrow), zcu104 or pasnet-proxy.")
    ] = "wan",
    calibration: Annotated[
        Path | None, typer.Option(help="Of the engine on this host; measured here if absent.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images an inference.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the search.")] = 20,
    finetuning: Annotated[int, typer.Option(min=1, help="Epochs after that.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=1e-9, max=100, help="Of Adam.")] = 0.001,
    alpha_rate: Annotated[float, typer.Option(min=1e-9, max=100, help="Of the choices.")] = 0.01,
    order: Annotated[int, typer.Option(min=1, max=2, help="2: look one step of the weights ahead.")] = 1,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Run each network between two parties.")] = True,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="A torch device; auto takes an accelerator if any.")] = "cpu",
) -> None:
    """Search once for each penalty; the same command goes on where it was interrupted.

    Each penalty gets a folder with the network (model.safetensors, config.json), its plan, architecture.json,
    latency.json and a program for `tradeoff two-party serve`.
    """
    from tradeoff.core.context import usable_device
    from tradeoff.data.devices import latency_model
    from tradeoff.data.images import load
    from tradeoff.engines.transport import PROFILES
    from tradeoff.engines.two_party.networks import link_latency
    from tradeoff.methods.private_inference.polympcnet import pareto
    from tradeoff.nn.fit import FitConfig
    from tradeoff.nn.models import build, load_weights
    from tradeoff.nn.search import ArchitectureConfig

    place = usable_device(device)
    images = load(data)
    network = build(arch, images.num_classes, images.input_shape)
    load_weights(network, model)
    network.to(place).eval()
    on_link = latency in PROFILES
    measure = (
        link_latency(latency, calibration, batch, out) if on_link else latency_model(latency, batch=batch)
    )
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "optimizer": "adam",
        "learning_rate": learning_rate,
        "clip_norm": 5.0,
    }
    points = pareto(
        network,
        measure,
        images.input_shape,
        penalty,
        images.train,
        images.validation,
        FitConfig(epochs=epochs, schedule="constant", seed=seed, **common),
        FitConfig(epochs=finetuning, final_learning_rate=learning_rate / 100, seed=seed + 1, **common),
        architecture=ArchitectureConfig(
            learning_rate=alpha_rate, order=2 if order == 2 else 1, batch_size=batch_size
        ),
        checkpoint=out / "checkpoint",
    )
    for point in points:
        folder = out / f"penalty-{point.penalty:g}"
        typer.echo(_write(point, images, arch, folder, latency if run and on_link else None, batch))
    typer.echo(f"written to {out}")


def _write(point: "Point", images: "ImageData", arch: str, folder: Path, link: str | None, batch: int) -> str:
    """Write one network and return its line of the table: with a run over ``link``, unless that is None."""
    from tradeoff.engines.two_party.networks import write_network

    line = write_network(folder, point.network, point.architecture, point.latency, images, arch, link, batch)
    return f"penalty {point.penalty:<8g} {point.relu_count:>9,} ReLUs  {line}"


@app.command()
def latency(
    arch: Arch,
    input_shape: InputShape = "3,224,224",
    classes: Annotated[int, typer.Option(min=2, help="Outputs of the network.")] = 1000,
    architecture: Chosen = None,
    all_sites: AllSites = None,
    board: Board = "zcu104",
    bandwidth: Bandwidth = 8e9,
    base_latency: BaseLatency = 0.0,
    batch: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Print what each operator takes on a pair of boards, by the papers' formulas: modelled, not measured."""
    from tradeoff.data.devices import fpga_latency

    boards = fpga_latency(board, bandwidth=bandwidth, base_latency=base_latency / 1e3, batch=batch)
    found = boards.network(_plan(arch, input_shape, classes, architecture, all_sites))
    typer.echo(found.table())
    typer.echo(
        f"modelled on two {board}: {1e3 * found.seconds:.2f} ms for {batch} image(s), nothing overlapped"
    )


@app.command()
def schedule(
    arch: Arch,
    input_shape: InputShape = "3,224,224",
    classes: Annotated[int, typer.Option(min=2, help="Outputs of the network.")] = 1000,
    architecture: Chosen = None,
    all_sites: AllSites = None,
    board: Board = "zcu104",
    bandwidth: Bandwidth = 8e9,
    base_latency: BaseLatency = 0.0,
    images: Annotated[int, typer.Option(min=1, max=64, help="In flight together.")] = 1,
    watts: Annotated[float | None, typer.Option(min=0, help="That both boards draw, for the energy.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Where the chart's bars go, .json or .csv.")] = None,
) -> None:
    """Simulate how operators overlap on a pair of boards: sequential and pipelined time, use of resources."""
    from tradeoff.data.devices import fpga_latency
    from tradeoff.nn.latency import schedule as simulate
    from tradeoff.nn.latency.scheduler import tasks
    from tradeoff.nn.plan.command_line import check_place

    check_place(chart)
    boards = fpga_latency(board, bandwidth=bandwidth, base_latency=base_latency / 1e3)
    plan = _plan(arch, input_shape, classes, architecture, all_sites)
    found = simulate(tasks(plan, boards, images=images), boards, images=images)
    typer.echo(f"modelled on two {board}, {images} image(s):")
    typer.echo(f"sequential {1e3 * found.sequential:.2f} ms, pipelined {1e3 * found.makespan:.2f} ms")
    typer.echo(f"an image takes {1e3 * found.bound:.2f} ms at least, however many are in flight")
    for resource, part in found.utilization().items():
        typer.echo(f"{resource:6} busy {part:.1%}")
    if watts is not None:
        typer.echo(f"energy {found.energy(watts):.3f} J")
    if chart is not None:
        found.save(chart)


def _plan(
    arch: str, input_shape: str, classes: int, architecture: Path | None, all_sites: str | None
) -> "Plan":
    """The plan of an architecture, for costs: weights do not matter."""
    import torch

    from tradeoff.nn.models import build
    from tradeoff.nn.plan import trace
    from tradeoff.nn.plan.command_line import bad_input, parse_shape
    from tradeoff.nn.search import Architecture, apply_to_plan, insert_gates
    from tradeoff.nn.surgery import with_relus

    if (architecture is None) == (all_sites is None):
        raise typer.BadParameter("give either --architecture or --all")
    if all_sites not in (None, "poly", "relu"):
        raise typer.BadParameter(f"--all is poly or relu, not {all_sites!r}")
    shape = parse_shape(input_shape)
    with bad_input(), torch.random.fork_rng([]):
        network = with_relus(build(arch, classes, shape), shape).eval()  # type: ignore[arg-type]
        plan = trace(network, shape)
        if architecture is not None:
            chosen = Architecture.load(architecture)
        else:
            pooling = "average" if all_sites == "poly" else "max"
            chosen = Architecture.uniform(insert_gates(network, shape), str(all_sites), pooling)
        return apply_to_plan(plan, chosen)
