"""Reduce the ReLUs of your own network: a front, or the one within a budget."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from tradeoff.data.images import ImageData
    from tradeoff.methods.private_inference.rrnet import FrontPoint, ReLUReduction
    from tradeoff.nn.fit import FitConfig

app = typer.Typer(help="Reduce the ReLUs of your own network under a latency.", no_args_is_help=True)

Model = Annotated[Path, typer.Option(help="Weights of the trained network (safetensors).")]
Arch = Annotated[str, typer.Option(help="Its architecture, one of tradeoff.nn.models.")]
Data = Annotated[str, typer.Option(help="Data set, or a folder with one subfolder of images per class.")]
Latency = Annotated[str, typer.Option(help="What counts: a link (wan, lan, narrow), zcu104 or pasnet-proxy.")]
CalibrationFile = Annotated[
    Path | None, typer.Option(help="Of the engine on this host; measured here if absent.")
]
Batch = Annotated[int, typer.Option(min=1, help="Images an inference.")]
Epochs = Annotated[int, typer.Option(min=1, help="Epochs of a search.")]
Finetuning = Annotated[int, typer.Option(min=1, help="Epochs after that.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images a step.")]
LearningRate = Annotated[float, typer.Option(min=1e-9, max=100, help="Of Adam.")]
AlphaRate = Annotated[float, typer.Option(min=1e-9, max=100, help="Of the choices.")]
Groups = Annotated[int, typer.Option(min=1, help="Channel groups of a site that choose for themselves.")]
Run = Annotated[bool, typer.Option("--run/--no-run", help="Run each network between two parties.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of everything random.")]
Device = Annotated[str, typer.Option(help="A torch device; auto takes an accelerator if any.")]


@app.callback()
def _verbs() -> None:
    """Reduce the ReLUs of your own network under a latency."""


@app.command()
def sweep(
    model: Model,
    arch: Arch,
    data: Data,
    penalty: Annotated[list[float], typer.Option(min=0, help="Loss of a millisecond; give several, rising.")],
    out: Annotated[Path, typer.Option(help="Folder for the networks.")],
    latency: Latency = "wan",
    calibration: CalibrationFile = None,
    batch: Batch = 1,
    epochs: Epochs = 20,
    finetuning: Finetuning = 10,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 0.001,
    alpha_rate: AlphaRate = 0.01,
    groups: Groups = 1,
    run: Run = True,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Make a front, each search from where the last one ended; the same command goes on where it stopped."""
    from tradeoff.engines.transport import PROFILES
    from tradeoff.methods.private_inference.rrnet.reduction import check_penalties
    from tradeoff.nn.plan.command_line import bad_input

    with bad_input():
        check_penalties(penalty)
    images, method = _method(model, arch, data, latency, calibration, batch, out, alpha_rate, groups, device)
    search, after = _training(epochs, finetuning, batch_size, learning_rate, seed)
    front = method.sweep(
        images.train, images.validation, penalty, search, after, checkpoint=out / "checkpoint"
    )
    front.save(out / "front.json")
    link = latency if run and latency in PROFILES else None
    for index, point in enumerate(front.points):
        if point.network is None:
            typer.echo(f"penalty {point.penalty:g} failed: {point.error}", err=True)
            continue
        typer.echo(_write(point, point.network, images, arch, out / f"point-{index}", link, batch))
    typer.echo(f"{len(front.best)} of {len(front.points)} points on the front; written to {out}")


