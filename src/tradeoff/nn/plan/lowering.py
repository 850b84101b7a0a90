"""From a torch.fx graph to the operators of a plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from tradeoff.nn.plan import operators as op
from tradeoff.nn.plan.call import Call, Lowering, as_node
from tradeoff.nn.plan.layers import FUNCTIONS, METHODS, MODULES
from tradeoff.nn.plan.operators import Plan, Shape
from tradeoff.nn.plan.passes import fold_batch_norm
from tradeoff.nn.surgery.tracer import trace_model

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
    lowering, output = Lowering(trace_model(model, input_shape)), ""
    for node in lowering.traced.graph.nodes:
        if node.op == "output":
            result = as_node(node.args[0])
            output = Call(lowering, result).value(result)
        elif node.op == "placeholder":
            lowering.values[node] = _input(lowering, node)
        elif _is_constant(lowering, node):
            lowering.constants[node] = _constant(lowering, node)
        elif lowering.traced.shapes[node] is not None:  # else a size
            lowering.values[node] = _call(Call(lowering, node))
    return fold_batch_norm(Plan(tuple(lowering.operators), input_shape, output))


def _input(lowering: Lowering, node: fx.Node) -> str:
    labels = lowering.traced.labels
    name = labels[node] if "input" in labels.values() else "input"
    return lowering.append(op.Input(name, (), lowering.traced.image_shape(node)))


def _call(call: Call) -> str:
    """Lower one call of a layer, function or method."""
    if call.node.op == "call_module":
        module = call.lowering.traced.module(call.node)
        layer = MODULES.get(type_before_parametrizations(module))
        if layer is None:
            raise call.unsupported(_hint(call.kind))
        return layer(call, module)
    target: Any = call.node.target
    function = METHODS.get(target) if call.node.op == "call_method" else FUNCTIONS.get(target)
    if function is None:
        raise call.unsupported(_hint(call.kind))
    return function(call)


def _is_constant(lowering: Lowering, node: fx.Node) -> bool:
    """Whether a node is a parameter or buffer, or is computed from such only (a weight standardized, say)."""
    inputs = node.all_input_nodes
    computed = (
        node.op in ("call_function", "call_method") and inputs and lowering.traced.shapes[node] is not None
    )
    return node.op == "get_attr" or bool(computed and all(source in lowering.constants for source in inputs))


def _constant(lowering: Lowering, node: fx.Node) -> Tensor:
    """The tensor of a constant node."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: lowering.constants[source])
    target: Any = node.target
    value: Any = lowering.traced.root
    with torch.no_grad():
        if node.op == "call_function":
            value = target(*args, **kwargs)
        elif node.op == "call_method":
            value = getattr(args[0], target)(*args[1:], **kwargs)
        else:
            for part in target.split("."):
                value = getattr(value, part)
            value = value.detach().clone()  # so that nothing can write to the model
    assert isinstance(value, Tensor)
    return value


def _hint(kind: str) -> str:
    return _HINTS.get(kind.strip("_").lower(), _DEFAULT_HINT)
