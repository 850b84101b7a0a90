"""Train a skeleton classifier for encrypted inference, and run it on encrypted sequences."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tradeoff.nn.plan.command_line import bad_input, check_place

if TYPE_CHECKING:
    from tradeoff.methods.private_inference.lingcn.inference import EncryptedRun, Prepared

app = typer.Typer(help="Classify skeleton sequences under encryption.", no_args_is_help=True)

Data = Annotated[str, typer.Option(help="motions, motions-view, basic-motions or ntu.")]
DataPath = Annotated[Path | None, typer.Option("--path", help="Its files, where they are not embedded.")]
Frames = Annotated[int, typer.Option(min=2, help="Of a sequence.")]
Windows = Annotated[int, typer.Option(min=10, help="Training windows of the recorded motions.")]
Channels = Annotated[list[int] | None, typer.Option(help="Of each layer; give it several times.")]
Epochs = Annotated[int, typer.Option(min=1, help="Of the teacher; the other phases take a third and two.")]


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the network and its encrypted program.")],
    mu: Annotated[float, typer.Option(min=0, help="Weight of open gates; 0 keeps all activations.")] = 0.3,
    data: Data = "motions",
    path: DataPath = None,
    frames: Frames = 32,
    windows: Windows = 2500,
    channels: Channels = None,
    epochs: Epochs = 9,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of one encrypted request.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
) -> None:
    """Train all three phases; write the network and a program for `tradeoff ckks serve`."""
    from tradeoff.data.skeletons import load
    from tradeoff.engines import ckks
    from tradeoff.methods.private_inference.lingcn.files import save_network
    from tradeoff.methods.private_inference.lingcn.pipeline import Training, train_all

    with bad_input():
        sequences = load(data, frames=frames, windows=windows, path=path)
        training = Training(channels=tuple(channels or (8, 8)), epochs=epochs, seed=seed)
        trained = train_all(sequences, mu, training, say=lambda line: typer.echo(line, err=True))
        prepared = _prepared(trained.network, sequences, batch, None)
    save_network(out, trained.network, frames=sequences.input_shape[1])
    ckks.save_program(out / "program", prepared.program, prepared.plan)
    typer.echo(
        f"test accuracy {trained.teacher_accuracy:.4f} with all ReLUs, {trained.accuracy:.4f} with "
        f"{trained.network.effective_layers()} activation levels; {prepared.plan.parameters.describe()}"
    )
    typer.echo(f"written to {out}; serve it: tradeoff ckks serve --program {out / 'program'} --config ...")


@app.command()
def run(
    data: Data = "motions",
    path: DataPath = None,
    mu: Annotated[list[float] | None, typer.Option(help="Weights of open gates; several.")] = None,
    encrypt: Annotated[int, typer.Option(min=1, help="Test sequences to classify under encryption.")] = 8,
    frames: Frames = 32,
    windows: Windows = 2500,
    channels: Channels = None,
    epochs: Epochs = 9,
    preset: Annotated[
        str | None, typer.Option(help="standard or compact, in place of the smallest parameters.")
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also a CryptoGCN-style plan.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where the report goes, .json.")] = None,
) -> None:
    """Train for each weight, start a server process, classify encrypted test sequences, compare."""
    from tradeoff.data.skeletons import load
    from tradeoff.methods.private_inference.lingcn.pipeline import Training, train_all

    check_place(out)
    rows: list[dict[str, Any]] = []
    with bad_input():
        sequences = load(data, frames=frames, windows=windows, path=path)
        training = Training(channels=tuple(channels or (8, 8)), epochs=epochs, seed=seed)
        teacher = None
        plans = [(weight, True) for weight in (mu or [0.3, 3.0])] + [(0.0, False)] * baseline
        for weight, fused in plans:
            began = time.perf_counter()
            trained = train_all(sequences, weight, training, teacher=teacher, shared=not fused)
            teacher, seconds = trained.teacher, time.perf_counter() - began
            prepared = _prepared(trained.network, sequences, encrypt, preset, fused)
            done = _classify(prepared, sequences, encrypt, calibrate=True)
            row = _row(prepared, done, trained.accuracy, weight, "lingcn" if fused else "cryptogcn")
            rows.append({**row, "training_seconds": seconds})
            typer.echo(_line(rows[-1]), err=True)
    document = {"data": data, "teacher_accuracy": trained.teacher_accuracy, "runs": rows}
    if out is None:
        typer.echo(json.dumps(document, indent=2))
    else:
        out.write_text(json.dumps(document, indent=2) + "\n")


@app.command()
def classify(
    model: Annotated[Path, typer.Option(help="Folder that `lingcn train` wrote.")],
    data: Data = "motions",
    path: DataPath = None,
    encrypt: Annotated[int, typer.Option(min=1, help="Test sequences in one request.")] = 1,
    preset: Annotated[
        str | None, typer.Option(help="standard or compact, in place of the smallest parameters.")
    ] = None,
) -> None:
    """Classify test sequences with a server process that sees ciphertexts only."""
    from tradeoff.data.skeletons import load
    from tradeoff.methods.private_inference.lingcn.files import load_network

    network, frames = load_network(model)
    with bad_input():
        sequences = load(data, frames=frames, windows=100, path=path)
        prepared = _prepared(network, sequences, encrypt, preset)
        done = _classify(prepared, sequences, encrypt, calibrate=False)
    names = sequences.class_names
    for logits, label in zip(done.logits, sequences.test.y[:encrypt].tolist(), strict=True):
        typer.echo(f"{names[int(logits.argmax())]} (it is {names[label]})")
    typer.echo(str(done.report), err=True)


@app.command()
def convert(
    path: Annotated[Path, typer.Option(help="Folder with the .skeleton files of NTU RGB+D.")],
    out: Annotated[Path, typer.Option(help="Folder for the arrays.")],
    skip: Annotated[Path | None, typer.Option(help="Text file with names of broken sequences.")] = None,
) -> None:
    """Turn NTU RGB+D's skeleton files into arrays."""
    from tradeoff.data.skeletons import convert as convert_ntu

    broken = set(skip.read_text().split()) if skip is not None else set()
    typer.echo(f"{convert_ntu(path, out, broken)} sequences in {out}")


