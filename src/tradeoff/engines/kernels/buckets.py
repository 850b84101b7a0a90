"""The product by blocks of equal degree, as a PyTorch operator with gradients.

On a GPU a block is a program. On a CPU rows are taken in the order of the blocks and written to their own
places; results are the same, no sooner than by rows in their own order, and later where neighbors of a row
are near it in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from tradeoff.engines.kernels import backends, costs, operators
from tradeoff.engines.kernels.layout import BucketLayout, layout_of
from tradeoff.engines.kernels.transforms import Differentiable, linear_in


@custom_op("tradeoff_kernels::spmm_buckets", mutates_args=())
def _spmm_buckets(
    layout: int,
    layout_t: int,
    indptr: Tensor,
    indices: Tensor,
    values: Tensor | None,
    x: Tensor,
    indptr_t: Tensor | None,
    indices_t: Tensor | None,
    perm: Tensor | None,
    values_t: Tensor | None,
    constant: bool,
    backend: str,
) -> Tensor:
    """A X by the blocks of ``layout``; tensors are those of ``spmm``.

    Args:
        layout, layout_t: numbers of the layouts of A and its transpose.
        constant: whether the weights never change, so that they are sorted once.
    """
    known = layout_of(layout)
    assert known is not None, "the caller keeps the partition that holds it"
    return multiply(known, values, x, None, constant, backend)


@_spmm_buckets.register_fake
def _(
    layout: int, layout_t: int, indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor, *_: Any
) -> Tensor:
    return x.new_empty(indptr.shape[0] - 1, x.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.layout, ctx.layout_t, indptr, indices, values, x, *transposed, ctx.constant, ctx.backend = inputs
    # A number keeps nothing alive, and the partition may be gone before the gradient is taken.
    ctx.kept = layout_of(ctx.layout), layout_of(ctx.layout_t)
    kept = x if ctx.needs_input_grad[4] else None  # the gradient of x does not read it
    ctx.save_for_backward(indptr, indices, values, kept, *transposed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    indptr, indices, values, x, indptr_t, indices_t, perm, values_t = ctx.saved_tensors
    grad = grad.contiguous()
    for_values = for_x = None
    if ctx.needs_input_grad[4]:
        for_values = operators.sddmm(indptr, indices, grad, x, indptr_t, indices_t, perm, ctx.backend)
    if ctx.needs_input_grad[5]:
        if values is not None and (values_t is None or values.requires_grad):
            values_t = values[perm]
        back = operators.inverse(perm) if torch.is_grad_enabled() else None
        for_x = spmm_buckets(
            *(ctx.layout_t, ctx.layout, indptr_t, indices_t, values_t, grad),
            *(indptr, indices, back, values, ctx.constant, ctx.backend),
        )
    return None, None, None, None, for_values, for_x, None, None, None, None, None, None


spmm_buckets: Differentiable = Differentiable(
    _spmm_buckets, _setup, _backward, linear_in({4: {9: None, 10: False}, 5: {}}, lambda: spmm_buckets)
)


def multiply(
    layout: BucketLayout, values: Tensor | None, x: Tensor, out: Tensor | None, constant: bool, backend: str
) -> Tensor:
    """A X, into ``out`` if given, and its cost into the meter."""
    module, name = backends.raw(backend, x)
    weights = None
    if values is not None:
        weights = layout.sorted_once(values) if constant else layout.sort(values)
    y: Tensor = module.spmm_buckets(layout, weights, x, out)
    kernel = backends.kernel_name(name, "buckets")
    costs.spmm("spmm", kernel, layout.indptr, layout.indices, values, x)
    return y
