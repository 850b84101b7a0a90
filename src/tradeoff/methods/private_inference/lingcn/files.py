"""A trained network as a folder: ``model.safetensors`` and what is needed to build it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tradeoff.core.errors import DataError
from tradeoff.core.files import read_json, write_json
from tradeoff.data.skeletons import Skeleton
from tradeoff.methods.private_inference.lingcn.network import STGCN, Shape
from tradeoff.nn.models import load_weights, save_weights

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = "tradeoff-lingcn-1"


def save_network(folder: Path, network: STGCN, *, frames: int) -> None:
    """Write a network and the frames of the sequences that it was trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(network, folder / WEIGHTS)
    skeleton, shape = network.skeleton, network.shape
    config: dict[str, Any] = {
        "format": FORMAT,
        "frames": frames,
        "joints": list(skeleton.joints),
        "edges": [list(edge) for edge in skeleton.edges],
        "center": skeleton.center,
        "channels": list(shape.channels),
        "strides": list(shape.strides),
        "classes": shape.classes,
        "taps": shape.taps,
        "in_channels": shape.in_channels,
        "hop": shape.hop,
        "polynomial": network.is_polynomial,
        "shared": _is_shared(network),
    }
    write_json(folder / CONFIG, config)


def load_network(folder: Path) -> tuple[STGCN, int]:
    """What :func:`save_network` wrote: the network in evaluation mode, and its frames.

    Raises:
        DataError: the folder holds no network.
    """
    if not (folder / CONFIG).is_file():
        raise DataError(f"{folder} holds no network: train one with `tradeoff lingcn train`")
    config = read_json(folder / CONFIG)
    try:
        if config["format"] != FORMAT:
            raise ValueError(f"a format other than {FORMAT}")
        edges = tuple((int(a), int(b)) for a, b in config["edges"])
        skeleton = Skeleton(tuple(map(str, config["joints"])), edges, int(config["center"]))
        shape = Shape(
            tuple(map(int, config["channels"])),
            tuple(map(int, config["strides"])),
            int(config["classes"]),
            int(config["taps"]),
            int(config["in_channels"]),
            hop=config["hop"],
        )
        network, frames = STGCN(skeleton, shape), int(config["frames"])
        if config["polynomial"]:
            network.replace_relus(shared=bool(config["shared"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / CONFIG} describes no network: {error}") from None
    load_weights(network, folder / WEIGHTS)
    return network.eval(), frames


def _is_shared(network: STGCN) -> bool:
    polynomial = network._layers()[0].first.polynomial
    return polynomial is not None and len(polynomial.w2) == 1
