"""From a torch.fx graph to the operators of a plan."""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import type_before_parametrizations

from tradeoff.nn import polynomial
from tradeoff.nn.plan import operators as op
from tradeoff.nn.plan.errors import UnsupportedLayer
from tradeoff.nn.plan.operators import Floats, Operator, Plan, Shape
from tradeoff.nn.plan.passes import fold_batch_norm
from tradeoff.nn.surgery.tracer import TracedModel, trace_model

_REPLACE_BY_RELU = "no engine evaluates it; replace it by ReLU or a polynomial (nn.surgery) and fine-tune"
_HINTS: dict[str, str] = {
    "relu6": _REPLACE_BY_RELU,
    "silu": _REPLACE_BY_RELU,
    "gelu": _REPLACE_BY_RELU,
    "hardswish": _REPLACE_BY_RELU,
    "hardsigmoid": _REPLACE_BY_RELU,
    "leakyrelu": _REPLACE_BY_RELU,
    "leaky_relu": _REPLACE_BY_RELU,
    "prelu": _REPLACE_BY_RELU,
    "elu": _REPLACE_BY_RELU,
    "sigmoid": "no engine evaluates it; leave out the gate or replace it by a polynomial",
    "tanh": _REPLACE_BY_RELU,
    "softmax": "let the model return logits; softmax does not change their order",
    "log_softmax": "let the model return logits; softmax does not change their order",
    "logsoftmax": "let the model return logits; softmax does not change their order",
    "pad": "use the padding argument of the convolution or the pooling",
    "zeropad2d": "use the padding argument of the convolution or the pooling",
    "getitem": "slicing is not supported; use a strided 1x1 convolution",
    "groupnorm": "its statistics depend on the input; use BatchNorm",
    "layernorm": "its statistics depend on the input; use BatchNorm",
}
_DEFAULT_HINT = (
    "supported are convolutions, linear layers, batch normalization, ReLU, polynomial and masked "
    "activations, max and average pooling, flatten, addition, concatenation and argmax"
)


def lower(model: nn.Module, input_shape: Shape) -> Plan:
    """See :func:`tradeoff.nn.plan.trace`."""
    input_shape = tuple(int(size) for size in input_shape)
    if not 1 <= len(input_shape) <= 3 or min(input_shape) < 1:
        raise ValueError(
            f"input shape {input_shape} is not (channels, height, width), (channels, length) or (features,)"
        )
    lowering = _Lowering(trace_model(model, input_shape))
    for node in lowering.traced.graph.nodes:
        lowering.lower(node)
    return fold_batch_norm(lowering.plan())