@app.command()
def budget(
    model: Model,
    arch: Arch,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the network.")],
    milliseconds: Annotated[float | None, typer.Option(min=0, help="Modelled latency at most.")] = None,
    relus: Annotated[int | None, typer.Option(min=0, help="ReLUs of an image at most.")] = None,
    latency: Latency = "wan",
    calibration: CalibrationFile = None,
    batch: Batch = 1,
    epochs: Epochs = 20,
    finetuning: Finetuning = 10,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 0.001,
    alpha_rate: AlphaRate = 0.01,
    groups: Groups = 1,
    run: Run = True,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Make the network that meets a budget; the same command goes on where it stopped."""
    from tradeoff.engines.transport import PROFILES

    if (milliseconds is None) == (relus is None):
        raise typer.BadParameter("give either --milliseconds or --relus")
    images, method = _method(model, arch, data, latency, calibration, batch, out, alpha_rate, groups, device)
    search, after = _training(epochs, finetuning, batch_size, learning_rate, seed)
    point = method.to_budget(
        images.train,
        images.validation,
        search,
        after,
        seconds=None if milliseconds is None else milliseconds / 1e3,
        relus=relus,
        checkpoint=out / "checkpoint",
    )
    assert point.network is not None
    link = latency if run and latency in PROFILES else None
    typer.echo(_write(point, point.network, images, arch, out, link, batch))
    typer.echo(f"written to {out}")


@app.command()
def sensitivity(
    arch: Arch,
    front: Annotated[Path, typer.Option(help="front.json of a sweep.")],
    input_shape: Annotated[str, typer.Option(help="Channels,height,width of an image.")] = "3,32,32",
    classes: Annotated[int, typer.Option(min=2, help="Outputs of the network.")] = 10,
    board: Annotated[str, typer.Option(help="A board of tradeoff.data.devices.")] = "zcu104",
    bandwidth: Annotated[list[float] | None, typer.Option(min=1, help="bit/s; give several.")] = None,
    base_latency: Annotated[
        list[float] | None, typer.Option(min=0, help="Of a message, in milliseconds; give several.")
    ] = None,
) -> None:
    """Recompute a front for other networks between two boards, without training: modelled, not measured."""
    import torch

    from tradeoff.data.devices import fpga_latency
    from tradeoff.methods.private_inference.rrnet import Front
    from tradeoff.methods.private_inference.rrnet import sensitivity as recompute
    from tradeoff.nn.models import build
    from tradeoff.nn.plan import trace
    from tradeoff.nn.plan.command_line import bad_input, parse_shape
    from tradeoff.nn.surgery import with_relus

    shape = parse_shape(input_shape)
    with bad_input(), torch.random.fork_rng([]):
        network = with_relus(build(arch, classes, shape), shape).eval()  # type: ignore[arg-type]
        loaded = Front.load(front, trace(network, shape))
        models = {
            f"{rate / 1e9:g} Gbit/s, {delay:g} ms": fpga_latency(
                board, bandwidth=rate, base_latency=delay / 1e3
            )
            for rate in bandwidth or [8e9]
            for delay in base_latency or [0.0]
        }
        found = recompute(loaded, models)
    alive = [point for point in loaded.points if point.architecture is not None]
    typer.echo(f"modelled milliseconds on two {board}; * where the point is on the front")
    for name, seconds in found.items():
        typer.echo(name)
        for point, taken in zip(alive, seconds, strict=True):
            beaten = any(
                s <= taken and p.accuracy >= point.accuracy and (s, p.accuracy) != (taken, point.accuracy)
                for p, s in zip(alive, seconds, strict=True)
            )
            mark = " " if beaten else "*"
            typer.echo(
                f"  {mark} penalty {point.penalty:<8g} {point.relus:>9,} ReLUs at "
                f"{point.architecture.relu_sites if point.architecture else 0:>3} sites  "
                f"accuracy {point.accuracy:.4f}  {1e3 * taken:10.3f}"
            )


def _method(
    model: Path,
    arch: str,
    data: str,
    latency: str,
    calibration: Path | None,
    batch: int,
    out: Path,
    alpha_rate: float,
    groups: int,
    device: str,
) -> "tuple[ImageData, ReLUReduction]":
    from tradeoff.core.context import usable_device
    from tradeoff.data.devices import latency_model
    from tradeoff.data.images import load
    from tradeoff.engines.transport import PROFILES
    from tradeoff.engines.two_party.networks import link_latency
    from tradeoff.methods.private_inference.rrnet import ReLUReduction
    from tradeoff.nn.models import build, load_weights
    from tradeoff.nn.search import ArchitectureConfig, GateConfig

    place = usable_device(device)
    images = load(data)
    network = build(arch, images.num_classes, images.input_shape)
    load_weights(network, model)
    network.to(place).eval()
    on_link = latency in PROFILES
    measure = (
        link_latency(latency, calibration, batch, out) if on_link else latency_model(latency, batch=batch)
    )
    method = ReLUReduction(
        network,
        measure,
        images.input_shape,
        GateConfig(groups=groups),
        ArchitectureConfig(learning_rate=alpha_rate),
    )
    return images, method


def _training(
    epochs: int, finetuning: int, batch_size: int, learning_rate: float, seed: int
) -> "tuple[FitConfig, FitConfig]":
    from tradeoff.nn.fit import FitConfig

    common: dict[str, Any] = {
        "batch_size": batch_size,
        "optimizer": "adam",
        "learning_rate": learning_rate,
        "clip_norm": 5.0,
    }
    search = FitConfig(epochs=epochs, schedule="constant", seed=seed, **common)
    after = FitConfig(epochs=finetuning, final_learning_rate=learning_rate / 100, seed=seed + 1, **common)
    return search, after


def _write(
    point: "FrontPoint",
    network: "nn.Module",
    images: "ImageData",
    arch: str,
    folder: Path,
    link: str | None,
    batch: int,
) -> str:
    """Write one network and return its line of the table: with a run over ``link``, unless that is None."""
    from tradeoff.engines.two_party.networks import write_network

    assert point.architecture is not None
    assert point.latency is not None
    line = write_network(folder, network, point.architecture, point.latency, images, arch, link, batch)
    return f"penalty {point.penalty:<8.4g} {point.relus:>9,} ReLUs  {line}"
