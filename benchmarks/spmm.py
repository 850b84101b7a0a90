"""Sparse-dense products of this project, torch, scipy and DGL by turns, on graphs of different skew.

    python benchmarks/spmm.py            # everything, about ten minutes on 2 cores
    python benchmarks/spmm.py --quick    # two graphs, two widths, one thread

The first run makes DGL's environment, which also sees the packages of this one, and goes on in it: all
libraries are timed in one process. See benchmarks/README.md for what is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.environments import DGL
from rich.console import Console

if TYPE_CHECKING:
    from tradeoff.engines.kernels import Graph
    from tradeoff.engines.kernels.bench import Peer, Row

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results" / "benchmarks" / "spmm.json"
README = HERE / "README.md"

# The real dependency graph of Debian's packages, four stand-ins with the size and row degrees of graphs that
# papers on such kernels use, and generated ones, from flat (road) to skewed (R-MAT).
GRAPHS = (
    *("debian", "like:arxiv", "like:artist", "like:collab", "like:pubmed"),
    *("reddit23k", "pl200k", "rmat:16:16", "road1m"),
)
WIDTHS = (16, 64, 128, 256)
THREADS = (1, 2)
PEERS = ("torch", "scipy", "dgl", "dgl unweighted")
LEAST_WIDTH = 64
"""Narrower products are shown but not judged."""
TARGETS = {"torch": 2.0, "scipy": 1.3}
LEAST_ROW = 0.9
LEAST_SELECTION = 3.0
LEAST_SCALING = 1.5


def dgl_peers() -> list[Peer]:
    """DGL's product with weights, and its faster one that knows none."""
    from peers.dgl_products import DglProduct

    from tradeoff.engines.kernels.bench import Peer

    def weighted(graph: Graph) -> DglProduct:
        return DglProduct(graph.indptr, graph.indices, graph.values)

    def unweighted(graph: Graph) -> DglProduct:
        return DglProduct(graph.indptr, graph.indices, None)

    return [Peer("dgl", weighted, most_seconds=0.8), Peer("dgl unweighted", unweighted, most_seconds=0.8)]


def graphs(texts: Sequence[str]) -> Iterator[tuple[str, Graph]]:
    """The graphs of the texts, loaded or generated when they are reached."""
    from tradeoff.data.graphs import load_structure
    from tradeoff.engines.kernels import Graph

    for text in texts:
        made = load_structure(text)
        yield text, Graph.from_adjacency(made)


