"""MPyC beside the engine: the same network on Shamir shares, by its processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import EngineError, MissingExtra
from tradeoff.nn import plan as op

SCRIPT = Path(__file__).with_name("mpyc_party.py")
VARIABLE = "TRADEOFF_MPYC"


@dataclass(frozen=True)
class PeerRun:
    """What a run of MPyC took.

    Attributes:
        seconds: of the slowest party, from the shared input to the opened result, for all images.
        sent: bytes of all parties together.
        logits: (images, classes).
    """

    seconds: float
    sent: int
    logits: NDArray[np.float64]


def interpreter() -> str:
    """A Python that has MPyC: that of the environment variable ``TRADEOFF_MPYC``, else this one.

    Raises:
        MissingExtra: neither.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return named
    if importlib.util.find_spec("mpyc") is None:
        raise MissingExtra("mpyc", "peers")
    return sys.executable


def run_mpyc(
    plan: op.Plan, x: NDArray[Any], parties: int, folder: Path, *, frac_bits: int = 13, timeout: float = 3600
) -> PeerRun:
    """Run a network among processes of MPyC on this host, threshold (parties - 1) / 2.

    Args:
        plan: of convolutions, max pooling, ReLU, flattening and linear layers in a row.
        x: inputs (images, *input_shape), one after another.
        folder: for the network and the parties' answers.

    Raises:
        MissingExtra: there is no MPyC.
        EngineError: a party failed.
    """
    python = interpreter()
    network = folder / "network.npz"
    write_network(network, plan, x, frac_bits)
    command = [python, str(SCRIPT), f"-M{parties}", "--no-log", str(network), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )
    answers = [folder / f"{party}.json" for party in range(parties)]
    if done.returncode or not all(path.exists() for path in answers):
        raise EngineError(f"MPyC ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    documents = [json.loads(path.read_text()) for path in answers]
    return PeerRun(
        max(document["seconds"] for document in documents),
        sum(document["bytes"] for document in documents),
        np.array(documents[0]["logits"]),
    )


def write_network(path: Path, plan: op.Plan, x: NDArray[Any], frac_bits: int) -> None:
    """Weights, layers and inputs as the script reads them.

    Raises:
        UnsupportedLayer: the network has others than the script knows.
    """
    layers: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    for operator in plan:
        if isinstance(operator, op.Input):
            continue
        number = len(layers)
        layer: dict[str, Any] = {"kind": type(operator).__name__}
        if isinstance(operator, op.Convolution | op.Linear):
            rows = len(operator.weight)
            bias = np.zeros(rows) if operator.bias is None else operator.bias
            arrays[f"{number}.weight"] = operator.weight.reshape(rows, -1)
            arrays[f"{number}.bias"] = bias.reshape(-1, 1)
        elif not isinstance(operator, op.MaxPool | op.ReLU | op.Flatten):
            raise op.UnsupportedLayer(operator.name, "the script for MPyC does not know it")
        if isinstance(operator, op.Convolution | op.MaxPool):
            layer |= {name: list(getattr(operator, name)) for name in ("kernel", "stride", "padding")}
        layers.append(layer)
    np.savez(path, layers=json.dumps(layers), x=np.asarray(x, float), frac_bits=frac_bits, **arrays)
