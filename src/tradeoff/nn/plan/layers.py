"""How each torch layer, function and method becomes operators of a plan.

A handler takes a call, appends operators, and returns the name of the operator that has the call's value.
"""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from tradeoff.nn import polynomial
from tradeoff.nn.plan import operators as op
from tradeoff.nn.plan.call import Call, as_node, weight_array
from tradeoff.nn.plan.operators import Floats, Shape

# --- linear layers ---------------------------------------------------------------------------------------


def _convolution(
    call: Call, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> str:
    spatial = weight.dim() - 2
    array = weight_array(weight, f"{call.name}.weight")
    stride, dilation = call.sizes(stride, spatial), call.sizes(dilation, spatial)
    if padding == "same":
        array, padding, dilation = _same_padding(array, dilation)
    elif padding == "valid":
        padding = (0,) * spatial
    bias_array = None if bias is None else weight_array(bias, f"{call.name}.bias")
    return call.append(
        op.Convolution(
            call.name,
            (call.input,),
            call.shape,
            array,
            bias_array,
            stride,
            call.sizes(padding, spatial),
            dilation,
            groups,
        )
    )


def _same_padding(weight: Floats, dilation: Shape) -> tuple[Floats, Shape, Shape]:
    """Kernel, padding and dilation that give ``padding='same'`` with equal padding on both sides.

    torch pads the end by one more where d (k - 1) is odd; there the kernel is written out without dilation
    and gets a zero in front, so that both sides are padded by the larger amount.
    """
    kernel = weight.shape[2:]
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if all(total % 2 == 0 for total in totals):
        return weight, tuple(total // 2 for total in totals), dilation
    front = [total % 2 for total in totals]
    dense = np.zeros((*weight.shape[:2], *(total + 1 + f for total, f in zip(totals, front, strict=True))))
    taps: Any = (..., *(slice(f, None, d) for f, d in zip(front, dilation, strict=True)))
    dense[taps] = weight
    return dense, tuple((total + f) // 2 for total, f in zip(totals, front, strict=True)), (1,) * len(kernel)


def _conv_module(call: Call, module: Any) -> str:
    call.require(
        module.padding_mode == "zeros", f"padding_mode {module.padding_mode!r}; only 'zeros' is supported"
    )
    return _convolution(
        call, module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups
    )


def _conv_function(call: Call) -> str:
    weight = call.constant(call.argument(1, "weight"))
    assert weight is not None
    return _convolution(
        call,
        weight,
        call.constant(call.argument(2, "bias")),
        call.argument(3, "stride", 1),
        call.argument(4, "padding", 0),
        call.argument(5, "dilation", 1),
        call.argument(6, "groups", 1),
    )


def _linear(call: Call, weight: Tensor, bias: Tensor | None) -> str:
    call.require(
        len(call.input_shape) == 1, f"its input {call.input_shape} is not a vector; flatten before it"
    )
    bias_array = None if bias is None else weight_array(bias, f"{call.name}.bias")
    return call.append(
        op.Linear(
            call.name, (call.input,), call.shape, weight_array(weight, f"{call.name}.weight"), bias_array
        )
    )


def _linear_function(call: Call) -> str:
    weight = call.constant(call.argument(1, "weight"))
    assert weight is not None
    return _linear(call, weight, call.constant(call.argument(2, "bias")))


def _batch_norm(
    call: Call,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> str:
    if mean is None or variance is None:
        raise call.unsupported("it normalizes by the batch even in eval mode; use track_running_stats=True")
    scale = 1.0 / np.sqrt(weight_array(variance, f"{call.name}.running_var") + eps)
    if weight is not None:
        scale = scale * weight_array(weight, f"{call.name}.weight")
    shift = -weight_array(mean, f"{call.name}.running_mean") * scale
    if bias is not None:
        shift = shift + weight_array(bias, f"{call.name}.bias")
    return call.append(op.Affine(call.name, (call.input,), call.shape, scale, shift))


def _batch_norm_module(call: Call, m: Any) -> str:
    return _batch_norm(call, m.running_mean, m.running_var, m.weight, m.bias, m.eps)


def _batch_norm_function(call: Call) -> str:
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (call.constant(call.argument(i + 1, n)) for i, n in enumerate(names))
    call.require(not call.argument(5, "training", False), "it normalizes by the batch; use eval mode")
    return _batch_norm(call, mean, variance, weight, bias, call.argument(7, "eps", 1e-5))


def _affine(call: Call, source: fx.Node, scale: Any, shift: Any, name: str | None = None) -> str:
    """scale x + shift, each one number or one for each channel."""
    shape = call.lowering.traced.image_shape(source)
    scale, shift = (np.broadcast_to(np.asarray(value, np.float64), shape[:1]) for value in (scale, shift))
    return call.append(op.Affine(name or call.name, (call.value(source),), shape, scale, shift))


def _constant(call: Call, value: Any, other: Any) -> float | Floats | None:
    """A number, or a tensor that has one number for each channel of ``other``; None if it is neither."""
    if isinstance(value, int | float):
        return float(value)
    if value not in call.lowering.constants:
        return None
    image = call.lowering.traced.image_shape(other)
    array = weight_array(call.lowering.constants[value], call.lowering.traced.labels[value])
    padded = (1,) * (len(image) + 1 - array.ndim) + array.shape
    call.require(
        len(padded) == len(image) + 1 and padded[1] in (1, image[0]) and array.size == padded[1],
        f"constant {value.target} of shape {array.shape} is not one number for each channel",
    )
    return array.reshape(-1)


# --- activations -----------------------------------------------------------------------------------------


def _relu(call: Call, module: Any = None) -> str:
    return call.append(op.ReLU(call.name, (call.input,), call.shape))


def _power(call: Call) -> str:
    """``x * x``, ``x.square()`` and ``x ** n`` for small n."""
    exponent = call.argument(1, "exponent", 2)
    exponent = 2 if isinstance(exponent, fx.Node) else exponent
    call.require(exponent in range(1, 5), "only powers 1 to 4 are supported")
    coefficients = np.zeros((int(exponent) + 1, call.input_shape[0]))
    coefficients[-1] = 1.0
    return call.append(op.Polynomial(call.name, (call.input,), call.shape, coefficients))


def _polynomial(call: Call, module: Any) -> str:
    coefficients = weight_array(module.coefficients, f"{call.name}.coefficients")
    return call.append(op.Polynomial(call.name, (call.input,), call.shape, coefficients))


def _masked_relu(call: Call, module: Any) -> str:
    coefficients = None
    if module.coefficients is not None:
        coefficients = weight_array(module.coefficients, f"{call.name}.coefficients")
    mask = module.mask.detach().cpu().numpy()
    if tuple(mask.shape) != call.input_shape:
        raise polynomial.SiteShapeMismatch(call.name, tuple(mask.shape), call.input_shape)
    return call.append(op.MaskedReLU(call.name, (call.input,), call.shape, mask, coefficients))


# --- pooling ---------------------------------------------------------------------------------------------


def _max_pool(
    call: Call, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, return_indices: bool
) -> str:
    call.require(not return_indices, "return_indices is not supported")
    spatial = len(call.input_shape) - 1
    kernel, stride = call.sizes(kernel, spatial), call.sizes(stride or kernel, spatial)
    padding, dilation = call.sizes(padding, spatial), call.sizes(dilation, spatial)
    _check_ceil(call, ceil_mode, op.window_output(call.input_shape[1:], kernel, stride, padding, dilation))
    return call.append(op.MaxPool(call.name, (call.input,), call.shape, kernel, stride, padding, dilation))


def _average_pool(
    call: Call,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: Any,
) -> str:
    call.require(divisor is None, "divisor_override is not supported")
    spatial = len(call.input_shape) - 1
    kernel, stride = call.sizes(kernel, spatial), call.sizes(stride or kernel, spatial)
    padding = call.sizes(padding, spatial)
    _check_ceil(call, ceil_mode, op.window_output(call.input_shape[1:], kernel, stride, padding))
    return call.append(
        op.AveragePool(call.name, (call.input,), call.shape, kernel, stride, padding, bool(count_include_pad))
    )


def _check_ceil(call: Call, ceil_mode: bool, size: Shape) -> None:
    """ceil_mode is fine where it adds no window."""
    call.require(
        not ceil_mode or size == call.shape[1:],
        "ceil_mode adds an incomplete window here; use ceil_mode=False or another input size",
    )


def _max_pool_module(call: Call, m: Any) -> str:
    return _max_pool(call, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def _max_pool_function(call: Call) -> str:
    return _max_pool(
        call,
        call.argument(1, "kernel_size"),
        call.argument(2, "stride"),
        call.argument(3, "padding", 0),
        call.argument(4, "dilation", 1),
        call.argument(5, "ceil_mode", False),
        call.argument(6, "return_indices", False),
    )


def _average_pool_module(call: Call, m: Any) -> str:
    divisor = getattr(m, "divisor_override", None)
    return _average_pool(call, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, divisor)


def _average_pool_function(call: Call) -> str:
    return _average_pool(
        call,
        call.argument(1, "kernel_size"),
        call.argument(2, "stride"),
        call.argument(3, "padding", 0),
        call.argument(4, "ceil_mode", False),
        call.argument(5, "count_include_pad", True),
        call.argument(6, "divisor_override"),
    )


def _adaptive_kernel(call: Call) -> Shape:
    """The window that an adaptive pooling comes to, where it is the same everywhere."""
    pairs = list(zip(call.input_shape[1:], call.shape[1:], strict=True))
    call.require(
        all(size % out == 0 for size, out in pairs),
        f"output size {call.shape[1:]} does not divide the input size {call.input_shape[1:]}",
    )
    return tuple(size // out for size, out in pairs)


def _adaptive_average(call: Call, module: Any = None) -> str:
    kernel = _adaptive_kernel(call)
    return _average_pool(call, kernel, kernel, 0, False, True, None)


def _adaptive_max(call: Call, module: Any = None) -> str:
    kernel = _adaptive_kernel(call)
    indices = module.return_indices if module is not None else call.argument(2, "return_indices", False)
    return _max_pool(call, kernel, kernel, 0, 1, False, indices)


def _mean(call: Call) -> str:
    """``x.mean(spatial dimensions)``: global average pooling."""
    rank = len(call.input_shape) + 1
    dims = call.argument(1, "dim", tuple(range(rank)))
    dims = sorted(d % rank for d in ((dims,) if isinstance(dims, int) else dims))
    call.require(
        rank > 2 and dims == list(range(2, rank)), "only the mean over all spatial dimensions is supported"
    )
    kernel = call.input_shape[1:]
    pooled = (call.input_shape[0], *(1,) * len(kernel))
    flatten = call.shape != pooled
    pool = f"{call.name}.pool" if flatten else call.name
    call.append(op.AveragePool(pool, (call.input,), pooled, kernel, kernel, (0,) * len(kernel), True))
    return call.append(op.Flatten(call.name, (pool,), call.shape)) if flatten else call.name


# --- shapes and sums -------------------------------------------------------------------------------------


def _same_value(call: Call, module: Any = None) -> str:
    return call.input


def _dropout(call: Call) -> str:
    call.require(
        not call.argument(2, "training", True), "it drops in eval mode, too; pass training=self.training"
    )
    return call.input


def _reshape(call: Call, module: Any = None) -> str:
    """Flatten, view, reshape, squeeze: a vector for each image, or no change.

    Another shape is left to the reader of the value: a further reshape may make a vector of it.
    """
    name = call.viewed(call.source)
    if len(call.shape) != 1 or call.shape == call.lowering.shapes[name]:
        return name
    return call.append(op.Flatten(call.name, (name,), call.shape))


def _add(call: Call) -> str:
    left, right = call.argument(0, "input"), call.argument(1, "other")
    alpha: Any = call.node.kwargs.get("alpha", 1)
    call.require(isinstance(alpha, int | float), "its alpha is not a number")
    return _sum(call, left, right, float(alpha))


def _subtract(call: Call) -> str:
    call.require(call.node.kwargs.get("alpha", 1) == 1, "alpha is not supported")
    return _sum(call, call.argument(0, "input"), call.argument(1, "other"), -1.0)


def _sum(call: Call, left: Any, right: Any, factor: float) -> str:
    """left + factor * right, where one of them may be constant."""
    constant = _constant(call, right, left)
    if constant is not None:
        return _affine(call, as_node(left), 1.0, factor * constant)
    constant = _constant(call, left, right)
    if constant is not None:
        return _affine(call, as_node(right), factor, constant)
    shapes = [call.lowering.traced.image_shape(side) for side in (left, right)]
    call.require(shapes[0] == shapes[1], f"operands {shapes[0]} and {shapes[1]} differ in shape")
    second = call.value(right) if factor == 1.0 else _affine(call, right, factor, 0.0, f"{call.name}.factor")
    return call.append(op.Add(call.name, (call.value(left), second), call.shape))


def _multiply(call: Call) -> str:
    left, right = call.argument(0, "input"), call.argument(1, "other")
    if left is right:
        return _power(call)
    for variable, other in ((left, right), (right, left)):
        constant = _constant(call, other, variable)
        if constant is not None:
            return _affine(call, as_node(variable), constant, 0.0)
    raise call.unsupported("products of two tensors (gates, squeeze-and-excitation) are not supported")


def _divide(call: Call) -> str:
    left, right = call.argument(0, "input"), call.argument(1, "other")
    constant = _constant(call, right, left) if left in call.lowering.values else None
    if constant is None or not np.all(constant) or call.node.kwargs.get("rounding_mode") is not None:
        raise call.unsupported("only division by a constant that is not zero is supported")
    return _affine(call, as_node(left), 1.0 / constant, 0.0)


def _concatenate(call: Call) -> str:
    tensors = call.argument(0, "tensors")
    dim = call.argument(1, "dim", call.node.kwargs.get("axis", 0))
    call.require(isinstance(tensors, tuple | list) and isinstance(dim, int), "its arguments are not constant")
    rank = len(call.shape) + 1
    call.require(dim % rank > 0, "it joins batches")
    inputs = tuple(call.value(tensor) for tensor in tensors)
    if len(inputs) == 1:
        return inputs[0]
    return call.append(op.Concatenate(call.name, inputs, call.shape, dim % rank - 1))


def _arg_max(call: Call) -> str:
    dim = call.argument(1, "dim")
    call.require(
        len(call.input_shape) == 1 and dim in (1, -1) and call.shape == (), "only over the features, dim=1"
    )
    return call.append(op.ArgMax(call.name, (call.input,), ()))


MODULES: dict[type[nn.Module], Callable[[Call, Any], str]] = {
    nn.Conv1d: _conv_module,
    nn.Conv2d: _conv_module,
    nn.Linear: lambda call, m: _linear(call, m.weight, m.bias),
    nn.BatchNorm1d: _batch_norm_module,
    nn.BatchNorm2d: _batch_norm_module,
    nn.ReLU: _relu,
    polynomial.Polynomial: _polynomial,
    polynomial.MaskedReLU: _masked_relu,
    nn.MaxPool1d: _max_pool_module,
    nn.MaxPool2d: _max_pool_module,
    nn.AvgPool1d: _average_pool_module,
    nn.AvgPool2d: _average_pool_module,
    nn.AdaptiveAvgPool1d: _adaptive_average,
    nn.AdaptiveAvgPool2d: _adaptive_average,
    nn.AdaptiveMaxPool1d: _adaptive_max,
    nn.AdaptiveMaxPool2d: _adaptive_max,
    nn.Flatten: _reshape,
    nn.Identity: _same_value,
    nn.Dropout: _same_value,
    nn.Dropout1d: _same_value,
    nn.Dropout2d: _same_value,
    nn.AlphaDropout: _same_value,
}
FUNCTIONS: dict[Any, Callable[[Call], str]] = {
    functional.conv1d: _conv_function,
    functional.conv2d: _conv_function,
    torch.conv1d: _conv_function,
    torch.conv2d: _conv_function,
    functional.linear: _linear_function,
    functional.batch_norm: _batch_norm_function,
    functional.relu: _relu,
    functional.relu_: _relu,
    torch.relu: _relu,
    torch.relu_: _relu,
    functional.max_pool1d: _max_pool_function,
    functional.max_pool2d: _max_pool_function,
    functional.avg_pool1d: _average_pool_function,
    functional.avg_pool2d: _average_pool_function,
    functional.adaptive_avg_pool1d: _adaptive_average,
    functional.adaptive_avg_pool2d: _adaptive_average,
    functional.adaptive_max_pool1d: _adaptive_max,
    functional.adaptive_max_pool2d: _adaptive_max,
    functional.dropout: _dropout,
    functional.dropout1d: _dropout,
    functional.dropout2d: _dropout,
    functional.alpha_dropout: _dropout,
    torch.flatten: _reshape,
    torch.reshape: _reshape,
    torch.squeeze: _reshape,
    torch.unsqueeze: _reshape,
    torch.mean: _mean,
    torch.cat: _concatenate,
    torch.concat: _concatenate,
    torch.concatenate: _concatenate,
    torch.add: _add,
    python_operator.add: _add,
    python_operator.iadd: _add,
    torch.sub: _subtract,
    python_operator.sub: _subtract,
    python_operator.isub: _subtract,
    torch.mul: _multiply,
    python_operator.mul: _multiply,
    python_operator.imul: _multiply,
    torch.div: _divide,
    python_operator.truediv: _divide,
    python_operator.itruediv: _divide,
    torch.square: _power,
    torch.pow: _power,
    python_operator.pow: _power,
    torch.argmax: _arg_max,
}
METHODS: dict[str, Callable[[Call], str]] = {
    "relu": _relu,
    "relu_": _relu,
    "flatten": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "unflatten": _reshape,
    "contiguous": _same_value,
    "clone": _same_value,
    "mean": _mean,
    "add": _add,
    "add_": _add,
    "sub": _subtract,
    "sub_": _subtract,
    "mul": _multiply,
    "mul_": _multiply,
    "div": _divide,
    "div_": _divide,
    "square": _power,
    "pow": _power,
    "argmax": _arg_max,
}
