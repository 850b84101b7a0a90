"""Round trips and throughput of the transport, beside pyzmq and gloo in the same processes.

Every party runs all systems over loopback and takes turns between them, so that they meet the same machine.
What is reported is the median over turns; compare within one run. Run it as::

    python benchmarks/transport.py --quick
    python benchmarks/transport.py --json transport.json

pyzmq and torch (for gloo) are left out, with a note, where they are not installed. Both talk in the clear:
the rows with TLS are ours alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

from tradeoff.engines.transport import LinkShaper, LocalCluster, Party, profile

SIZES = [64, 1 << 10, 16 << 10, 256 << 10, 1 << 20, 16 << 20, 64 << 20]
QUICK_SIZES = [64, 16 << 10, 1 << 20, 16 << 20]
TIMEOUT = 900.0


@dataclass(frozen=True)
class Plan:
    """How long to measure: trips and bytes of a size in one turn, and turns."""

    sizes: tuple[int, ...]
    trips: int
    bulk_bytes: int
    turns: int


@dataclass(frozen=True)
class Row:
    """One measurement: medians over turns.

    Attributes:
        round_trip_us: a message of this size there and back; mb_per_s: a stream of them one way (two
            parties), or all bytes that all parties send in an all-to-all exchange (more).
    """

    system: str
    link: str
    parties: int
    message_bytes: int
    round_trip_us: float | None
    mb_per_s: float


class Pair(Protocol):
    """What a system must do to be measured between parties 0 and 1."""

    def send(self, data: np.ndarray) -> None: ...

    def recv(self, size: int) -> None: ...

    def close(self) -> None: ...


class Ours:
    """This transport."""

    def __init__(self, net: Party) -> None:
        self._net = net
        self._peer = 1 - net.me

    def send(self, data: np.ndarray) -> None:
        self._net.send(self._peer, data)

    def recv(self, size: int) -> None:
        assert len(self._net.recv(self._peer)) == size

    def close(self) -> None:
        """Nothing of its own."""


class ZeroMQ:
    """A pair of pyzmq PAIR sockets, copying as little as it can."""

    def __init__(self, net: Party) -> None:
        import zmq

        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        if net.me == 0:
            port = self._socket.bind_to_random_port("tcp://127.0.0.1")
            net.send(1, str(port).encode())
        else:
            self._socket.connect("tcp://127.0.0.1:" + bytes(net.recv(0)).decode())

    def send(self, data: np.ndarray) -> None:
        self._socket.send(data, copy=data.nbytes < 65536)

    def recv(self, size: int) -> None:
        assert len(self._socket.recv(copy=size < 65536)) == size

    def close(self) -> None:
        self._context.destroy(linger=1000)


class Gloo:
    """torch.distributed point-to-point over gloo, into a tensor that is there already."""

    def __init__(self, net: Party) -> None:
        import torch
        import torch.distributed

        torch.set_num_threads(1)
        self._torch = torch
        join_gloo(net)
        self._peer = 1 - net.me
        self._space: dict[int, Any] = {}

    def send(self, data: np.ndarray) -> None:
        self._torch.distributed.send(self._torch.from_numpy(data), self._peer)

    def recv(self, size: int) -> None:
        if size not in self._space:
            self._space[size] = self._torch.empty(size, dtype=self._torch.uint8)
        self._torch.distributed.recv(self._space[size], self._peer)

    def close(self) -> None:
        self._torch.distributed.destroy_process_group()


PEERS: dict[str, tuple[str, Callable[[Party], Pair]]] = {"pyzmq": ("zmq", ZeroMQ), "gloo": ("torch", Gloo)}


def join_gloo(net: Party) -> None:
    """Make a gloo group of the session's parties, at a port that party 0 chooses."""
    import torch.distributed as distributed

    if net.me == 0:
        store = distributed.TCPStore("127.0.0.1", 0, net.n, is_master=True, wait_for_workers=False)
        net.broadcast(str(store.port).encode())
    else:
        port = int(bytes(net.broadcast(None)))
        store = distributed.TCPStore("127.0.0.1", port, net.n, is_master=False)
    distributed.init_process_group("gloo", store=store, rank=net.me, world_size=net.n)


def round_trip(net: Party, pair: Pair, data: np.ndarray, trips: int) -> float:
    """Median seconds of a message there and back."""
    seconds = []
    net.barrier()
    for _ in range(trips):
        began = time.perf_counter()
        if net.me == 0:
            pair.send(data)
            pair.recv(data.nbytes)
        else:
            pair.recv(data.nbytes)
            pair.send(data)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def stream(net: Party, pair: Pair, data: np.ndarray, count: int) -> float:
    """Bytes a second of ``count`` messages from party 0 to party 1, until 1 says that it has them."""
    receipt = np.zeros(8, np.uint8)
    net.barrier()
    began = time.perf_counter()
    for _ in range(count):
        if net.me == 0:
            pair.send(data)
        else:
            pair.recv(data.nbytes)
    if net.me == 0:
        pair.recv(receipt.nbytes)
    else:
        pair.send(receipt)
    return count * data.nbytes / (time.perf_counter() - began)


