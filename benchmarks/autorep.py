"""What AutoReP's activations add to a training step: beside the same network with plain ReLUs, by turns.

    python benchmarks/autorep.py
    python benchmarks/autorep.py --arch resnet20 --batch 128 --output out.json

``site`` is forward and backward of the network with learned activations, ``method`` the whole objective, the
teacher's forward pass included.
"""

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from spmm import facts, replace_table
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.core.timing import side_by_side
from tradeoff.methods.private_inference.autorep import AutoReP, ReplacementConfig
from tradeoff.nn.models import ARCHITECTURES, build

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results" / "benchmarks" / "autorep.json"
README = HERE / "README.md"
MOST_SITE = 2.0
"""Times the plain network that a training step with learned activations may take."""


def main() -> None:
    options = arguments()
    before = facts()
    steps = training_steps(options.arch, options.batch, options.pixels, options.channels_last)
    timed = side_by_side(steps, rounds=options.rounds, threads=torch.get_num_threads())
    rows: dict[str, dict[str, Any]] = {}
    for name, timing in timed.timings.items():
        rows[name] = {"seconds": timing.median, "ratio": timed.ratio(name, "plain")}
        print(f"{name:8} {timing.median:8.4f} s   {times(rows[name]['ratio'])}")
    if timed.contended:
        print("something else took the processor: do not quote these numbers")
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **before,
        "arch": options.arch,
        "batch": options.batch,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "contended": timed.contended,
        "rows": rows,
        "met": rows["site"]["ratio"][0] <= MOST_SITE,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    if options.output == RESULTS:
        replace_table(README, "autorep", markdown(document))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="resnet18", choices=ARCHITECTURES)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS})")
    return parser.parse_args()


def times(ratio: tuple[float, float, float]) -> str:
    """A ratio to the plain network with its 95 % interval."""
    return f"{ratio[0]:.2f}x ({ratio[1]:.2f} to {ratio[2]:.2f})"


def markdown(document: dict[str, Any]) -> str:
    """The rows as a table of README.md."""
    host = document["host"]
    lines = [
        f"{document['arch']}, batches of {document['batch']}, {document['threads']} threads; "
        f"{host['processor']}, {host['cores']} cores; {document['date'][:10]}.",
        "",
        "| step | seconds | times plain |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['seconds']:.3f} | {times(row['ratio'])} |" for name, row in document["rows"].items()
    ]
    verdict = "met" if document["met"] else "**not met**"
    return "\n".join([*lines, "", f"- {verdict}: `site` takes at most {MOST_SITE:.0f} times plain"])


def training_steps(
    arch: str, batch: int, pixels: int, channels_last: bool
) -> dict[str, Callable[[], object]]:
    """One step of each candidate, without the optimizer's, which they share."""
    torch.manual_seed(0)
    shape = (3, pixels, pixels)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    plain = build(arch, 10, shape).to(memory_format=memory)
    method = AutoReP(plain, 1000, shape, ReplacementConfig(calib_iters=1))
    method.network.train()
    x = torch.randn(batch, *shape).contiguous(memory_format=memory)
    y = torch.randint(0, 10, (batch,))

    def cross_entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(model(inputs), targets)

    def step(loss: Callable[[nn.Module, Tensor, Tensor], Tensor], model: nn.Module) -> Callable[[], object]:
        def run() -> None:
            model.zero_grad()
            loss(model, x, y).backward()

        return run

    return {
        "plain": step(cross_entropy, plain.train()),
        "site": step(cross_entropy, method.network),
        "method": step(method.loss, method.network),
    }


if __name__ == "__main__":
    main()
