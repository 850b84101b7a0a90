"""Networks in crossbars: a faulty encoder beside the plain one, and a layer beside aihwkit-lightning's.

    python benchmarks/crossbar.py
    python benchmarks/crossbar.py --rounds 3 --output out.json

The first run makes aihwkit-lightning's environment, which also sees the packages of this one, and goes on in
it. MiniLM-L6 in float32, one thread, processor seconds.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peers.environments import AIHWKIT
from spmm import facts, replace_table
from torch import Tensor

from tradeoff.core.timing import ProcessorClock, SideBySide, side_by_side
from tradeoff.data import checkpoints
from tradeoff.engines.crossbar import (
    CrossbarConfig,
    CrossbarLinear,
    FaultModel,
    InputRange,
    Placement,
    to_crossbar,
)
from tradeoff.nn.encoders import TextClassifier

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results" / "benchmarks" / "crossbar.json"
README = HERE / "README.md"
SHAPES = ((384, 384), (1536, 384), (384, 1536))
"""Outputs and inputs of MiniLM's matrices."""
VECTORS = 2048
SLOW_VECTORS = 16
TEXTS, TOKENS = 32, 24
LARGEST_RATIO = 2.0
"""Times of a faulty network over those of the plain one that is still acceptable."""
LARGEST_DIFFERENCE = 1e-5


def main() -> None:
    options = arguments()
    if AIHWKIT.folder not in Path(sys.executable).parents:
        AIHWKIT.make()
        raise SystemExit(subprocess.run([str(AIHWKIT.python), *sys.argv], check=False).returncode)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    document: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts(),
        "peer": AIHWKIT.name,
        "rounds": options.rounds,
        "layers": [layer_row(*shape, options.rounds) for shape in SHAPES],
        "network": network(options.rounds),
    }
    document["verdicts"] = verdicts(document)
    print(markdown(document))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    if options.output == RESULTS:
        replace_table(README, "crossbar", markdown(document))


def layer_row(outputs: int, inputs: int, rounds: int) -> dict[str, Any]:
    """One matrix: torch, ours on a faulty chip, ours cycle by cycle, and the peer on ideal tiles."""
    from peers.aihwkit_linear import load_aihwkit

    weight, bias, x = (
        torch.randn(outputs, inputs) / inputs**0.5,
        torch.randn(outputs),
        torch.randn(VECTORS, inputs),
    )
    peak = float(x.abs().max())
    ours = CrossbarLinear(weight, bias, CrossbarConfig(), InputRange.covering(-peak, peak, 8))
    plain = torch.nn.Linear(inputs, outputs)
    theirs = load_aihwkit(ours.quantized_weight(), bias, peak)
    difference = float((ours(x) - theirs(x)).abs().max())
    ours.program(FaultModel.preset("hfo2"))
    timed = by_turns(
        {"torch": lambda: plain(x), "ours": lambda: ours(x), "aihwkit-lightning": lambda: theirs(x)}, rounds
    )
    few = x[:SLOW_VECTORS]
    expected = ours(few)
    ours.path = "slow"
    same = bool(torch.equal(ours(few), expected))
    slow = by_turns({"torch": lambda: plain(few), "slow": lambda: ours(few)}, 3)
    return {
        "outputs": outputs,
        "inputs": inputs,
        "crossbars": Placement(CrossbarConfig(), outputs, inputs).crossbars,
        "difference": difference,
        "slow_is_fast": same,
        "ours": timed.ratio("ours", "torch"),
        "aihwkit-lightning": timed.ratio("aihwkit-lightning", "torch"),
        "slow": slow.ratio("slow", "torch"),
        "contended": timed.contended or slow.contended,
    }


def network(rounds: int) -> dict[str, Any]:
    """MiniLM with all matrices of its layers on a faulty chip, and plain."""
    model = TextClassifier.from_pretrained(checkpoints.minilm(), 6).eval()
    ids = torch.randint(1000, 30_000, (TEXTS, TOKENS))
    placed = to_crossbar(
        model, faults=FaultModel.preset("hfo2"), calibration=[ids], include=r"encoder\.layer"
    )

    @torch.no_grad()
    def plain() -> Tensor:
        result: Tensor = model(ids)
        return result

    timed = by_turns({"plain": plain, "faulty": torch.no_grad()(lambda: placed(ids))}, rounds)
    clock = ProcessorClock()
    started = clock.wall()
    placed.reprogram(seed=1)
    return {
        "texts": TEXTS,
        "tokens": TOKENS,
        "seconds": {name: timing.median for name, timing in timed.timings.items()},
        "ratio": timed.ratio("faulty", "plain"),
        "reprogram_seconds": clock.wall() - started,
        "crossbars": placed.report().totals["crossbars"].value,
        "contended": timed.contended,
    }


def by_turns(candidates: Mapping[str, Any], rounds: int) -> SideBySide:
    return side_by_side(candidates, rounds=rounds, sample_seconds=0.05, clock=ProcessorClock())


def verdicts(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The targets, what was reached and whether that is enough."""
    ratio = document["network"]["ratio"][0]
    difference = max(row["difference"] for row in document["layers"])
    same = all(row["slow_is_fast"] for row in document["layers"])
    return [
        {
            "target": f"a faulty MiniLM takes at most {LARGEST_RATIO:g} times the plain one's time",
            "reached": ratio,
            "met": ratio <= LARGEST_RATIO,
        },
        {
            "target": f"outputs on ideal tiles are those of {document['peer']} to {LARGEST_DIFFERENCE:g}",
            "reached": difference,
            "met": difference <= LARGEST_DIFFERENCE,
        },
        {
            "target": "the product cycle by cycle is the fast one bit for bit on a faulty chip",
            "reached": same,
            "met": same,
        },
    ]


def markdown(document: Mapping[str, Any]) -> str:
    """The tables of benchmarks/README.md."""
    lines = [
        "| outputs x inputs | crossbars | faulty, over torch | aihwkit-lightning, ideal, over torch "
        "| cycle by cycle, over torch | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for row in document["layers"]:
        times = " | ".join(_times(row[name]) for name in ("ours", "aihwkit-lightning", "slow"))
        lines.append(
            f"| {row['outputs']} x {row['inputs']} | {row['crossbars']} | {times} | {row['difference']:.1e} |"
        )
    found = document["network"]
    lines += [
        "",
        f"MiniLM-L6, {found['texts']} texts of {found['tokens']} tokens: {found['seconds']['plain']:.3f} s "
        f"plain, {found['seconds']['faulty']:.3f} s on a faulty chip of {found['crossbars']:,.0f} crossbars, "
        f"{_times(found['ratio'])} as long; {found['reprogram_seconds']:.1f} s to write another chip.",
        "",
    ]
    lines += [
        f"- {v['target']}: {'met' if v['met'] else 'missed'} ({_shown(v['reached'])})"
        for v in document["verdicts"]
    ]
    return "\n".join(lines)


def _times(ratio: list[float]) -> str:
    middle, low, high = ratio
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def _shown(value: float | bool) -> str:
    return "yes" if value is True else "no" if value is False else f"{value:.3g}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="turns of each candidate")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
