"""Cut the ReLUs of your own network to a budget."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import nn

    from tradeoff.data.images import ImageData
    from tradeoff.nn.fit import Callback

app = typer.Typer(help="Cut the ReLUs of your own network to a budget.", no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """Cut the ReLUs of your own network to a budget."""


@app.command()
def compress(
    model: Annotated[Path, typer.Option(help="Weights of the trained network (safetensors).")],
    arch: Annotated[str, typer.Option(help="Its architecture, one of tradeoff.nn.models.")],
    data: Annotated[str, typer.Option(help="Data set, or a folder with one subfolder of images per class.")],
    budget: Annotated[int, typer.Option(help="ReLUs per image to keep at most.")],
    out: Annotated[Path, typer.Option(help="Folder for the compressed network.")],
    epochs: Annotated[int, typer.Option(min=1, help="Epochs in which positions are chosen.")] = 20,
    finetuning: Annotated[int, typer.Option(min=1, help="Epochs after that.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 128,
    learning_rate: Annotated[
        float, typer.Option(min=1e-9, max=100, help="Of Adam, falling by cosine.")
    ] = 0.001,
    penalty: Annotated[
        float, typer.Option(min=0, max=1e9, help="Weight of the budget; larger is faster.")
    ] = 40.0,
    degree: Annotated[int, typer.Option(min=1, max=4, help="Of the polynomials.")] = 2,
    augment: Annotated[bool, typer.Option("--augment", help="Random crops and mirror images.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="A torch device; auto takes an accelerator if any.")] = "cpu",
) -> None:
    """Compress a trained network; the same command goes on where it was interrupted.

    The folder gets the network (model.safetensors, config.json), its plan (plan.safetensors) and a program
    for `tradeoff two-party serve` (program; its subfolder public is for the data owner and the dealer).
    """
    from tradeoff.core.context import usable_device
    from tradeoff.data.images import load
    from tradeoff.methods.private_inference.autorep import AutoReP, ReplacementConfig
    from tradeoff.nn.fit import FitConfig, evaluate
    from tradeoff.nn.models import build, load_weights

    place = usable_device(device)
    images = load(data)
    network = build(arch, images.num_classes, images.input_shape)
    load_weights(network, model)
    network.to(place).eval()
    first = FitConfig(
        epochs=epochs,
        batch_size=batch_size,
        optimizer="adam",
        learning_rate=learning_rate,
        final_learning_rate=learning_rate / 100,
        crop_padding=4 * augment,
        flip=augment,
        seed=seed,
    )
    steps = epochs * max(1, len(images.train) // batch_size)
    # A score starts at 0.5 on average: at this rate even a short run can move each to the other side.
    score_learning_rate = max(learning_rate, 5 / steps)
    config = ReplacementConfig(
        degree=degree,
        hysteresis=max(0.003, score_learning_rate),
        calib_iters=min(500, max(1, steps // 3)),
    )
    method = AutoReP(network, budget, images.input_shape, config, penalty=penalty, seed=seed)
    try:
        method.fit(
            images.train,
            images.validation,
            first,
            first.model_copy(update={"epochs": finetuning, "learning_rate": learning_rate / 2}),
            score_learning_rate=score_learning_rate,
            checkpoint=out / "checkpoint",
            callbacks=[_progress()],
        )
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on from {out / 'checkpoint'}", err=True)
        raise typer.Exit(130) from None
    compressed = method.finalize()
    before, after = evaluate(network, images.test), evaluate(compressed, images.test)
    _write(out, compressed, arch, images)
    for row in method.relu_table():
        typer.echo(f"{row.site:30} {row.kept:10,} of {row.total:10,} ReLUs")
    typer.echo(
        f"{method.relu_count():,} of {method.total:,} ReLUs kept; test accuracy {before:.4f} -> {after:.4f}"
    )
    typer.echo(f"written to {out}")


def _progress() -> "Callback":
    from tradeoff.nn.fit import Callback, FitState

    class Lines(Callback):
        def on_epoch_end(self, state: FitState) -> None:
            accuracy = state.logs.get("validation_accuracy", float("nan"))
            count = state.logs["relu_count"]
            line = f"epoch {state.epoch}: {count:,.0f} ReLUs, validation accuracy {accuracy:.4f}"
            typer.echo(line, err=True)

    return Lines()


def _write(out: Path, network: "nn.Module", arch: str, images: "ImageData") -> None:
    """Write the network and, from typical images, a program whose value ranges are checked."""
    import torch

    from tradeoff.engines import two_party
    from tradeoff.engines.two_party.networks import write_program
    from tradeoff.nn.compressed import save_compressed

    save_compressed(out, network, arch=arch, num_classes=images.num_classes, input_shape=images.input_shape)
    typical = images.train[torch.arange(min(64, len(images.train)))][0].numpy()
    program = write_program(network, images.input_shape, typical, out / "program")
    total = two_party.cost(program).total
    typer.echo(
        f"one image in private: {(total.sent + total.received) / 1e6:.2f} MB and {total.rounds} rounds online"
    )
