"""This engine, CrypTen and SPU side by side: bytes, rounds and seconds over the same emulated networks.

    python benchmarks/two_party.py            # everything, about half an hour on 2 cores
    python benchmarks/two_party.py --quick    # the sizes that the targets are about, a few minutes

Each system runs as separate processes in network namespaces of their own, its own sockets between them;
systems alternate within a workload, and the median of the repetitions counts. See benchmarks/README.md for
what is timed and how the systems' security differs. Needs root (for the namespaces).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from peers.environments import CRYPTEN, SPU, Environment
from peers.workloads import GROWTH, Workload, workloads
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tradeoff.engines.transport import profile
from tradeoff.engines.transport.emulation import Lab

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results" / "benchmarks" / "two_party.json"
PROFILES = ("loopback", "lan", "wan")
FIRST_PORT = 29500
OURS = "tradeoff"


@dataclass(frozen=True)
class Competitor:
    """A system under test: the script of its parties, who they are, and what its numbers stand for."""

    name: str
    script: str
    parties: int
    security: str
    environment: Environment | None = None
    offline: Literal["none", "dealer", "parties"] = "none"

    @property
    def python(self) -> str:
        return str(self.environment.python) if self.environment else sys.executable


COMPETITORS = (
    Competitor(
        OURS,
        "tradeoff_party.py",
        3,
        "semi-honest parties and a dealer, a third process on a host of its own that sees no message; "
        "its time is included",
        offline="dealer",
    ),
    Competitor(
        "crypten",
        "crypten_party.py",
        2,
        "none: party 0 makes all triples itself, as part of the timed computation (provider TFP, the "
        "default)",
        CRYPTEN,
    ),
    Competitor(
        "spu",
        "spu_party.py",
        2,
        "party 0 adjusts, and so knows, all triples, as part of the timed computation (SEMI2K, Beaver "
        "TrustedFirstParty, the default)",
        SPU,
    ),
)

ON_REQUEST = (
    Competitor(
        f"{OURS}-ot",
        "tradeoff_party.py",
        2,
        "semi-honest parties and nobody else: they make the correlated randomness by oblivious transfer, and "
        "its time is included",
        offline="parties",
    ),
)
"""Compared where ``--systems`` names them."""


@dataclass
class Row:
    """One system, workload and network.

    Attributes:
        sent_bytes: payload by the system's own counter, of the party that sends more.
        wire_bytes: sent by party 0 and by party 1 to the other one, counted at the network interface, TCP/IP
            headers included.
        rounds: by the system's own counter; SPU counts "actions" (messages it sends).
        seconds: median; with the dealer's work where there is a dealer.
        online_seconds: median with the offline material already there (this engine only).
        dealer_seconds: the dealer's own time for the same material, or that of the parties who make it over
            their link (this engine only).
        offline_bytes: what the dealer sends, or the parties to each other (this engine only).
        setup_bytes: sent once a session and in no other figure: the masked weights (this engine only; the
            peers mask them anew in every run).
        largest_error: against the plaintext result in double precision.
    """

    system: str
    workload: str
    size: int
    network: str
    sent_bytes: float = 0
    wire_bytes: list[int] = field(default_factory=list)
    rounds: float = 0
    seconds: float | None = None
    repetitions: list[float] = field(default_factory=list)
    online_repetitions: list[float] = field(default_factory=list)
    dealer_repetitions: list[float] = field(default_factory=list)
    online_seconds: float | None = None
    dealer_seconds: float | None = None
    offline_bytes: float | None = None
    setup_bytes: float | None = None
    largest_error: float | None = None
    note: str = ""


class Team:
    """The processes of one system on the hosts of a lab; they may use ten ports from `port` on."""

    def __init__(self, competitor: Competitor, lab: Lab, port: int, logs: Path) -> None:
        self.competitor = competitor
        self.lab = lab
        self._log = (logs / f"{competitor.name}.log").open("ab")
        options = ["--addresses", *lab.addresses[: competitor.parties], "--port", str(port)]
        self.processes = [
            lab.popen(
                rank,
                [competitor.python, str(HERE / "peers" / competitor.script), "--rank", str(rank), *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                # One thread a party: two parties share two cores with the dealer and the relay.
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(competitor.parties)
        ]
        self._answers()

    def _answers(self) -> list[dict[str, Any]]:
        answers = []
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                tail = Path(self._log.name).read_text(errors="replace")[-3000:]
                raise RuntimeError(f"a party of {self.competitor.name} has ended:\n{tail}")
            answers.append(json.loads(line))
        return answers

    def ask(self, **request: object) -> list[dict[str, Any]]:
        """Sends a request to all processes at once; returns their answers."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        return self._answers()

    def run(self) -> float:
        """Seconds from the first process's start to the last one's end.

        Where a system cannot leave the sharing of inputs and the opening of results out of a run, the
        seconds of the operators between them, of the party for which they took longer.
        """
        answers = self.ask(do="run")
        operators: list[float] = [
            answer["operator_seconds"] for answer in answers if "operator_seconds" in answer
        ]
        if operators:
            return max(operators)
        starts, ends = ([float(answer[key]) for answer in answers] for key in ("start", "end"))
        return max(ends) - min(starts)

    def wire_bytes(self) -> list[int]:
        """What each of the two computing parties has sent to the other so far."""
        return [self.lab.counters(0, 1).sent_bytes, self.lab.counters(1, 0).sent_bytes]

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()


