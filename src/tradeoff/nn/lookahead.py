"""Lookahead (Zhang, Lucas, Ba, Hinton, "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019)."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Lookahead:
    """Slow weights, which every ``period`` steps move by ``rate`` towards the fast ones; those restart there.

    ``slow <- slow + rate * (fast - slow); fast <- slow``. Call :meth:`step` after each step of the optimizer.

    Args:
        parameters: the tensors that the optimizer changes.
        period: fast steps between two slow ones (k in the paper).
        rate: part of the way that the slow weights go, in (0, 1] (alpha in the paper).
    """

    def __init__(self, parameters: Iterable[Tensor], period: int = 6, rate: float = 0.5) -> None:
        self.fast = list(parameters)
        self.slow = [tensor.detach().clone() for tensor in self.fast]
        self.period = period
        self.rate = rate
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        if self.steps % self.period == 0:
            for slow, fast in zip(self.slow, self.fast, strict=True):
                slow.lerp_(fast, self.rate)
                fast.copy_(slow)