def measure_pairs(net: Party, plan: Plan, peers: tuple[str, ...]) -> list[tuple[str, int, float, float]]:
    """Run by both parties: (system, bytes, seconds a round trip, bytes a second)."""
    systems: dict[str, Pair] = {"ours": Ours(net)}
    systems.update({name: PEERS[name][1](net) for name in peers})
    rows = []
    for size in plan.sizes:
        data = np.zeros(size, np.uint8)
        trips = max(3, min(plan.trips, plan.bulk_bytes // size))
        count = max(2, min(1000, plan.bulk_bytes // size))
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
        for turn in range(plan.turns + 1):
            for name, pair in systems.items():
                figures = round_trip(net, pair, data, trips), stream(net, pair, data, count)
                if turn:  # the first one warms up
                    turns[name].append(figures)
        for name, figures_ in turns.items():
            trip, rate = (statistics.median(column) for column in zip(*figures_, strict=True))
            rows.append((name, size, trip, rate))
    for pair in systems.values():
        pair.close()
    return rows


def measure_all_to_all(net: Party, plan: Plan, with_gloo: bool) -> list[tuple[str, int, float]]:
    """Run by all parties: (system, bytes, bytes a second that all parties together send)."""
    if with_gloo:
        import torch
        import torch.distributed

        torch.set_num_threads(1)
        join_gloo(net)
    rows = []
    for size in plan.sizes:
        data = np.full(size, net.me, np.uint8)
        count = max(2, min(200, plan.bulk_bytes // (size * net.n)))
        systems: dict[str, Callable[[], object]] = {"ours": lambda data=data: net.allgather(data)}
        if with_gloo:
            own = torch.from_numpy(data)
            space = [torch.empty_like(own) for _ in range(net.n)]
            systems["gloo"] = lambda own=own, space=space: torch.distributed.all_gather(space, own)
        rates: dict[str, list[float]] = {name: [] for name in systems}
        for turn in range(plan.turns + 1):
            for name, exchange in systems.items():
                net.barrier()
                began = time.perf_counter()
                for _ in range(count):
                    exchange()
                net.barrier()
                if turn:
                    sent = count * size * net.n * (net.n - 1)
                    rates[name].append(sent / (time.perf_counter() - began))
        rows += [(name, size, statistics.median(values)) for name, values in rates.items()]
    if with_gloo:
        torch.distributed.destroy_process_group()
    return rows


def measure_link(net: Party, latency_trips: int, bulk: int) -> tuple[float, float]:
    """Seconds a round trip of a small message, and seconds that ``bulk`` bytes take one way."""
    pair = Ours(net)
    trip = round_trip(net, pair, np.zeros(8, np.uint8), latency_trips)
    return trip, bulk / stream(net, pair, np.zeros(bulk // 4, np.uint8), 4)


def shaper_accuracy(quick: bool) -> list[dict[str, float]]:
    """Asked and obtained: one-way delays of 1 to 50 ms and rates of 10 to 1000 Mbit/s."""
    results = []
    for latency in (1.0, 10.0, 50.0):
        trip, _ = LocalCluster(2, measure_link, (10, 4000), link=LinkShaper(latency_ms=latency)).run(TIMEOUT)[
            0
        ]
        results.append({"latency_ms": latency, "obtained_ms": trip * 500})
    for mbit in (10.0, 100.0, 1000.0):
        bulk = int(mbit * 1e6 / 8 * (0.5 if quick else 2.0))
        _, seconds = LocalCluster(2, measure_link, (3, bulk), link=LinkShaper(mbit=mbit)).run(TIMEOUT)[0]
        results.append({"mbit": mbit, "obtained_mbit": bulk * 8e-6 / seconds})
    return results


def run_all(plan: Plan, peers: tuple[str, ...], parties: tuple[int, ...]) -> list[Row]:
    """Every system, link and number of parties."""
    rows = []
    for link, tls, shape, others in (
        ("loopback", False, None, peers),
        ("loopback, TLS", True, None, ()),
        ("lan", False, profile("lan"), ()),
    ):
        results = LocalCluster(2, measure_pairs, (plan, others), tls=tls, link=shape).run(TIMEOUT)[0]
        rows += [Row(name, link, 2, size, trip * 1e6, rate / 1e6) for name, size, trip, rate in results]
    for n in parties:
        for link, tls, gloo in (("loopback", False, "gloo" in peers), ("loopback, TLS", True, False)):
            results = LocalCluster(n, measure_all_to_all, (plan, gloo), tls=tls).run(TIMEOUT)[0]
            rows += [Row(name, link, n, size, None, rate / 1e6) for name, size, rate in results]
    return rows


def show(rows: list[Row], accuracy: list[dict[str, float]]) -> None:
    """Print the tables."""
    table = Table(title="transport: medians, one machine, one run")
    for column in ("parties", "link", "system", "bytes", "round trip, us", "MB/s"):
        table.add_column(column, justify="left" if column in ("link", "system") else "right")
    for row in rows:
        trip = "" if row.round_trip_us is None else f"{row.round_trip_us:,.0f}"
        cells = (
            str(row.parties),
            row.link,
            row.system,
            f"{row.message_bytes:,}",
            trip,
            f"{row.mb_per_s:,.1f}",
        )
        table.add_row(*cells)
    console = Console()
    console.print(table)
    for line in accuracy:
        (asked, wanted), (_, obtained) = line.items()
        console.print(f"emulated link: {asked} asked {wanted:g}, obtained {obtained:.2f}")


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute in place of several")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    arguments = parser.parse_args()
    plan = Plan(tuple(SIZES), 300, 256 << 20, 5)
    parties: tuple[int, ...] = (2, 3, 5)
    if arguments.quick:
        plan = Plan(tuple(QUICK_SIZES), 100, 48 << 20, 3)
        parties = (3,)
    peers = tuple(name for name, (module, _) in PEERS.items() if importlib.util.find_spec(module))
    for name in set(PEERS) - set(peers):
        print(f"{name} is left out: {PEERS[name][0]} is not installed", file=sys.stderr)
    rows = run_all(plan, peers, parties)
    accuracy = shaper_accuracy(arguments.quick)
    show(rows, accuracy)
    if arguments.json:
        host = {"cores": os.cpu_count(), "load": os.getloadavg(), "machine": platform.machine()}
        document = {"host": host, "rows": [asdict(row) for row in rows], "emulated_links": accuracy}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