@dataclass
class Limits:
    """How long a cell may take: `cap` seconds for one execution, `budget` seconds for its repetitions."""

    repeats: int
    cap: float
    budget: float


class Bench:
    def __init__(self, chosen: Sequence[Competitor], limits: Limits, folder: Path) -> None:
        self.chosen = chosen
        self.limits = limits
        self.folder = folder
        self.rows: list[Row] = []
        self.networks: dict[str, dict[str, Any]] = {}

    def network(self, name: str, each: Sequence[Workload], progress: Progress) -> None:
        """Measures all workloads over one network."""
        with ExitStack() as stack:
            lab = stack.enter_context(Lab.of(profile(name), hosts=3))
            self.networks[name] = {"emulator": lab.emulator} | asdict(lab.measure())
            teams = []
            for index, competitor in enumerate(self.chosen):
                teams.append(Team(competitor, lab, FIRST_PORT + 10 * index, self.folder))
                stack.callback(teams[-1].close)
            task = progress.add_task(name, total=len(each))
            expected: dict[tuple[str, str], float] = {}
            for workload in each:
                progress.update(task, description=f"{name}: {workload.title}")
                self.workload(name, workload, teams, expected)
                progress.advance(task)

    def workload(
        self, network: str, workload: Workload, teams: list[Team], expected: dict[tuple[str, str], float]
    ) -> None:
        """Measures one workload on all systems, alternating; `expected` holds seconds per unit of growth."""
        arrays = workload.save(self.folder)
        growth = workload.size ** GROWTH[workload.name]
        running: list[tuple[Team, Row, int]] = []
        for team in teams:
            row = Row(team.competitor.name, workload.name, workload.size, network)
            self.rows.append(row)
            key = (row.system, workload.name)
            likely = expected.get(key, 0.0) * growth
            if likely > self.limits.cap:
                row.note = f"not run: about {likely:.0f} s expected, cap {self.limits.cap:.0f} s"
                continue
            self.count(team, row, workload, arrays)
            first = team.run()
            expected[key] = first / growth
            running.append((team, row, max(1, min(self.limits.repeats, int(self.limits.budget / first)))))
        for turn in range(max((repeats for _, _, repeats in running), default=0)):
            for team, row, repeats in running:
                if turn < repeats:
                    self.repetition(team, row)
        for _, row, _ in running:
            row.seconds = statistics.median(row.repetitions)
            if row.online_repetitions:
                row.online_seconds = statistics.median(row.online_repetitions)
                row.dealer_seconds = statistics.median(row.dealer_repetitions)

    def repetition(self, team: Team, row: Row) -> None:
        """One more timing of a cell; with an offline phase also of its halves."""
        row.repetitions.append(team.run())
        if team.competitor.offline == "none":
            return
        fetched = team.ask(do="fetch")
        row.online_repetitions.append(team.run())
        made = team.ask(do="deal")[-1:] if team.competitor.offline == "dealer" else fetched
        row.dealer_repetitions.append(max(answer["dealer_seconds"] for answer in made))

    def count(self, team: Team, row: Row, workload: Workload, arrays: Path) -> None:
        """Fills in bytes, rounds and error; the run that does so is also the warm-up."""
        team.ask(do="prepare", workload=workload.name, arrays=str(arrays))
        answers = team.ask(do="count")
        row.sent_bytes = max(answer["sent_bytes"] for answer in answers)
        row.rounds = max(answer["rounds"] for answer in answers)
        row.largest_error = max(answer["largest_error"] for answer in answers if "largest_error" in answer)
        for quantity in ("offline_bytes", "setup_bytes"):
            values = [answer[quantity] for answer in answers if quantity in answer]
            setattr(row, quantity, max(values, default=None))
        before = team.wire_bytes()
        team.run()
        row.wire_bytes = [now - then for now, then in zip(team.wire_bytes(), before, strict=True)]


