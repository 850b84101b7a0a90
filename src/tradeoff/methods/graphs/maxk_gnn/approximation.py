"""What a network with one hidden MaxK layer can represent (MaxK-GNN, section 3: universal approximation)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

from .activation import MaxK


@torch.no_grad()
def relu_by_maxk(hidden: nn.Linear, output: nn.Linear) -> nn.Sequential:
    """A MaxK network of twice the width that computes ``output(relu(hidden(x)))``.

    Each unit a becomes the pair a, -a, and k is the width of the ReLU network: of each pair one is at least 0
    and one at most 0, so the k largest are those that are not negative, and of the unit's two halves the
    second is not read. Hence MaxK networks contain all ReLU networks, which approximate any continuous
    function on a compact set.
    """
    width = hidden.out_features
    pairs = nn.Linear(hidden.in_features, 2 * width)
    pairs.weight.copy_(torch.cat([hidden.weight, -hidden.weight]))
    pairs.bias.copy_(torch.cat([hidden.bias, -hidden.bias]))
    last = nn.Linear(2 * width, output.out_features)
    last.weight.copy_(torch.cat([output.weight, torch.zeros_like(output.weight)], dim=1))
    last.bias.copy_(output.bias)
    return nn.Sequential(pairs, MaxK(width), last)


def square_error(
    width: int, activation: str = "maxk", *, steps: int = 1500, seeds: Iterable[int] = range(3)
) -> float:
    """Mean squared error with which a trained network of one hidden layer fits x^2 on [-1, 1].

    Args:
        width: hidden units; MaxK keeps a quarter of them.
        activation: ``maxk`` or ``relu``.
        seeds: starts, of which the best counts.
    """
    return min(_fit_square(width, activation, steps, seed) for seed in seeds)


def _fit_square(width: int, activation: str, steps: int, seed: int) -> float:
    x = torch.linspace(-1, 1, 256)[:, None]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        middle = MaxK(-(-width // 4)) if activation == "maxk" else nn.ReLU()
        network = nn.Sequential(nn.Linear(1, width), middle, nn.Linear(width, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.mse_loss(network(x), x * x)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss.detach())
