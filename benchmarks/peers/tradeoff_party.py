"""One process of this engine: 0 the model owner, 1 the data owner, 2 the dealer, each on its own host."""

import os
import threading
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from worker import Arrays, serve

from tradeoff.engines import two_party
from tradeoff.engines.transport import Config, Party
from tradeoff.engines.transport.prg import SEED_BYTES
from tradeoff.engines.two_party.offline import Generator, dealt_source, run_dealer
from tradeoff.engines.two_party.party import CLIENT, SETUP, Evaluator, announce_batch, learn_batch
from tradeoff.engines.two_party.session import operator_row
from tradeoff.nn.polynomial import Polynomial

DEALER = 2
ENDS = ("input", "reveal")
"""Kinds of steps that the peers' timed part leaves out, except in the small CNN."""


def model(workload: str, arrays: Arrays) -> tuple[nn.Module, np.ndarray]:
    """The workload as a network, and its input as a batch."""
    x = arrays["x"]
    weights = {
        name: torch.from_numpy(array) for name, array in arrays.items() if name not in ("x", "expected")
    }
    if workload == "relu":
        return nn.ReLU(), x[None]
    if workload == "square":
        return nn.Sequential(Polynomial(torch.tensor([[0.0], [0.0], [1.0]]))), x[None, None]
    if workload == "matmul":
        layer: nn.Module = nn.Linear(*weights["w"].shape, bias=False)
        layer.load_state_dict({"weight": weights["w"].t()})
        return layer, x
    if workload == "conv":
        outputs, inputs, size, _ = weights["w"].shape
        layer = nn.Conv2d(inputs, outputs, size, padding=1, bias=False)
        layer.load_state_dict({"weight": weights["w"]})
        return layer, x
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), weights.values(), strict=True):
            parameter.copy_(value)
    return network, x


class Computation:
    """A session of three processes for one workload."""

    def __init__(self, net: Party, program: two_party.Program, workload: str, x: np.ndarray) -> None:
        self.net = net
        self.workload = workload
        self.batch = len(x)
        self.x = x if net.me == CLIENT else None
        self.program = program if net.me == 0 else program.public()
        self.output: np.ndarray | None = None
        if net.me == DEALER:
            self.dealing = threading.Thread(target=run_dealer, args=(net, self.program))
            self.dealing.start()
            return
        if net.me == CLIENT:
            announce_batch(net, self.batch, dealer=True)
        else:
            learn_batch(net)
        self.evaluator = Evaluator(net, self.program, self.batch, dealt_source(net))
        self.evaluator.prepare()

    def run(self) -> dict[str, float]:
        """One inference. Where the peers' timed part has no sharing and no opening, neither has ours."""
        if self.net.me == DEALER:
            return {}
        before = dict(self.evaluator.clock.seconds)
        self.output = self.evaluator.infer(self.x)
        if self.workload == "small_cnn":
            return {}
        seconds = self.evaluator.clock.seconds
        timed = [step.name for step in self.program.steps if step.kind not in ENDS]
        return {"operator_seconds": sum(seconds[name] - before.get(name, 0.0) for name in timed)}

    def fetch(self) -> dict[str, float]:
        """Bring the dealer's material for the next inference to party 1."""
        if self.net.me == CLIENT:
            self.evaluator.fetch()
        return {}

    def deal(self) -> dict[str, float]:
        """What making the material of one inference takes the dealer alone, without sending it."""
        if self.net.me != DEALER:
            return {}
        generator = Generator(
            self.program, self.batch, (bytes(SEED_BYTES), bytes([1]) * SEED_BYTES), bytes(16)
        )
        start = time.perf_counter()
        for _ in generator.corrections(0):
            pass
        return {"dealer_seconds": time.perf_counter() - start}

    def reveal(self) -> np.ndarray | None:
        return self.output

    def close(self) -> None:
        if self.net.me == CLIENT:
            self.evaluator.finish()
        if self.net.me == DEALER:
            self.dealing.join()
        self.net.close()


class Tradeoff:
    def __init__(self, rank: int, addresses: list[str], port: int) -> None:
        self.rank = rank
        self.addresses = addresses
        self.port = port
        self.computation: Computation | None = None

    def prepare(self, workload: str, arrays: Arrays) -> Computation:
        """Ends the session of the last workload and starts one for the next."""
        if self.computation is not None:
            self.computation.close()
        network, x = model(workload, arrays)
        program = two_party.compile(network, x.shape[1:], coefficients="public")
        config = Config(
            tuple(f"{address}:{self.port + party}" for party, address in enumerate(self.addresses)),
            program=program.digest,
            insecure=True,
            test_namespace=os.readlink("/proc/self/ns/net"),
            recv_timeout=600.0,
        )
        net = Party(config, self.rank)
        self.computation = Computation(net, program, workload, x)
        return self.computation

    def count(self, computation: Computation) -> dict[str, Any]:
        """Bytes and rounds as the engine's meter has them, from the first inference of the session."""
        computation.run()
        if self.rank == DEALER:
            return {"sent_bytes": 0, "rounds": 0}
        seconds = computation.evaluator.clock.seconds
        stats = computation.net.stats()
        rows = [
            operator_row(stats, seconds, step.name, step.kind, self.rank)
            for step in computation.program.steps
            if computation.workload == "small_cnn" or step.kind not in ENDS
        ]
        return {
            "sent_bytes": sum(row.sent for row in rows),
            "rounds": sum(row.rounds for row in rows),
            "offline_bytes": sum(row.offline for row in rows),
            "setup_bytes": operator_row(stats, seconds, SETUP, SETUP, self.rank).sent,
        }


serve(Tradeoff)
