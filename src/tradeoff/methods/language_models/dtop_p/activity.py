"""Counts of what routers decide: how many experts tokens pass, how evenly, and what that costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, distributed, nn

from tradeoff.nn.decoder import MoE, Routing, TopP

_TOKENS, _SLOTS, _SQUARES, _TRUNCATED, _FIXED = range(5)
"""Columns of the counts; from the last on, those of the experts."""


@dataclass(frozen=True, eq=False)
class Tally:
    """What was counted, without padding, a row for each layer.

    Attributes:
        tokens: tokens that were routed.
        slots: experts that they passed, all together.
        squares: squares of the number of experts of each token, summed.
        truncated: tokens whose set was cut to ``max_active``.
        loads: tokens of each expert.
    """

    tokens: Int[Tensor, " layers"]
    slots: Int[Tensor, " layers"]
    squares: Int[Tensor, " layers"]
    truncated: Int[Tensor, " layers"]
    loads: Int[Tensor, "layers experts"]

    @property
    def active(self) -> Tensor:
        """Mean experts of a token in each layer; NaN where none was routed."""
        return self.slots / self.tokens

    @property
    def spread(self) -> Tensor:
        """Standard deviation of the experts of a token in each layer, over the tokens."""
        return (self.squares / self.tokens - self.active.square()).clamp_min(0).sqrt()

    @property
    def imbalance(self) -> Tensor:
        """Tokens of the busiest expert over the mean of its layer's experts."""
        return self.loads.max(1).values / self.loads.double().mean(1)


class Activity:
    """Watches the mixtures of experts of a model by hooks.

    Args:
        layers: to watch; they must have equally many experts.
        training: count forward passes in training mode, or those in evaluation mode.

    Attributes:
        passes: forward passes of a layer since the last :meth:`take`.
    """

    def __init__(self, layers: Sequence[MoE], training: bool = True) -> None:
        self.layers = tuple(layers)
        self.training = training
        self.passes = 0
        self._valid: dict[int, Tensor | None] = {}
        self._counts: Tensor | None = None
        self._handles = [
            handle
            for index, layer in enumerate(self.layers)
            for handle in (
                layer.register_forward_pre_hook(partial(self._keep_valid, index), with_kwargs=True),
                layer.router.register_forward_hook(partial(self._count, index)),
            )
        ]

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def take(self, group: "distributed.ProcessGroup | None" = None) -> Tally:
        """What was counted since the last call, summed over the ranks of a running process group."""
        counts = self._counts
        if counts is None:
            counts = self._zeros(next(self.layers[0].parameters()).device)
        self._counts, self.passes = None, 0
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts, group=group)
        tokens, slots, squares, truncated = counts[:, :_FIXED].unbind(1)
        return Tally(tokens, slots, squares, truncated, counts[:, _FIXED:])

    def _zeros(self, device: torch.device) -> Tensor:
        experts = self.layers[0].config.experts
        return torch.zeros(len(self.layers), _FIXED + experts, dtype=torch.int64, device=device)

    def _keep_valid(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        valid = kwargs.get("valid", args[1] if len(args) > 1 else None)
        self._valid[index] = None if valid is None else valid.reshape(-1)

    @torch.no_grad()
    def _count(self, index: int, router: nn.Module, args: tuple[Any, ...], routing: Routing) -> None:
        if router.training != self.training:
            return
        valid = self._valid.pop(index, None)
        if valid is None:
            valid = routing.mask.new_ones(len(routing.mask))
        used = routing.mask & valid[:, None]
        sizes = used.sum(1)
        if self._counts is None:
            self._counts = self._zeros(sizes.device)
        row = self._counts[index]
        row[_TOKENS] += valid.sum()
        row[_SLOTS] += sizes.sum()
        row[_SQUARES] += sizes.square().sum()
        if isinstance(router, TopP) and router.config.max_active is not None:
            row[_TRUNCATED] += (_is_truncated(router, routing) & valid).sum()
        row[_FIXED:] += routing.indices[used].bincount(minlength=len(row) - _FIXED)
        self.passes += 1


def _is_truncated(router: TopP, routing: Routing) -> Tensor:
    """Which tokens would have more experts: the mass of their set is below the threshold."""
    mass = routing.probabilities.gather(1, routing.indices).mul(routing.mask).cumsum(-1)[:, -1]
    return (mass < router.threshold) & ~routing.mask.all(1)


def expert_flops(layer: MoE, slots: int) -> int:
    """Floating-point operations, a multiply-add counted as two, of the routed experts of a layer.

    Exact: every slot is one row through the two matrices of a GELU expert or the three of a SwiGLU expert.
    The router and shared experts, which cost the same under every router, are left out.
    """
    gated = layer.experts.gate is not None
    return 2 * (3 if gated else 2) * layer.experts.up[0].numel() * slots
