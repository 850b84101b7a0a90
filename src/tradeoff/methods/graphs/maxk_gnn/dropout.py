"""Dropout of 16 random bits a value, several times faster on a CPU than torch's own.

The dense network that MaxK is compared with would spend a tenth of its epoch in torch's dropout, and MaxK,
which needs it for k of d values only, would gain by that.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_LEVELS = 1 << 16


def dropout(x: Float[Tensor, "n d"], p: float, training: bool, rectify: bool = False) -> Float[Tensor, "n d"]:
    """Zero each value with probability ``p``, rounded to a 65,536th, and scale the others by 1 / (1 - p).

    Args:
        rectify: apply ReLU first, in the same passes.
    """
    if not training or p == 0 or x.device.type != "cpu":
        return functional.dropout(functional.relu(x) if rectify else x, p, training)
    result: Tensor = _Dropout.apply(x, p, rectify)  # type: ignore[no-untyped-call]
    return result


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, rectify: bool) -> Tensor:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
        words.random_(-(2**63), None)  # all 64 bits
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = bits >= round(p * _LEVELS) - _LEVELS // 2
        if rectify:
            keep &= x > 0
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (keep,) = ctx.saved_tensors
        return (grad * keep).mul_(ctx.scale), None, None
