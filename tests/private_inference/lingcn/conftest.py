"""Small networks with random weights, and one that was trained for a moment."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tradeoff.data.skeletons import HUMANOID, Skeleton
from tradeoff.methods.private_inference.lingcn import STGCN, Shape
from tradeoff.methods.private_inference.lingcn.gates import Rule

CHAIN = Skeleton(("a", "b", "c", "d", "e"), ((0, 1), (1, 2), (2, 3), (3, 4)), center=2)


def random_network(
    seed: int,
    channels: tuple[int, ...] = (4, 4),
    strides: tuple[int, ...] | None = None,
    *,
    skeleton: Skeleton = CHAIN,
    taps: int = 9,
    rule: Rule = "structural",
    gates: float | None = None,
    classes: int = 6,
    calm: bool = False,
) -> STGCN:
    """A polynomial network in double precision, everything random: statistics, signs, gates, zero quadratics.

    Args:
        gates: mean of the scores, by which more or fewer stay; all gates open if None.
        calm: weights as they are initialized, so that values stay small.
    """
    torch.manual_seed(seed)
    shape = Shape(channels, strides or (1,) * len(channels), classes, taps)
    network = STGCN(skeleton, shape, rule).double()
    for module in network.modules():
        if hasattr(module, "running_var") and not calm:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.normal_()
            module.bias.data.normal_()
    for layer in network.layers:
        if not calm:
            layer.importance.data.normal_()
        if gates is not None:
            layer.gates.scores.data.normal_(gates)
            layer.gates.learn()
    network.replace_relus()
    network.double()
    for layer in network.layers:
        for site in (layer.first, layer.second):
            site.polynomial.w2.data.normal_(0, 0.5)
            site.polynomial.w1.data.normal_()
            site.polynomial.b.data.normal_(0, 0.3)
    return network.eval()


def sequences(seed: int, count: int, frames: int, joints: int = 5) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 3, frames, joints))


def torch_logits(network: STGCN, x: Any) -> Any:
    with torch.no_grad():
        return network(torch.from_numpy(x)[..., None]).numpy()


@pytest.fixture(scope="session")
def make_network() -> Callable[..., STGCN]:
    return random_network


@pytest.fixture(scope="session")
def make_sequences() -> Callable[..., Any]:
    return sequences


@pytest.fixture(scope="session")
def plain_logits() -> Callable[..., Any]:
    return torch_logits


@pytest.fixture(scope="session")
def humanoid() -> Skeleton:
    return HUMANOID
