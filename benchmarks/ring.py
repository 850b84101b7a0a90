"""Ring products beside torch's and NumPy's integer products and the float64 product of the same size.

Every round runs all kernels once, in turn; medians over rounds are compared. Example:

    python benchmarks/ring.py --shapes 512x512x512 --threads 1 2 --rounds 7 --json out.json
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from tradeoff.core import native
from tradeoff.engines.two_party import ring

SHAPES = ["256x256x256", "512x512x512", "1024x576x64", "1024x1024x1024"]


def kernels(shape: tuple[int, int, int]) -> dict[str, Callable[[], Any]]:
    """The products of one shape (M, K, N); those of this project are checked first."""
    m, k, n = shape
    generator = np.random.default_rng(0)
    a = generator.integers(0, 2**64 - 1, (m, k), dtype=np.uint64, endpoint=True)
    b = generator.integers(0, 2**64 - 1, (k, n), dtype=np.uint64, endpoint=True)
    signed_a, signed_b = a.view(np.int64), b.view(np.int64)
    torch_a, torch_b = torch.from_numpy(signed_a), torch.from_numpy(signed_b)
    float_a, float_b = torch_a.double(), torch_b.double()
    narrow_a, narrow_b = a.astype(np.uint32), b.astype(np.uint32)
    runs: dict[str, Callable[[], Any]] = {
        "tradeoff": lambda: ring.matmul(a, b),
        "tradeoff 32 bit": lambda: ring.matmul(narrow_a, narrow_b),
        "limbs": lambda: ring.limb_matmul(a, b),
        "torch int64": lambda: torch_a @ torch_b,
        "numpy int64": lambda: signed_a @ signed_b,
        "torch float64": lambda: float_a @ float_b,
    }
    expected = (torch_a @ torch_b).numpy().view(np.uint64)
    for name in ("tradeoff", "limbs"):
        if not np.array_equal(runs[name](), expected):
            raise SystemExit(f"{name} gives a wrong product at {shape}")
    return runs


def measure(runs: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each product; a first round of all of them is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if index:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="MxKxN each")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time, all threads together, not the wall clock: for a machine with other work",
    )
    parser.add_argument("--json", help="write the measurements to this file; - for standard output")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    results = []
    console = Console(file=sys.stderr if options.json == "-" else sys.stdout)
    console.print(f"{ring.backend()}, NumPy {np.__version__}, torch {torch.__version__}")
    for threads in options.threads:
        measured = "processor" if options.cpu_time else "wall"
        table = Table(title=f"{threads} thread(s): median {measured} ms (times as fast as torch int64)")
        table.add_column("M x K x N")
        for text in options.shapes:
            sizes = text.split("x")
            if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
                parser.error(f"a shape is MxKxN, not {text}")
            shape = (int(sizes[0]), int(sizes[1]), int(sizes[2]))
            torch.set_num_threads(threads)  # the native kernels follow it
            with threadpool_limits(threads, user_api="blas"):
                seconds = measure(kernels(shape), options.rounds, clock)
            if len(table.columns) == 1:
                for name in seconds:
                    table.add_column(name, justify="right")
            base = seconds["torch int64"]
            table.add_row(text, *(f"{1e3 * value:.2f} ({base / value:.1f}x)" for value in seconds.values()))
            results.append({"shape": shape, "threads": threads, "seconds": seconds})
        console.print(table)
    if options.json:
        document = {
            "backend": ring.backend(),
            "native": native.describe(),
            "clock": clock.__name__,
            "results": results,
        }
        text = json.dumps(document, indent=2)
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
