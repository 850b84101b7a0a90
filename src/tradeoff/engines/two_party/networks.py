"""What commands of methods do with a finished network: a program in a folder, and the model of a link."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from tradeoff.engines.two_party.compile import compile
from tradeoff.engines.two_party.latency import Calibration, EngineLatency, calibrate
from tradeoff.engines.two_party.metrics import measured_metrics
from tradeoff.engines.two_party.program import Program

if TYPE_CHECKING:
    from torch import nn

    from tradeoff.nn.fit import Indexable
    from tradeoff.nn.latency import NetworkLatency
    from tradeoff.nn.search import Architecture

CALIBRATION = "calibration.json"


class Images(Protocol):
    """A data set of images, as :class:`tradeoff.data.images.ImageData` is."""

    @property
    def train(self) -> Indexable: ...

    @property
    def test(self) -> Indexable: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def input_shape(self) -> tuple[int, int, int]: ...


def write_program(
    network: nn.Module, input_shape: tuple[int, ...], typical: NDArray[Any], folder: Path
) -> Program:
    """Compile a network and write it for ``two-party serve``, with the public view in ``public``.

    Args:
        typical: inputs by which value ranges are checked.
        folder: of the model owner.
    """
    program = compile(network, input_shape, calibration=typical)
    program.save(folder)
    program.public().save(folder / "public")
    return program


def write_network(
    folder: Path,
    network: nn.Module,
    architecture: Architecture,
    latency: NetworkLatency,
    images: Images,
    arch: str,
    link: str | None,
    batch: int,
) -> str:
    """Write a searched network, what was chosen, its modelled latency and a program; return what it achieves.

    Args:
        folder: gets ``model.safetensors``, ``config.json``, ``plan.safetensors``, ``architecture.json``,
            ``latency.json`` and ``program``.
        images: data it was trained for.
        arch: of :data:`tradeoff.nn.models.ARCHITECTURES`.
        link: over which it is run, if at all.
        batch: images of that run.
    """
    import torch

    from tradeoff.nn.compressed import save_compressed
    from tradeoff.nn.fit import evaluate

    shape = images.input_shape
    save_compressed(folder, network, arch=arch, num_classes=images.num_classes, input_shape=shape)
    architecture.save(folder / "architecture.json")
    (folder / "latency.json").write_text(json.dumps(latency.to_json(), indent=2) + "\n")
    typical = images.train[torch.arange(min(64, len(images.train)))][0].numpy()
    program = write_program(network.cpu(), shape, typical, folder / "program")
    line = f"test accuracy {evaluate(network, images.test):.4f}  modelled {1e3 * latency.seconds:10.2f} ms"
    if link is None:
        return line
    inputs = images.test[torch.arange(min(batch, len(images.test)))][0].numpy()
    metrics = measured_metrics(program, inputs, link, 3, lambda: None)
    seconds, sent = metrics[f"latency_{link}"].value, metrics["online_bytes"].value
    return f"{line}  measured {1e3 * seconds:10.2f} ms  {sent / 1e6:8.2f} MB"


def link_latency(link: str, calibration: Path | None, batch: int, out: Path) -> EngineLatency:
    """The engine's latency over a link, calibrated by a file, by ``out/calibration.json``, or here and now.

    Args:
        out: gets a calibration made here, so that an interrupted command goes on with it.
    """
    kept = out / CALIBRATION
    if calibration is None and not kept.exists():
        out.mkdir(parents=True, exist_ok=True)
        calibrate().save(kept)
    return EngineLatency(Calibration.load(calibration or kept), link, batch)
