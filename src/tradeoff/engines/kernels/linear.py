"""Linear layers on compressed and on sparse features: only rows of W^T that are selected are read."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tradeoff.engines.kernels import backends
from tradeoff.engines.kernels.errors import OperandError
from tradeoff.engines.kernels.functional import CBSR, spmm
from tradeoff.engines.kernels.graph import Graph


def cbsr_linear(
    features: CBSR,
    weight: Float[Tensor, "outputs d"],
    add_to: Float[Tensor, "n outputs"],
) -> Float[Tensor, "n outputs"]:
    """``add_to + H W^T`` of a compressed H; differentiable in its values, W and ``add_to``.

    Of n k outputs multiply-adds instead of n d outputs. The compiled kernel takes float32 on the CPU; for
    everything else H is made dense. Results do not depend on the number of threads.

    Raises:
        OperandError: the shapes do not fit each other.
    """
    rows, columns = features.shape
    if weight.ndim != 2 or weight.shape[1] != columns:
        raise OperandError(f"weight has shape {tuple(weight.shape)}, features have {columns} columns")
    if add_to.shape != (rows, weight.shape[0]):
        raise OperandError(f"add_to has shape {tuple(add_to.shape)}, not {(rows, weight.shape[0])}")
    values = features.values
    operands = (values, weight, add_to)
    native = all(each.dtype == torch.float32 and each.device.type == "cpu" for each in operands)
    if not native or backends.native_linear() is None or features.count is not None:
        return reference(features, weight, add_to)
    result: Tensor = _CompressedLinear.apply(values, features.index, weight, add_to)  # type: ignore[no-untyped-call]
    return result


def reference(features: CBSR, weight: Tensor, add_to: Tensor) -> Tensor:
    """The same by a dense product."""
    return add_to + functional.linear(features.to_dense(), weight)


class _CompressedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, weight: Tensor, add_to: Tensor) -> Tensor:
        values, index = values.contiguous(), index.contiguous()
        # Rows of the transposed weights are read, so that what a row of H selects lies together.
        transposed = weight.t().contiguous()
        for_values, _, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(values if for_weight else None, index, transposed if for_values else None)
        ctx.num_columns = weight.shape[1]
        out = torch.empty(add_to.shape, dtype=torch.float32)
        native = backends.native_linear()
        assert native is not None
        operands = (values.numpy(), index.numpy(), transposed.numpy(), add_to.contiguous().numpy())
        native.cbsr_linear(*operands, out.numpy(), torch.get_num_threads())
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        values, index, transposed = ctx.saved_tensors
        for_values = for_weight = None
        grad_array, threads = grad.contiguous().numpy(), torch.get_num_threads()
        native = backends.native_linear()
        assert native is not None
        if ctx.needs_input_grad[0]:
            for_values = torch.empty(index.shape, dtype=torch.float32)
            operands = (grad_array, transposed.numpy(), index.numpy())
            native.cbsr_linear_values(*operands, for_values.numpy(), threads)
        if ctx.needs_input_grad[2]:
            for_transposed = torch.empty((ctx.num_columns, grad.shape[1]), dtype=torch.float32)
            operands = (grad_array, values.numpy(), index.numpy())
            native.cbsr_linear_weight(*operands, for_transposed.numpy(), threads)
            for_weight = for_transposed.t()
        return for_values, None, for_weight, grad


def sparse_linear(
    x: Graph, weight: Float[Tensor, "outputs features"], bias: Float[Tensor, " outputs"]
) -> Float[Tensor, "n outputs"]:
    """``X W^T + b`` of a sparse matrix X, such as words of texts; differentiable in W and b.

    Raises:
        OperandError: the shapes do not fit each other.
    """
    result: Tensor = _SparseLinear.apply(x, weight)  # type: ignore[no-untyped-call]
    return result + bias


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Graph, weight: Tensor) -> Tensor:
        ctx.x = x
        return spmm(x, weight.t().contiguous())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, spmm(ctx.x.transpose(), grad.contiguous()).t()
