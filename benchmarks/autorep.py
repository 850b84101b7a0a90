"""What AutoReP's activations add to a training step: beside the same network with plain ReLUs, by turns.

    python benchmarks/autorep.py --arch resnet18 --batch 32 --rounds 5 --json out.json

``site`` is forward and backward of the network with learned activations, ``method`` the whole objective, the
teacher's forward pass included.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.core.timing import side_by_side
from tradeoff.methods.private_inference.autorep import AutoReP, ReplacementConfig
from tradeoff.nn.models import ARCHITECTURES, build


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="resnet18", choices=ARCHITECTURES)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    steps = training_steps(arguments.arch, arguments.batch, arguments.pixels, arguments.channels_last)
    timed = side_by_side(steps, rounds=arguments.rounds, threads=torch.get_num_threads())
    document = {"arch": arguments.arch, "batch": arguments.batch, "contended": timed.contended}
    for name, timing in timed.timings.items():
        ratio, low, high = timed.ratio(name, "plain")
        document[name] = {"seconds": timing.median, "ratio": ratio, "low": low, "high": high}
        print(f"{name:8} {timing.median:8.4f} s   {ratio:.2f} times plain ({low:.2f} to {high:.2f})")
    if timed.contended:
        print("something else took the processor: do not quote these numbers")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


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
