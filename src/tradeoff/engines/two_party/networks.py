"""What commands of methods do with a finished network: a program in a folder, and the model of a link."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tradeoff.engines.two_party.compile import compile
from tradeoff.engines.two_party.latency import Calibration, EngineLatency, calibrate
from tradeoff.engines.two_party.program import Program

if TYPE_CHECKING:
    from torch import nn

CALIBRATION = "calibration.json"


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
