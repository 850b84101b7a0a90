"""The coordinate check: under right rules activations change as much in a wide model as in a narrow one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .groups import ParameterGroups
from .training import token_loss


@dataclass(frozen=True)
class Coordinates:
    """How much the activations of some modules changed in a few steps.

    Attributes:
        sizes: of the models: widths, depths or any other size.
        changes: module -> mean |change| for each size.
    """

    sizes: tuple[float, ...]
    changes: Mapping[str, tuple[float, ...]]

    def slopes(self) -> dict[str, float]:
        """Slope of log change over log size by least squares: about 0 where the rules are right."""
        x = [math.log(size) for size in self.sizes]
        return {
            name: _slope(x, [math.log(value) for value in values]) for name, values in self.changes.items()
        }


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def coordinate_check(
    build: Callable[[float, int], tuple[nn.Module, ParameterGroups]],
    sizes: Sequence[float],
    batches: Sequence[tuple[Tensor, Tensor]],
    modules: Callable[[nn.Module], Mapping[str, nn.Module]],
    seeds: Sequence[int] = (0, 1),
) -> Coordinates:
    """Train each model for one step a batch and compare activations on the last batch before and after.

    At least three steps are needed: what starts at zero, or what starts small, hides how it will grow.

    Args:
        build: gives a model of a size, by a seed, and its parameter groups.
        batches: inputs and targets; the last is only looked at.
        modules: names and modules to watch, the same names for all sizes.
        seeds: over which changes are averaged.
    """
    changes: dict[str, list[float]] = {}
    for size in sizes:
        each = [_changes(*build(size, seed), batches, modules) for seed in seeds]
        for name in each[0]:
            changes.setdefault(name, []).append(sum(one[name] for one in each) / len(each))
    return Coordinates(tuple(sizes), {name: tuple(values) for name, values in changes.items()})


def _changes(
    model: nn.Module,
    groups: ParameterGroups,
    batches: Sequence[tuple[Tensor, Tensor]],
    modules: Callable[[nn.Module], Mapping[str, nn.Module]],
) -> dict[str, float]:
    watched = modules(model)
    before = _activations(model, watched, batches[-1][0])
    optimizer = torch.optim.AdamW(groups)
    for inputs, targets in batches[:-1]:
        optimizer.zero_grad()
        torch.autograd.backward(token_loss(model, inputs, targets))
        optimizer.step()
    after = _activations(model, watched, batches[-1][0])
    return {name: float((after[name] - before[name]).abs().mean()) for name in watched}


@torch.no_grad()
def _activations(model: nn.Module, watched: Mapping[str, nn.Module], inputs: Tensor) -> dict[str, Tensor]:
    """Outputs of the watched modules; under the empty name, of the model."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            found[name] = output.clone()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def residual_stream(model: nn.Module) -> dict[str, nn.Module]:
    """What to watch in a common decoder: its first and last block, and the logits."""
    blocks: Any = model.blocks
    return {"first block": blocks[0], "last block": blocks[-1], "logits": model}
