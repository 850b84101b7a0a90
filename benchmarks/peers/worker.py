"""What the party processes of every peer share: the command loop, the clock and the workloads' names.

A peer's script defines a :class:`System` and calls :func:`serve`. It runs in the peer's own environment, so
this module uses the standard library and NumPy only. The benchmark starts one process a party and talks to
each in JSON lines over standard input and output; the parties talk to each other over sockets of their own.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Arrays = dict[str, np.ndarray]


class Computation(Protocol):
    """A workload with its inputs already shared between the parties.

    Further methods without arguments that return a dictionary can be requested by name.
    """

    def run(self) -> dict[str, float] | None:
        """The timed part: from shared inputs to shared outputs; the small CNN also reveals its logits."""

    def reveal(self) -> np.ndarray | None:
        """The last run's output in the clear, to check it; None at a party that learns nothing."""


class System(Protocol):
    def prepare(self, workload: str, arrays: Arrays) -> Computation: ...

    def count(self, computation: Computation) -> dict[str, float]:
        """Runs once with the system's own counters on; returns `sent_bytes` and `rounds` of this party."""


def serve(connect: Callable[[int, list[str], int], System]) -> None:
    """Answers the benchmark's requests until its end of the pipe closes.

    Args:
        connect: joins the computation as the given party; arguments are the rank, all parties' addresses
            and the first of ten ports that are free on all of them.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--addresses", nargs="+", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    # Libraries print what they like on standard output; answers go to the original one.
    answers = open(sys.stdout.fileno(), "w", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stderr
    system = connect(options.rank, options.addresses, options.port)
    computation: Computation | None = None
    arrays: Arrays = {}
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["do"] == "prepare":
            with np.load(Path(request["arrays"])) as stored:
                arrays = dict(stored)
            computation = system.prepare(request["workload"], arrays)
        elif computation is None:
            raise ValueError("prepare a workload first")
        elif request["do"] == "run":
            start = time.monotonic()
            more = computation.run() or {}
            answer = {"start": start, "end": time.monotonic()} | more
        elif request["do"] == "count":
            answer = system.count(computation)
            output = computation.reveal()
            if output is not None:
                answer["largest_error"] = float(np.abs(output - arrays["expected"]).max())
        else:
            answer = getattr(computation, request["do"])()
        print(json.dumps(answer), file=answers, flush=True)