def verdicts(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """The targets, what was reached and whether that is enough; of results that are new, on both sides."""
    from tradeoff.core.statistics import geometric_mean

    for peer, target in TARGETS.items():
        ratios = [row.ratios[peer][0] for row in rows if row.columns >= LEAST_WIDTH and peer in row.ratios]
        if ratios:
            mean = geometric_mean(ratios)
            text = f"geometric mean over d >= {LEAST_WIDTH}: times as fast as {peer}"
            yield {"target": text, "value": mean, "at_least": target, "met": mean >= target}
    every = [ratio[0] for row in rows for name, ratio in row.ratios.items() if name in TARGETS]
    if every:
        text = f"slowest row beside {' and '.join(TARGETS)}: times as fast"
        yield {"target": text, "value": min(every), "at_least": LEAST_ROW, "met": min(every) >= LEAST_ROW}


def selection(rounds: int) -> dict[str, Any]:
    """The 32 largest of 256 features of 4,000 nodes beside torch's partial sort, on one thread."""
    import torch

    from tradeoff.core.timing import ProcessorClock, side_by_side
    from tradeoff.engines.kernels import maxk
    from tradeoff.engines.kernels.device_timing import threads

    x = torch.randn(4000, 256, generator=torch.Generator().manual_seed(0))
    calls = {"ours": lambda: maxk(x, 32), "topk": lambda: torch.topk(x, 32)}
    with threads(1):
        ratio = side_by_side(calls, rounds=rounds, clock=ProcessorClock()).ratio("topk", "ours")
    text = "32 largest of 256 features: times as fast as `torch.topk`"
    return {
        "target": text,
        "value": ratio[0],
        "at_least": LEAST_SELECTION,
        "met": ratio[0] >= LEAST_SELECTION,
    }


def one_long_row(rounds: int) -> dict[str, Any]:
    """A row of a million neighbors, which one thread alone would have to take: two threads beside one."""
    import torch

    from tradeoff.core.timing import side_by_side
    from tradeoff.engines.kernels import Graph, spmm
    from tradeoff.engines.kernels.device_timing import threads

    hub = 1_000_000
    star = Graph.from_csr(torch.tensor([0, hub]), torch.arange(hub), num_columns=hub)
    x = torch.randn(hub, 32, generator=torch.Generator().manual_seed(0))

    def run(count: int) -> None:
        with threads(count):
            spmm(star, x)

    timed = side_by_side({"one": lambda: run(1), "two": lambda: run(2)}, rounds=rounds, threads=None)
    value = timed.ratio("one", "two")[0]
    text = "a row of 1,000,000 entries, d = 32: times as fast with 2 threads as with 1"
    return {"target": text, "value": value, "at_least": LEAST_SCALING, "met": value >= LEAST_SCALING}


def markdown(document: dict[str, Any]) -> str:
    """The rows as a table of README.md: milliseconds of ours, and how many times these the others take."""
    peers = document["peers"]
    headings = ["graph", "nnz", "d", "threads", "ms", *peers, "ms, `out=`", "torch `out=`", "of bound"]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for row in document["rows"]:
        cells = [
            *(row["graph"], f"{row['nnz']:,}", str(row["columns"]), str(row["threads"])),
            f"{1e3 * row['seconds']['tradeoff']:.2f}",
            *(times(row["ratios"], peer) for peer in peers),
            f"{1e3 * row['seconds_out']['tradeoff']:.2f}",
            *(times(row["ratios_out"], "torch"), f"{row['bound']:.2f}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    reached = [
        f"- {'met' if verdict['met'] else '**not met**'}: {verdict['target']}: {verdict['value']:.2f} "
        f"(target at least {verdict['at_least']})"
        for verdict in (*document["verdicts"], *document["others"])
    ]
    host = document["host"]
    where = f"{host['processor']}, {host['cores']} cores, {document['kernels']}; {document['date'][:10]}."
    return "\n".join([where, "", *lines, "", *reached])


def times(ratios: dict[str, list[float]], peer: str) -> str:
    return f"{ratios[peer][0]:.2f}x" if peer in ratios else ""


def replace_table(readme: Path, name: str, table: str) -> None:
    """Put the table between the two comments that name it."""
    begin, end = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
    text = readme.read_text()
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    readme.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}")


def facts() -> dict[str, Any]:
    """Host, commit and versions."""
    from tradeoff.core.provenance import processor
    from tradeoff.engines.kernels import kernel_info

    found = subprocess.run(
        ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    packages = ("tradeoff", "torch", "scipy", "numpy", "dgl")
    installed = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    return {
        "host": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "load_average": os.getloadavg()[0],
        },
        "commit": found.stdout.strip(),
        "versions": {name: metadata.version(name) for name in packages if name in installed},
        "kernels": str(kernel_info()),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two graphs, two widths, one thread")
    parser.add_argument(
        "--graphs", nargs="+", default=GRAPHS, help="as data.graphs.load_structure takes them"
    )
    parser.add_argument("--dim", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--threads", nargs="+", type=int, default=THREADS)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each library (default 5)")
    parser.add_argument("--output", type=Path, help=f"JSON file (default, of a complete run: {RESULTS})")
    options = parser.parse_args()
    if options.quick:
        options.graphs, options.dim, options.threads = ("debian", "rmat:14:16"), (16, 64), (1,)
    return options


def main() -> None:
    options = arguments()
    with_dgl = any(name.startswith("dgl") for name in options.peers)
    if with_dgl and Path(sys.prefix).resolve() != DGL.folder.resolve():
        print(f"environment of dgl: {DGL.folder}", flush=True)
        DGL.make()
        # Threads that wait must not count as work.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "DGLBACKEND": "pytorch"}
        os.execve(DGL.python, [str(DGL.python), *sys.argv], environment)
    from tradeoff.engines.kernels.bench import bench, peers_of
    from tradeoff.engines.kernels.commands import table

    started = time.monotonic()
    console = Console()
    if not console.is_terminal:
        console.width = 170
    before = facts()
    peers = peers_of(options.peers, dgl_peers() if with_dgl else ())
    rows = []
    for row in bench(graphs(options.graphs), options.dim, options.threads, peers, options.rounds):
        rows.append(row)
        console.print(f"{row.graph}, d = {row.columns}, {row.threads} thread(s)", highlight=False)
    console.print(table(rows))
    reached = list(verdicts(rows))
    others = [selection(options.rounds), one_long_row(options.rounds)]
    for verdict in (*reached, *others):
        word = "[green]met[/]" if verdict["met"] else "[red]not met[/]"
        console.print(f"{word}: {verdict['target']}: {verdict['value']:.2f} (target {verdict['at_least']})")
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": round((time.monotonic() - started) / 60, 1),
        **before,
        "peers": list(options.peers),
        "rows": [{**asdict(row), "bound": row.bound} for row in rows],
        "verdicts": reached,
        "others": others,
    }
    complete = (options.graphs, options.dim, options.threads, options.peers) == (
        GRAPHS,
        WIDTHS,
        THREADS,
        PEERS,
    )
    output = options.output or (RESULTS if complete else None)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(document, indent=1) + "\n")
        console.print(f"written: {output}")
    if output == RESULTS:
        replace_table(README, "spmm", markdown(document))


if __name__ == "__main__":
    main()