class _Lowering:
    """State of one lowering: the operators so far and the name of each node's value."""

    def __init__(self, traced: TracedModel) -> None:
        self.traced = traced
        self.operators: list[Operator] = []
        self.values: dict[fx.Node, str] = {}
        self.shapes: dict[str, Shape] = {}
        self.output = ""

    def plan(self) -> Plan:
        return Plan(tuple(self.operators), self.operators[0].shape, self.output)

    def lower(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            name = "input" if "input" not in self.traced.labels.values() else self.traced.labels[node]
            self.values[node] = self._append(op.Input(name, (), self.traced.image_shape(node)))
        elif node.op == "output":
            result = _node(node.args[0])
            self.output = _Call(self, result).value(result)
        elif self.traced.shapes[node] is None or node.op == "get_attr":
            return  # a size, or a parameter that a functional call reads
        elif node.op == "call_module":
            call = _Call(self, node)
            module = self.traced.module(node)
            kind = type_before_parametrizations(module)
            if kind not in _MODULES:
                raise call.unsupported(_hint(call.kind))
            self.values[node] = _MODULES[kind](call, module)
        else:
            call = _Call(self, node)
            target: Any = node.target
            handler = _METHODS.get(target) if isinstance(target, str) else _FUNCTIONS.get(target)
            if handler is None:
                raise call.unsupported(_hint(call.kind))
            self.values[node] = handler(call)

    def _append(self, operator: Operator) -> str:
        self.operators.append(operator)
        self.shapes[operator.name] = operator.shape
        return operator.name


class _Call:
    """One call of the graph while it is lowered."""

    def __init__(self, lowering: _Lowering, node: fx.Node) -> None:
        self.lowering = lowering
        self.node = node
        self.name = lowering.traced.labels[node]

    @property
    def kind(self) -> str:
        """Name of the layer class, function or method that is called."""
        if self.node.op == "call_module":
            return type(self.lowering.traced.module(self.node)).__name__
        target = self.node.target
        return target if isinstance(target, str) else getattr(target, "__name__", str(target))

    def unsupported(self, hint: str) -> UnsupportedLayer:
        return UnsupportedLayer(f"{self.name} ({self.kind})", hint)

    def require(self, condition: object, hint: str) -> None:
        if not condition:
            raise self.unsupported(hint)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    @property
    def source(self) -> fx.Node:
        """The node of the first argument."""
        first = self.node.args[0] if self.node.args else next(iter(self.node.kwargs.values()))
        self.require(isinstance(first, fx.Node), "its first argument is not a tensor of the network")
        return _node(first)

    def value(self, node: Any) -> str:
        """Name of the operator that makes the value of an argument."""
        if not isinstance(node, fx.Node) or node not in self.lowering.values:
            raise self.unsupported("it reads a tensor that is not computed from the input")
        name = self.lowering.values[node]
        shape, viewed = self.lowering.shapes[name], self.lowering.traced.image_shape(node)
        self.require(
            shape == viewed,
            f"reshaping {shape} to {viewed} is not supported, only flattening to a vector is",
        )
        return name

    @property
    def input(self) -> str:
        return self.value(self.source)

    @property
    def input_shape(self) -> Shape:
        return self.lowering.traced.image_shape(self.source)

    @property
    def shape(self) -> Shape:
        return self.lowering.traced.image_shape(self.node)

    def append(self, operator: Operator) -> str:
        return self.lowering._append(operator)

    def sizes(self, value: Any, count: int) -> Shape:
        """A torch size argument (a number or one for each dimension) as a tuple."""
        if isinstance(value, int):
            return (value,) * count
        self.require(
            isinstance(value, tuple | list)
            and len(value) in (1, count)
            and all(isinstance(v, int) for v in value),
            f"{value!r} is not a size",
        )
        return tuple(value) if len(value) == count else tuple(value) * count

    def parameter(self, node: Any) -> Tensor | None:
        """The tensor behind a parameter that is passed to a functional call."""
        if node is None:
            return None
        self.require(isinstance(node, fx.Node) and node.op == "get_attr", "its weight is computed in forward")
        value: Any = self.lowering.traced.root
        for part in str(node.target).split("."):
            value = getattr(value, part)
        assert isinstance(value, Tensor)
        return value


def _hint(kind: str) -> str:
    return _HINTS.get(kind.strip("_").lower(), _DEFAULT_HINT)


def _node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def _array(tensor: Tensor, name: str) -> Floats:
    """A weight as float64.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    array = tensor.detach().cpu().to(torch.float64).numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"tensor {name} holds NaN or infinity")
    return array


# --- linear layers ---------------------------------------------------------------------------------------


def _convolution(
    call: _Call, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> str:
    spatial = weight.dim() - 2
    array = _array(weight, f"{call.name}.weight")
    stride, dilation = call.sizes(stride, spatial), call.sizes(dilation, spatial)
    if padding == "same":
        array, padding, dilation = _same_padding(array, dilation)
    elif padding == "valid":
        padding = (0,) * spatial
    bias_array = None if bias is None else _array(bias, f"{call.name}.bias")
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


def _conv_module(call: _Call, module: Any) -> str:
    call.require(
        module.padding_mode == "zeros", f"padding_mode {module.padding_mode!r}; only 'zeros' is supported"
    )
    return _convolution(
        call, module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups
    )


def _conv_function(call: _Call) -> str:
    weight = call.parameter(call.argument(1, "weight"))
    assert weight is not None
    return _convolution(
        call,
        weight,
        call.parameter(call.argument(2, "bias")),
        call.argument(3, "stride", 1),
        call.argument(4, "padding", 0),
        call.argument(5, "dilation", 1),
        call.argument(6, "groups", 1),
    )


def _linear(call: _Call, weight: Tensor, bias: Tensor | None) -> str:
    call.require(
        len(call.input_shape) == 1, f"its input {call.input_shape} is not a vector; flatten before it"
    )
    bias_array = None if bias is None else _array(bias, f"{call.name}.bias")
    return call.append(
        op.Linear(call.name, (call.input,), call.shape, _array(weight, f"{call.name}.weight"), bias_array)
    )


def _linear_function(call: _Call) -> str:
    weight = call.parameter(call.argument(1, "weight"))
    assert weight is not None
    return _linear(call, weight, call.parameter(call.argument(2, "bias")))


def _batch_norm(
    call: _Call,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> str:
    if mean is None or variance is None:
        raise call.unsupported("it normalizes by the batch even in eval mode; use track_running_stats=True")
    scale = 1.0 / np.sqrt(_array(variance, f"{call.name}.running_var") + eps)
    if weight is not None:
        scale = scale * _array(weight, f"{call.name}.weight")
    shift = -_array(mean, f"{call.name}.running_mean") * scale
    if bias is not None:
        shift = shift + _array(bias, f"{call.name}.bias")
    return call.append(op.Affine(call.name, (call.input,), call.shape, scale, shift))


def _batch_norm_module(call: _Call, m: Any) -> str:
    return _batch_norm(call, m.running_mean, m.running_var, m.weight, m.bias, m.eps)


def _batch_norm_function(call: _Call) -> str:
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (call.parameter(call.argument(i + 1, n)) for i, n in enumerate(names))
    call.require(not call.argument(5, "training", False), "it normalizes by the batch; use eval mode")
    return _batch_norm(call, mean, variance, weight, bias, call.argument(7, "eps", 1e-5))


def _affine(call: _Call, source: fx.Node, scale: Any, shift: Any, name: str | None = None) -> str:
    """scale x + shift, each one number or one for each channel."""
    shape = call.lowering.traced.image_shape(source)
    scale, shift = (np.broadcast_to(np.asarray(value, np.float64), shape[:1]) for value in (scale, shift))
    return call.append(op.Affine(name or call.name, (call.value(source),), shape, scale, shift))


def _constant(call: _Call, value: Any, other: Any) -> float | Floats | None:
    """A number, or a parameter or buffer that has one number for each channel of ``other``; else None."""
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    tensor = call.parameter(value)
    assert tensor is not None
    image = call.lowering.traced.image_shape(other)
    array = _array(tensor, str(value.target))
    padded = (1,) * (len(image) + 1 - array.ndim) + array.shape
    call.require(
        len(padded) == len(image) + 1 and padded[1] in (1, image[0]) and array.size == padded[1],
        f"constant {value.target} of shape {array.shape} is not one number for each channel",
    )
    return array.reshape(-1)


# --- activations -----------------------------------------------------------------------------------------


def _relu(call: _Call, module: Any = None) -> str:
    return call.append(op.ReLU(call.name, (call.input,), call.shape))


def _polynomial(call: _Call, module: Any) -> str:
    coefficients = _array(module.coefficients, f"{call.name}.coefficients")
    return call.append(op.Polynomial(call.name, (call.input,), call.shape, coefficients))


def _masked_relu(call: _Call, module: Any) -> str:
    coefficients = _array(module.coefficients, f"{call.name}.coefficients")
    mask = module.mask.detach().cpu().numpy()
    if tuple(mask.shape) != call.input_shape:
        raise polynomial.SiteShapeMismatch(call.name, tuple(mask.shape), call.input_shape)
    return call.append(op.MaskedReLU(call.name, (call.input,), call.shape, mask, coefficients))


# --- pooling ---------------------------------------------------------------------------------------------


def _max_pool(
    call: _Call, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, return_indices: bool
) -> str:
    call.require(not return_indices, "return_indices is not supported")
    spatial = len(call.input_shape) - 1
    kernel = call.sizes(kernel, spatial)
    stride = kernel if stride in (None, [], ()) else call.sizes(stride, spatial)
    padding, dilation = call.sizes(padding, spatial), call.sizes(dilation, spatial)
    _check_ceil(call, ceil_mode, op.window_output(call.input_shape[1:], kernel, stride, padding, dilation))
    return call.append(op.MaxPool(call.name, (call.input,), call.shape, kernel, stride, padding, dilation))


def _average_pool(
    call: _Call,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: Any,
) -> str:
    call.require(divisor is None, "divisor_override is not supported")
    spatial = len(call.input_shape) - 1
    kernel = call.sizes(kernel, spatial)
    stride = kernel if stride in (None, [], ()) else call.sizes(stride, spatial)
    padding = call.sizes(padding, spatial)
    _check_ceil(call, ceil_mode, op.window_output(call.input_shape[1:], kernel, stride, padding))
    return call.append(
        op.AveragePool(call.name, (call.input,), call.shape, kernel, stride, padding, bool(count_include_pad))
    )


def _check_ceil(call: _Call, ceil_mode: bool, size: Shape) -> None:
    """ceil_mode is fine where it adds no window."""
    call.require(
        not ceil_mode or size == call.shape[1:],
        "ceil_mode adds an incomplete window here; use ceil_mode=False or another input size",
    )


def _max_pool_module(call: _Call, m: Any) -> str:
    return _max_pool(call, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def _max_pool_function(call: _Call) -> str:
    return _max_pool(
        call,
        call.argument(1, "kernel_size"),
        call.argument(2, "stride"),
        call.argument(3, "padding", 0),
        call.argument(4, "dilation", 1),
        call.argument(5, "ceil_mode", False),
        call.argument(6, "return_indices", False),
    )


def _average_pool_module(call: _Call, m: Any) -> str:
    divisor = getattr(m, "divisor_override", None)
    return _average_pool(call, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, divisor)


def _average_pool_function(call: _Call) -> str:
    return _average_pool(
        call,
        call.argument(1, "kernel_size"),
        call.argument(2, "stride"),
        call.argument(3, "padding", 0),
        call.argument(4, "ceil_mode", False),
        call.argument(5, "count_include_pad", True),
        call.argument(6, "divisor_override"),
    )


def _adaptive_kernel(call: _Call) -> Shape:
    """The window that an adaptive pooling comes to, where it is the same everywhere."""
    pairs = list(zip(call.input_shape[1:], call.shape[1:], strict=True))
    call.require(
        all(size % out == 0 for size, out in pairs),
        f"output size {call.shape[1:]} does not divide the input size {call.input_shape[1:]}",
    )
    return tuple(size // out for size, out in pairs)


def _adaptive_average(call: _Call, module: Any = None) -> str:
    kernel = _adaptive_kernel(call)
    return _average_pool(call, kernel, kernel, 0, False, True, None)


def _adaptive_max(call: _Call, module: Any = None) -> str:
    kernel = _adaptive_kernel(call)
    indices = module.return_indices if module is not None else call.argument(2, "return_indices", False)
    return _max_pool(call, kernel, kernel, 0, 1, False, indices)


def _mean(call: _Call) -> str:
    """``x.mean(spatial dimensions)``: global average pooling."""
    rank = len(call.input_shape) + 1
    dims = call.argument(1, "dim", tuple(range(rank)))
    dims = sorted(d % rank for d in ((dims,) if isinstance(dims, int) else dims))
    call.require(
        rank > 2 and dims == list(range(2, rank)) and call.argument(2, "keepdim", False) in (False, True),
        "only the mean over all spatial dimensions is supported",
    )
    kernel = call.input_shape[1:]
    pooled = (call.input_shape[0], *(1,) * len(kernel))
    flatten = call.shape != pooled
    pool = f"{call.name}.pool" if flatten else call.name
    call.append(op.AveragePool(pool, (call.input,), pooled, kernel, kernel, (0,) * len(kernel), True))
    return call.append(op.Flatten(call.name, (pool,), call.shape)) if flatten else call.name


# --- shapes and sums -------------------------------------------------------------------------------------


def _same_value(call: _Call, module: Any = None) -> str:
    return call.input


def _reshape(call: _Call, module: Any = None) -> str:
    """Flatten, view, reshape, squeeze: a vector for each image, or no change.

    Another shape is left to the reader of the value: a further reshape may make a vector of it.
    """
    name = call.lowering.values[call.source]
    if len(call.shape) != 1 or call.shape == call.lowering.shapes[name]:
        return name
    return call.append(op.Flatten(call.name, (name,), call.shape))


def _add(call: _Call) -> str:
    left, right = call.argument(0, "input"), call.argument(1, "other")
    alpha: Any = call.node.kwargs.get("alpha", 1)
    call.require(isinstance(alpha, int | float), "its alpha is not a number")
    return _sum(call, left, right, float(alpha))


def _subtract(call: _Call) -> str:
    call.require(call.node.kwargs.get("alpha", 1) == 1, "alpha is not supported")
    return _sum(call, call.argument(0, "input"), call.argument(1, "other"), -1.0)


def _sum(call: _Call, left: Any, right: Any, factor: float) -> str:
    """left + factor * right, where one of them may be constant."""
    constant = _constant(call, right, left)
    if constant is not None:
        return _affine(call, _node(left), 1.0, factor * constant)
    constant = _constant(call, left, right)
    if constant is not None:
        return _affine(call, _node(right), factor, constant)
    shapes = [call.lowering.traced.image_shape(side) for side in (left, right)]
    call.require(shapes[0] == shapes[1], f"operands {shapes[0]} and {shapes[1]} differ in shape")
    second = call.value(right) if factor == 1.0 else _affine(call, right, factor, 0.0, f"{call.name}.factor")
    return call.append(op.Add(call.name, (call.value(left), second), call.shape))


def _multiply(call: _Call) -> str:
    left, right = call.argument(0, "input"), call.argument(1, "other")
    for variable, other in ((left, right), (right, left)):
        constant = _constant(call, other, variable)
        if constant is not None:
            return _affine(call, _node(variable), constant, 0.0)
    raise call.unsupported("products of two tensors (gates, squeeze-and-excitation) are not supported")


def _divide(call: _Call) -> str:
    left, right = call.argument(0, "input"), call.argument(1, "other")
    constant = None if _is_constant(left) else _constant(call, right, left)
    if constant is None or not np.all(constant) or call.node.kwargs.get("rounding_mode") is not None:
        raise call.unsupported("only division by a constant that is not zero is supported")
    return _affine(call, _node(left), 1.0 / constant, 0.0)


def _is_constant(value: Any) -> bool:
    return not isinstance(value, fx.Node) or value.op == "get_attr"


def _concatenate(call: _Call) -> str:
    tensors = call.argument(0, "tensors")
    dim = call.argument(1, "dim", call.node.kwargs.get("axis", 0))
    call.require(isinstance(tensors, tuple | list) and isinstance(dim, int), "its arguments are not constant")
    rank = len(call.shape) + 1
    call.require(dim % rank > 0, "it joins batches")
    inputs = tuple(call.value(tensor) for tensor in tensors)
    return (
        inputs[0]
        if len(inputs) == 1
        else call.append(op.Concatenate(call.name, inputs, call.shape, dim % rank - 1))
    )


def _arg_max(call: _Call) -> str:
    dim = call.argument(1, "dim")
    call.require(
        len(call.input_shape) == 1 and dim in (1, -1) and call.shape == (), "only over the features, dim=1"
    )
    return call.append(op.ArgMax(call.name, (call.input,), ()))


_MODULES: dict[type[nn.Module], Callable[[_Call, Any], str]] = {
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
_FUNCTIONS: dict[Any, Callable[[_Call], str]] = {
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
    functional.dropout: _same_value,
    functional.dropout1d: _same_value,
    functional.dropout2d: _same_value,
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
    torch.argmax: _arg_max,
}
_METHODS: dict[str, Callable[[_Call], str]] = {
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
    "argmax": _arg_max,
}
