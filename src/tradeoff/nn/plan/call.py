"""One call of a traced graph, as the lowering of each layer sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from tradeoff.nn.plan.errors import UnsupportedLayer
from tradeoff.nn.plan.operators import Floats, Operator, Shape
from tradeoff.nn.surgery.tracer import TracedModel


class Lowering:
    """What is known while a graph is lowered.

    Args:
        traced: the graph.

    Attributes:
        operators: those made so far.
        shapes: their per-image shapes.
        values: the operator behind each node's value.
        constants: the tensor behind each node that does not depend on the input.
    """

    def __init__(self, traced: TracedModel) -> None:
        self.traced = traced
        self.operators: list[Operator] = []
        self.shapes: dict[str, Shape] = {}
        self.values: dict[fx.Node, str] = {}
        self.constants: dict[fx.Node, Tensor] = {}

    def append(self, operator: Operator) -> str:
        """Add an operator; returns its name."""
        self.operators.append(operator)
        self.shapes[operator.name] = operator.shape
        return operator.name


class Call:
    """One call of the graph while it is lowered."""

    def __init__(self, lowering: Lowering, node: fx.Node) -> None:
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
        return as_node(first)

    def viewed(self, node: Any) -> str:
        """Name of the operator that has the elements of an argument, maybe in another shape."""
        if not isinstance(node, fx.Node) or node not in self.lowering.values:
            raise self.unsupported("it reads a tensor that is not computed from the input")
        return self.lowering.values[node]

    def value(self, node: Any) -> str:
        """Name of the operator that has the value of an argument."""
        name = self.viewed(node)
        shape, viewed = self.lowering.shapes[name], self.lowering.traced.image_shape(node)
        self.require(
            shape == viewed, f"reshaping {shape} to {viewed} is not supported, only flattening to a vector is"
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
        return self.lowering.append(operator)

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

    def constant(self, node: Any) -> Tensor | None:
        """The tensor behind a parameter of a functional call, None for None."""
        if node is None:
            return None
        if node not in self.lowering.constants:
            raise self.unsupported("its weight depends on the input")
        return self.lowering.constants[node]


def as_node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def weight_array(tensor: Tensor, name: str) -> Floats:
    """A weight as float64.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    array = tensor.detach().cpu().to(torch.float64).numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"tensor {name} holds NaN or infinity")
    return array
