"""Operators under forward-mode derivatives and the transforms of :mod:`torch.func`.

PyTorch's custom operators have reverse mode only: in forward mode they give tangents of 0 without an error.
All operators here are linear in each of their matrices, so that a tangent is a sum of products by the
operator itself, one for each operand that has a tangent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Jvp = Callable[[tuple[Any, ...], tuple[Any, ...], Any], Any]
"""Operands, their tangents (None where there is none), result -> tangent of the result."""


class Differentiable:
    """A custom operator with its gradient, by which forward mode and ``torch.func`` can go, too.

    Under ``torch.vmap`` it is called once for each item.

    Args:
        operator: a ``torch.library.custom_op``; its reverse mode is registered with it.
        setup, backward: as of :meth:`torch.library.CustomOpDef.register_autograd`.
        jvp: forward mode.
    """

    def __init__(
        self,
        operator: Any,
        setup: Callable[[Any, tuple[Any, ...], Any], None],
        backward: Callable[..., tuple[Any, ...]],
        jvp: Jvp,
    ) -> None:
        operator.register_autograd(backward, setup_context=setup)
        self._operator = operator
        self._function = _function(operator, setup, backward, jvp)

    def __call__(self, *operands: Any) -> Any:
        """The operator's result."""
        if not torch.compiler.is_compiling() and (transforming() or has_tangent(*operands)):
            return self._function.apply(*operands)
        return self._operator(*operands)


def has_tangent(*operands: Any) -> bool:
    """Whether forward-mode derivatives are asked of one of the operands."""
    return any(isinstance(each, Tensor) and unpacked(each).tangent is not None for each in operands)


def unpacked(tensor: Tensor) -> forward_ad.UnpackedDualTensor:
    """A tensor, and its tangent if forward-mode derivatives are asked of it."""
    pair: forward_ad.UnpackedDualTensor = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return pair


def transforming() -> bool:
    """Whether a transform of ``torch.func`` is at work, as ``torch.autograd.Function`` asks it."""
    active: bool = torch._C._are_functorch_transforms_active()
    return active


def may_need_gradient(*operands: Any) -> bool:
    """Whether a backward pass may follow; outer transforms' operands do not show that they need one."""
    if not torch.compiler.is_compiling() and transforming():
        return True
    return torch.is_grad_enabled() and any(
        isinstance(each, Tensor) and each.requires_grad for each in operands
    )


def linear_in(positions: Mapping[int, Mapping[int, Any]], again: Callable[[], Callable[..., Tensor]]) -> Jvp:
    """Forward mode of an operator that is linear in each of some operands.

    Args:
        positions: an operand -> others to replace where its tangent takes its place.
        again: gives the operator.
    """

    def jvp(operands: tuple[Any, ...], tangents: tuple[Any, ...], result: Any) -> Any:
        total = None
        for position, replaced in positions.items():
            if tangents[position] is not None:
                changed = {**replaced, position: tangents[position].contiguous()}
                part = again()(*(changed.get(place, each) for place, each in enumerate(operands)))
                total = part if total is None else total + part
        return total

    return jvp


def _function(
    operator: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., tuple[Any, ...]],
    forward_mode: Jvp,
) -> Any:
    """The operator as a ``torch.autograd.Function``."""

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*operands: Any) -> Any:
            return operator(*operands)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup(ctx, inputs, output)
            results = output if isinstance(output, tuple) else (output,)
            ctx.constants = tuple(None if isinstance(each, Tensor) else each for each in inputs)
            ctx.save_for_forward(*(each if isinstance(each, Tensor) else None for each in inputs), *results)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            saved, constants = ctx.saved_tensors, ctx.constants
            pairs = zip(saved, constants, strict=False)
            with forward_ad._set_fwd_grad_enabled(transforming()):  # of an outer transform
                operands = tuple(
                    constant if tensor is None else unpacked(tensor).primal for tensor, constant in pairs
                )
                return forward_mode(operands, tangents, saved[len(constants) :])

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return backward(ctx, *grads)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *operands: Any) -> Any:
            def item(number: int) -> Any:
                placed = zip(operands, in_dims, strict=True)
                mine = (
                    each if dim is None else each.select(dim, number).contiguous() for each, dim in placed
                )
                return Transformed.apply(*mine)  # type: ignore[no-untyped-call]

            items = [item(number) for number in range(info.batch_size)]
            if isinstance(items[0], tuple):
                return tuple(map(torch.stack, zip(*items, strict=True))), (0,) * len(items[0])
            return torch.stack(items), 0

    return Transformed
