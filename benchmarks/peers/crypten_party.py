"""One party of CrypTen 0.4.1 (two processes over gloo, provider "TFP", its default).

The provider stands for a *trusted first party*: party 0 makes every multiplication triple itself, and party
1's shares of it come from a common generator. So no triple is ever sent, making them is part of the timed
computation, and party 0 could read everything: these numbers stand for no security.
"""

import os
import sys
import types

# torch 2.13 no longer has this module; CrypTen's ONNX converter, which nothing here uses, imports it.
registration = types.ModuleType("torch.onnx._internal.registration")
registration.registry = None  # type: ignore[attr-defined]
sys.modules[registration.__name__] = registration

import crypten  # noqa: E402
import crypten.communicator  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from crypten.config import cfg  # noqa: E402
from worker import Arrays, serve  # noqa: E402


class Computation:
    def __init__(self, workload: str, arrays: Arrays) -> None:
        self.workload = workload
        shared = {
            name: crypten.cryptensor(torch.from_numpy(value), src=0 if name == "x" else 1)
            for name, value in arrays.items()
            if name != "expected"
        }
        self.x = shared.pop("x")
        self.weights = shared

    def run(self) -> None:
        x, w = self.x, self.weights
        if self.workload == "relu":
            self.output = x.relu()
        elif self.workload == "square":
            self.output = x.square()
        elif self.workload == "matmul":
            self.output = x.matmul(w["w"])
        elif self.workload == "conv":
            self.output = x.conv2d(w["w"], padding=1)
        elif self.workload == "small_cnn":
            for layer in ("1", "2"):
                x = x.conv2d(w["w" + layer], padding=1) + w["b" + layer].view(1, -1, 1, 1)
                x = x.relu().avg_pool2d(2)
            self.output = (x.flatten(start_dim=1).matmul(w["w3"].t()) + w["b3"]).reveal(dst=0)
        else:
            raise ValueError(f"unknown workload {self.workload!r}")

    def reveal(self) -> np.ndarray | None:
        if self.workload != "small_cnn":
            return self.output.get_plain_text().numpy()
        return None if self.output is None else self.output.numpy() / 2**cfg.encoder.precision_bits


class CrypTen:
    def __init__(self, rank: int, addresses: list[str], port: int) -> None:
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE="2",
            RENDEZVOUS=f"tcp://{addresses[0]}:{port}",
            GLOO_SOCKET_IFNAME=f"to-{1 - rank}",
        )
        crypten.init()

    def prepare(self, workload: str, arrays: Arrays) -> Computation:
        return Computation(workload, arrays)

    def count(self, computation: Computation) -> dict[str, float]:
        """CrypTen counts an exchange in both directions, so a party has sent half of its figure."""
        communicator = crypten.communicator.get()
        communicator.reset_communication_stats()
        cfg.communicator.verbose = True
        computation.run()
        cfg.communicator.verbose = False
        counted = communicator.get_communication_stats()
        return {"sent_bytes": counted["bytes"] / 2, "rounds": counted["rounds"]}


serve(CrypTen)