def _prepared(network: Any, sequences: Any, batch: int, preset: str | None, fused: bool = True) -> Prepared:
    import torch

    from tradeoff.methods.private_inference.lingcn.folding import fold
    from tradeoff.methods.private_inference.lingcn.inference import prepare

    folded = fold(network, sequences.input_shape[1])
    count = min(max(32, batch), len(sequences.train))
    typical = sequences.train[torch.arange(count)][0][..., 0].double().numpy()
    return prepare(folded, typical, batch=batch, preset=preset, fused=fused)


def _classify(prepared: Prepared, sequences: Any, count: int, *, calibrate: bool) -> EncryptedRun:
    import torch

    from tradeoff.methods.private_inference.lingcn.inference import infer_encrypted

    clips = sequences.test[torch.arange(count)][0][..., 0].double().numpy()
    return infer_encrypted(prepared, clips, calibrate=calibrate)


def _row(prepared: Prepared, done: EncryptedRun, accuracy: float, mu: float, variant: str) -> dict[str, Any]:
    return {
        "variant": variant,
        "mu": mu,
        "accuracy": accuracy,
        "effective_layers": prepared.network.activation_levels,
        "sequences": len(done.logits),
        "agreement": done.agreement,
        "logit_error": done.error,
        "key_seconds": done.setup.keygen_seconds + done.setup.upload_seconds,
        "key_bytes": done.setup.key_bytes,
        "peak_memory": done.peak_memory,
        "predicted_seconds": done.predicted_seconds,
        **done.report.to_json(),
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['variant']} mu {row['mu']:g}: accuracy {row['accuracy']:.4f}, {row['effective_layers']} "
        f"activation levels, {row['parameters']}: {row['evaluate_seconds']:.1f} s evaluation (predicted "
        f"{row['predicted_seconds']:.1f}), {row['encode_seconds']:.1f} s encoding, same label for "
        f"{row['agreement']:.0%}, logits off by {row['logit_error']:.2e}"
    )