RING_PRODUCT = """
import json, statistics, time
import numpy as np, torch
from tradeoff.engines.two_party import ring
torch.set_num_threads(1)
generator = np.random.default_rng(0)
a, b = generator.integers(0, 2**64, size=(2, 512, 512), dtype=np.uint64)
ta, tb = torch.from_numpy(a.view(np.int64)), torch.from_numpy(b.view(np.int64))
fa, fb = a.astype(np.float64), b.astype(np.float64)
assert np.array_equal(ring.matmul(a, b).view(np.int64), (ta @ tb).numpy())
kernels = {
    "ring": lambda: ring.matmul(a, b),
    "torch_int64": lambda: ta @ tb,
    "numpy_int64": lambda: a.view(np.int64) @ b.view(np.int64),
    "float64": lambda: fa @ fb,
}
times = {name: [] for name in kernels}
for _ in range(9):
    for name, kernel in kernels.items():
        start = time.perf_counter()
        kernel()
        times[name].append(time.perf_counter() - start)
seconds = {name: statistics.median(values) for name, values in times.items()}
print(json.dumps({"backend": ring.backend(), "seconds": seconds}))
"""


def ring_product() -> dict[str, Any]:
    """Seconds of one 512^3 product modulo 2^64 and of its yardsticks, one thread each, alternating."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", RING_PRODUCT],
        env={**os.environ, **single},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def verdicts(rows: list[Row], ring: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The targets, what was reached and whether that is enough."""
    cells = {
        (row.system, row.workload, row.size, row.network): row for row in rows if row.seconds is not None
    }

    def target(
        text: str, value: float, at_most: float | None = None, at_least: float | None = None
    ) -> dict[str, Any]:
        met = value <= at_most if at_most is not None else value >= (at_least or 0)
        limit = {"at_most": at_most} if at_most is not None else {"at_least": at_least}
        return {"target": text, "value": value, "met": bool(met)} | limit

    for peer, at_most in (("spu", 0.4), ("crypten", 0.15)):
        ours, theirs = (cells.get((system, "relu", 100_000, "loopback")) for system in (OURS, peer))
        if ours and theirs:
            share = ours.sent_bytes / theirs.sent_bytes
            yield target(f"bytes per ReLU: share of {peer}'s", share, at_most=at_most)
    for workload, size, networks in (("relu", 100_000, PROFILES), ("small_cnn", 32, ("lan", "wan"))):
        for network in networks:
            for peer in ("crypten", "spu"):
                ours, theirs = (cells.get((system, workload, size, network)) for system in (OURS, peer))
                if ours and theirs:
                    title = Workload(workload, size).title
                    text = f"{title}, {network}, dealer included: share of {peer}'s time"
                    assert ours.seconds is not None
                    assert theirs.seconds is not None
                    yield target(text, ours.seconds / theirs.seconds, at_most=1.0)
    for yardstick in ("torch", "numpy"):
        ratio = ring["seconds"][f"{yardstick}_int64"] / ring["seconds"]["ring"]
        text = f"ring product 512^3, one thread: times {yardstick} int64's speed"
        yield target(text, ratio, at_least=12.0)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "sent MB": lambda row: megabytes(row.sent_bytes),
    "on the wire": lambda row: " / ".join(map(megabytes, row.wire_bytes)),
    "rounds": lambda row: f"{row.rounds:.0f}",
    "seconds": lambda row: seconds(row.seconds),
    "online": lambda row: seconds(row.online_seconds),
    "dealer": lambda row: seconds(row.dealer_seconds),
    "offline MB": lambda row: megabytes(row.offline_bytes),
    "setup MB": lambda row: megabytes(row.setup_bytes),
    "error": lambda row: f"{row.largest_error:.1e}",
}


def megabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:.3f}"


def seconds(duration: float | None) -> str:
    return "" if duration is None else f"{duration:.4f}"


def show(console: Console, rows: list[Row], networks: dict[str, dict[str, Any]]) -> None:
    for name, network in networks.items():
        table = Table(
            title=f"{name}: {network['emulator']}, round trip {network['rtt'] * 1e3:.2f} ms, "
            f"{network['bandwidth'] / 1e6:.0f} Mbit/s measured"
        )
        table.add_column("workload")
        table.add_column("system")
        for heading in COLUMNS:
            table.add_column(heading, justify="right")
        last = ""
        for row in (row for row in rows if row.network == name):
            title = Workload(row.workload, row.size).title
            if title != last and last:
                table.add_section()
            cells = [row.note] if row.seconds is None else [column(row) for column in COLUMNS.values()]
            table.add_row(title if title != last else "", row.system, *cells)
            last = title
        console.print(table)


def host() -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        processor = models[0] if models else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "load_average": os.getloadavg()[0],
    }


def commit() -> str:
    found = subprocess.run(
        ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()


def versions(chosen: Sequence[Competitor]) -> dict[str, dict[str, str]]:
    ours = {name: metadata.version(name) for name in ("tradeoff", "torch", "numpy", "cryptography")}
    found = {OURS: ours | {"Python": platform.python_version()}}
    for competitor in chosen:
        if competitor.environment:
            installed = competitor.environment.versions()
            wanted = ("crypten", "spu", "torch", "jax", "jaxlib", "numpy")
            found[competitor.name] = {name: installed[name] for name in wanted if name in installed}
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions")
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=[each.name for each in (*COMPETITORS, *ON_REQUEST)],
        help="default: all but those of another offline phase",
    )
    parser.add_argument("--networks", nargs="+", choices=PROFILES, default=PROFILES)
    parser.add_argument("--repeats", type=int, help="repetitions of a cell (default 7, quick 3)")
    parser.add_argument(
        "--cap", type=float, default=60.0, help="skip what would take longer than this (seconds)"
    )
    parser.add_argument("--budget", type=float, default=30.0, help="seconds for the repetitions of one cell")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS})")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    console = Console()
    if not console.is_terminal:
        console.width = 150
    named = options.systems or [each.name for each in COMPETITORS]
    chosen = [each for each in (*COMPETITORS, *ON_REQUEST) if each.name in named]
    for competitor in chosen:
        if competitor.environment:
            console.print(f"environment of {competitor.name}: {competitor.environment.folder}")
            competitor.environment.make()
    limits = Limits(options.repeats or (3 if options.quick else 7), options.cap, options.budget)
    started = time.monotonic()
    before = {"host": host(), "commit": commit()}
    with tempfile.TemporaryDirectory(prefix="two-party-bench-") as folder:
        bench = Bench(chosen, limits, Path(folder))
        with Progress(console=console, transient=True) as progress:
            for network in options.networks:
                bench.network(network, list(workloads(options.quick)), progress)
    ring = ring_product()
    show(console, bench.rows, bench.networks)
    reached = list(verdicts(bench.rows, ring))
    for verdict in reached:
        sign = "<=" if "at_most" in verdict else ">="
        limit = verdict.get("at_most", verdict.get("at_least"))
        word = "[green]met[/]" if verdict["met"] else "[red]not met[/]"
        console.print(f"{word}: {verdict['target']}: {verdict['value']:.3f} (target {sign} {limit})")
    for competitor in chosen:
        console.print(f"security of {competitor.name}: {competitor.security}")
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": round((time.monotonic() - started) / 60, 1),
        **before,
        "versions": versions(chosen),
        "security": {competitor.name: competitor.security for competitor in chosen},
        "networks": bench.networks,
        "ring_product": ring,
        "rows": [asdict(row) for row in bench.rows],
        "verdicts": reached,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    console.print(f"written: {options.output}")


if __name__ == "__main__":
    main()
