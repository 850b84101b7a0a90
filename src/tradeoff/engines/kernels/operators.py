"""The raw operators as PyTorch operators (``torch.ops.tradeoff_kernels``): gradients, shapes for compilers.

Each forwards to the module of its backend (see :mod:`reference` for what it computes) and counts what it
did. Graphs come as their tensors, so that ``torch.compile`` traces through; users call :mod:`functional`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from tradeoff.engines.kernels import backends, costs
from tradeoff.engines.kernels.reference import column_dtype, index_dtype
from tradeoff.engines.kernels.transforms import Differentiable, linear_in

# custom_op reads the annotations of its function for the schema, so they are written out as it knows them.


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of features of ``dtype`` are taken."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@custom_op("tradeoff_kernels::transpose", mutates_args=())
def transpose(indptr: Tensor, indices: Tensor, num_columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row pointers, columns and ``perm`` of the transpose."""
    module, _ = backends.raw("auto", indptr)
    result: tuple[Tensor, Tensor, Tensor] = module.transpose(indptr, indices, num_columns)
    return result


@transpose.register_fake
def _(indptr: Tensor, indices: Tensor, num_columns: int) -> tuple[Tensor, Tensor, Tensor]:
    columns = indices.new_empty(indices.shape, dtype=column_dtype(indptr.shape[0] - 1))
    return indptr.new_empty(num_columns + 1), columns, indptr.new_empty(indices.shape[0])


@custom_op("tradeoff_kernels::order_entries", mutates_args=())
def order_entries(row: Tensor, column: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """The order that sorts entries by row and column."""
    module, _ = backends.raw("auto", row)
    order: Tensor = module.order_entries(row, column, num_rows, num_columns)
    return order


@order_entries.register_fake
def _(row: Tensor, column: Tensor, num_rows: int, num_columns: int) -> Tensor:
    return torch.empty_like(row)


@custom_op("tradeoff_kernels::spmm", mutates_args=())
def _spmm(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor | None,
    x: Tensor,
    indptr_t: Tensor | None,
    indices_t: Tensor | None,
    perm: Tensor | None,
    values_t: Tensor | None,
    backend: str,
) -> Tensor:
    """A X. The transpose is for the gradient of x; ``values_t`` spares permuting constant weights."""
    module, name = backends.raw(backend, x)
    y: Tensor = module.spmm(indptr, indices, values, x)
    costs.spmm("spmm", backends.kernel_name(name, "rows"), indptr, indices, values, x)
    return y


@_spmm.register_fake
def _(indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(indptr.shape[0] - 1, x.shape[1])


def _spmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indptr, indices, values, x, *transposed, ctx.backend = inputs
    kept = x if ctx.needs_input_grad[2] else None  # the gradient of x does not read it
    ctx.save_for_backward(indptr, indices, values, kept, *transposed)


def _spmm_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    indptr, indices, values, x, indptr_t, indices_t, perm, values_t = ctx.saved_tensors
    grad = grad.contiguous()
    for_values = for_x = None
    if ctx.needs_input_grad[2]:
        for_values = sddmm(indptr, indices, grad, x, indptr_t, indices_t, perm, ctx.backend)
    if ctx.needs_input_grad[3]:
        # dX = A^T dY. Second derivatives with respect to the weights need them permuted within the graph.
        if values is not None and (values_t is None or values.requires_grad):
            values_t = values[perm]
        back = inverse(perm) if torch.is_grad_enabled() else None
        for_x = spmm(indptr_t, indices_t, values_t, grad, indptr, indices, back, values, ctx.backend)
    return None, None, for_values, for_x, None, None, None, None, None


spmm: Differentiable = Differentiable(
    _spmm, _spmm_setup, _spmm_backward, linear_in({2: {7: None}, 3: {}}, lambda: spmm)
)


@custom_op("tradeoff_kernels::spmm_out", mutates_args=("out",))
def spmm_out(
    indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor, out: Tensor, backend: str
) -> None:
    """A X into ``out``, without a gradient."""
    module, name = backends.raw(backend, x)
    module.spmm(indptr, indices, values, x, out)
    costs.spmm("spmm", backends.kernel_name(name, "rows"), indptr, indices, values, x)


@spmm_out.register_fake
def _(indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor, out: Tensor, backend: str) -> None:
    return None


@custom_op("tradeoff_kernels::sddmm", mutates_args=())
def _sddmm(
    indptr: Tensor,
    indices: Tensor,
    y: Tensor,
    x: Tensor,
    indptr_t: Tensor | None,
    indices_t: Tensor | None,
    perm: Tensor | None,
    backend: str,
) -> Tensor:
    """Inner products of rows of Y and X at the entries of A; the transpose is for the gradient of x."""
    module, name = backends.raw(backend, x)
    dots: Tensor = module.sddmm(indptr, indices, y, x)
    costs.sddmm(backends.kernel_name(name), indptr, indices, y, x)
    return dots


@_sddmm.register_fake
def _(indptr: Tensor, indices: Tensor, y: Tensor, x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(indices.shape[0], dtype=_accumulator(x.dtype))


def _sddmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indptr, indices, y, x, *transposed, ctx.backend = inputs
    _, _, for_y, for_x, *_ = ctx.needs_input_grad  # each reads the other
    ctx.save_for_backward(indptr, indices, y if for_x else None, x if for_y else None, *transposed)


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    indptr, indices, y, x, indptr_t, indices_t, perm = ctx.saved_tensors
    grad = grad.contiguous()
    for_y = for_x = None
    if ctx.needs_input_grad[2]:
        for_y = spmm(indptr, indices, grad, x, indptr_t, indices_t, perm, None, ctx.backend)
    if ctx.needs_input_grad[3]:
        back = inverse(perm) if torch.is_grad_enabled() else None
        for_x = spmm(indptr_t, indices_t, grad[perm], y, indptr, indices, back, None, ctx.backend)
    return None, None, for_y, for_x, None, None, None, None


sddmm: Differentiable = Differentiable(
    _sddmm, _sddmm_setup, _sddmm_backward, linear_in({2: {}, 3: {}}, lambda: sddmm)
)


def inverse(perm: Tensor) -> Tensor:
    """The inverse of a permutation."""
    back = torch.empty_like(perm)
    back[perm] = torch.arange(perm.shape[0], device=perm.device)
    return back


@custom_op("tradeoff_kernels::maxk_select", mutates_args=())
def _maxk_select(
    x: Tensor, k: int, clip: bool, nan_policy: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, columns and counts (empty unless clipped) of the k largest of each row."""
    module, name = backends.raw(backend, x)
    result: tuple[Tensor, Tensor, Tensor] = module.maxk_select(x, k, clip, nan_policy)
    costs.maxk_select(backends.kernel_name(name), x, *result)
    return result


@_maxk_select.register_fake
def _(x: Tensor, k: int, clip: bool, nan_policy: str, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = x.shape
    index = x.new_empty((rows, k), dtype=index_dtype(columns))
    return x.new_empty((rows, k)), index, x.new_empty(rows if clip else 0, dtype=torch.int32)


def _maxk_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.num_columns = inputs[0].shape[1]
    ctx.clip, ctx.backend = inputs[2], inputs[4]
    _, index, count = output
    ctx.mark_non_differentiable(index, count)
    ctx.save_for_backward(index, count)


def _maxk_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    index, count = ctx.saved_tensors
    for_x = cbsr_dense(grad.contiguous(), index, count if ctx.clip else None, ctx.num_columns, ctx.backend)
    return for_x, None, None, None, None


def _maxk_jvp(operands: tuple[Any, ...], tangents: tuple[Any, ...], result: tuple[Tensor, ...]) -> Any:
    _, index, count = result
    clip, backend = operands[2], operands[4]
    return cbsr_gather(tangents[0].contiguous(), index, count if clip else None, backend), None, None


maxk_select: Differentiable = Differentiable(_maxk_select, _maxk_setup, _maxk_backward, _maxk_jvp)


@custom_op("tradeoff_kernels::cbsr_dense", mutates_args=())
def _cbsr_dense(
    features: Tensor, index: Tensor, count: Tensor | None, num_columns: int, backend: str
) -> Tensor:
    """The dense form of a compressed matrix."""
    module, name = backends.raw(backend, features)
    dense: Tensor = module.cbsr_dense(features, index, count, num_columns)
    costs.cbsr_dense(backends.kernel_name(name), features, index, dense)
    return dense


@_cbsr_dense.register_fake
def _(features: Tensor, index: Tensor, count: Tensor | None, num_columns: int, backend: str) -> Tensor:
    return features.new_empty(features.shape[0], num_columns)


def _cbsr_dense_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, count, _, ctx.backend = inputs
    ctx.save_for_backward(index, count)


def _cbsr_dense_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return cbsr_gather(grad.contiguous(), *ctx.saved_tensors, ctx.backend), None, None, None, None


cbsr_dense: Differentiable = Differentiable(
    _cbsr_dense, _cbsr_dense_setup, _cbsr_dense_backward, linear_in({0: {}}, lambda: cbsr_dense)
)


@custom_op("tradeoff_kernels::cbsr_gather", mutates_args=())
def _cbsr_gather(dense: Tensor, index: Tensor, count: Tensor | None, backend: str) -> Tensor:
    """A dense matrix at the columns of a compressed one."""
    module, name = backends.raw(backend, dense)
    features: Tensor = module.cbsr_gather(dense, index, count)
    costs.cbsr_gather(backends.kernel_name(name), features, index)
    return features


@_cbsr_gather.register_fake
def _(dense: Tensor, index: Tensor, count: Tensor | None, backend: str) -> Tensor:
    return dense.new_empty(index.shape)


def _cbsr_gather_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dense, index, count, ctx.backend = inputs
    ctx.num_columns = dense.shape[1]
    ctx.save_for_backward(index, count)


def _cbsr_gather_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return cbsr_dense(grad.contiguous(), *ctx.saved_tensors, ctx.num_columns, ctx.backend), None, None, None


cbsr_gather: Differentiable = Differentiable(
    _cbsr_gather, _cbsr_gather_setup, _cbsr_gather_backward, linear_in({0: {}}, lambda: cbsr_gather)
)


@custom_op("tradeoff_kernels::cbsr_spmm", mutates_args=())
def _cbsr_spmm(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor | None,
    features: Tensor,
    index: Tensor,
    count: Tensor | None,
    num_columns: int,
    column_offsets: Tensor | None,
    deterministic: bool,
    backend: str,
) -> Tensor:
    """A times a compressed matrix; ``column_offsets`` are for the gradient."""
    module, name = backends.raw(backend, features)
    y: Tensor = module.cbsr_spmm(indptr, indices, values, features, index, count, num_columns, deterministic)
    costs.cbsr_spmm(backends.kernel_name(name, "rows"), indices, values, features, index, y)
    return y


@_cbsr_spmm.register_fake
def _(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor | None,
    features: Tensor,
    index: Tensor,
    count: Tensor | None,
    num_columns: int,
    *_: Any,
) -> Tensor:
    return features.new_empty(indptr.shape[0] - 1, num_columns)


def _cbsr_spmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indptr, indices, values, features, index, count, _, offsets, ctx.deterministic, ctx.backend = inputs
    kept = features if ctx.needs_input_grad[2] else None  # the gradient of the features does not read them
    ctx.save_for_backward(indptr, indices, values, kept, index, count, offsets)


def _cbsr_spmm_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    indptr, indices, values, features, index, count, offsets = ctx.saved_tensors
    grad = grad.contiguous()
    for_values = for_features = None
    if ctx.needs_input_grad[2]:
        for_values = cbsr_edge_dots(indptr, indices, grad, features, index, count, offsets, ctx.backend)
    if ctx.needs_input_grad[3]:
        for_features = cbsr_sddmm(
            indptr, indices, values, grad, index, count, offsets, ctx.deterministic, ctx.backend
        )
    return None, None, for_values, for_features, None, None, None, None, None, None


cbsr_spmm: Differentiable = Differentiable(
    _cbsr_spmm, _cbsr_spmm_setup, _cbsr_spmm_backward, linear_in({2: {}, 3: {}}, lambda: cbsr_spmm)
)


@custom_op("tradeoff_kernels::cbsr_sddmm", mutates_args=())
def _cbsr_sddmm(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor | None,
    grad: Tensor,
    index: Tensor,
    count: Tensor | None,
    column_offsets: Tensor | None,
    deterministic: bool,
    backend: str,
) -> Tensor:
    """A transposed times a dense matrix, at the columns of a compressed one."""
    module, name = backends.raw(backend, grad)
    features: Tensor = module.cbsr_sddmm(
        indptr, indices, values, grad, index, count, column_offsets, deterministic
    )
    costs.cbsr_sddmm(backends.kernel_name(name, "rows"), indices, values, grad, index)
    return features


@_cbsr_sddmm.register_fake
def _(indptr: Tensor, indices: Tensor, values: Tensor | None, grad: Tensor, index: Tensor, *_: Any) -> Tensor:
    return grad.new_empty(index.shape)


def _cbsr_sddmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indptr, indices, values, grad, *pattern, ctx.deterministic, ctx.backend = inputs
    ctx.num_columns = grad.shape[1]
    kept = grad if ctx.needs_input_grad[2] else None  # its own gradient does not read it
    ctx.save_for_backward(indptr, indices, values, kept, *pattern)


def _cbsr_sddmm_backward(ctx: Any, grad_features: Tensor) -> tuple[Any, ...]:
    indptr, indices, values, grad, index, count, offsets = ctx.saved_tensors
    grad_features = grad_features.contiguous()
    for_values = for_grad = None
    if count is not None:
        grad_features = _zero_beyond(grad_features, count)
    if ctx.needs_input_grad[2]:
        for_values = cbsr_edge_dots(indptr, indices, grad, grad_features, index, count, offsets, ctx.backend)
    if ctx.needs_input_grad[3]:
        for_grad = cbsr_spmm(
            *(indptr, indices, values, grad_features, index, count, ctx.num_columns, offsets),
            *(ctx.deterministic, ctx.backend),
        )
    return None, None, for_values, for_grad, None, None, None, None, None


cbsr_sddmm: Differentiable = Differentiable(
    _cbsr_sddmm, _cbsr_sddmm_setup, _cbsr_sddmm_backward, linear_in({2: {}, 3: {}}, lambda: cbsr_sddmm)
)


@custom_op("tradeoff_kernels::cbsr_edge_dots", mutates_args=())
def _cbsr_edge_dots(
    indptr: Tensor,
    indices: Tensor,
    grad: Tensor,
    features: Tensor,
    index: Tensor,
    count: Tensor | None,
    column_offsets: Tensor | None,
    backend: str,
) -> Tensor:
    """Inner products of rows of a dense and a compressed matrix at the entries of A."""
    module, name = backends.raw(backend, grad)
    dots: Tensor = module.cbsr_edge_dots(indptr, indices, grad, features, index, count)
    costs.cbsr_edge_dots(backends.kernel_name(name), indptr, indices, grad, features, index)
    return dots


@_cbsr_edge_dots.register_fake
def _(indptr: Tensor, indices: Tensor, grad: Tensor, *_: Any) -> Tensor:
    return grad.new_empty(indices.shape[0], dtype=_accumulator(grad.dtype))


def _edge_dots_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indptr, indices, grad, features, *pattern, ctx.backend = inputs
    ctx.num_columns = grad.shape[1]
    _, _, for_grad, for_features, *_ = ctx.needs_input_grad  # each reads the other
    kept = grad if for_features else None, features if for_grad else None
    ctx.save_for_backward(indptr, indices, *kept, *pattern)


def _edge_dots_backward(ctx: Any, grad_dots: Tensor) -> tuple[Any, ...]:
    indptr, indices, grad, features, index, count, offsets = ctx.saved_tensors
    grad_dots = grad_dots.contiguous()
    for_grad = for_features = None
    if ctx.needs_input_grad[2]:
        for_grad = cbsr_spmm(
            *(indptr, indices, grad_dots, features, index, count, ctx.num_columns, offsets, True, ctx.backend)
        )
    if ctx.needs_input_grad[3]:
        for_features = cbsr_sddmm(indptr, indices, grad_dots, grad, index, count, offsets, True, ctx.backend)
    return None, None, for_grad, for_features, None, None, None, None


cbsr_edge_dots: Differentiable = Differentiable(
    _cbsr_edge_dots, _edge_dots_setup, _edge_dots_backward, linear_in({2: {}, 3: {}}, lambda: cbsr_edge_dots)
)


def _zero_beyond(features: Tensor, count: Tensor) -> Tensor:
    valid = torch.arange(features.shape[1], device=features.device)[None] < count[:, None]
    return torch.where(valid, features, 0)
