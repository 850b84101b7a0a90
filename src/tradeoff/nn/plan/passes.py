"""Rewrites of a plan that keep its result and lower its cost in encrypted execution."""

from __future__ import annotations

import math
from dataclasses import replace

from tradeoff.nn.plan.errors import PlanError
from tradeoff.nn.plan.operators import (
    Affine,
    AveragePool,
    Convolution,
    Flatten,
    Floats,
    Linear,
    MaxPool,
    Operator,
    Plan,
    ReLU,
    SumPool,
)


def fold_batch_norm(plan: Plan) -> Plan:
    """Merge every :class:`Affine` into the convolution, linear layer or affine that alone feeds it.

    The merged operator keeps the name of the first. :func:`~tradeoff.nn.plan.trace` has done this already.
    """
    _require_weights(plan)
    kept: dict[str, Operator] = {}
    renamed: dict[str, str] = {}
    value_of: dict[str, str] = {}  # kept operator -> the original operator whose value it now has
    for original in plan:
        operator = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        name = operator.name
        if isinstance(operator, Affine):
            producer = kept[operator.inputs[0]]
            if isinstance(producer, Convolution | Linear | Affine) and _only_reader(
                plan, value_of[producer.name]
            ):
                name = renamed[original.name] = producer.name
                operator = _after(producer, operator.scale, operator.shift)
        kept[name] = operator
        value_of[name] = original.name
    return replace(plan, operators=tuple(kept.values()), output=renamed.get(plan.output, plan.output))


def swap_relu_maxpool(plan: Plan) -> Plan:
    """Turn ReLU then MaxPool into MaxPool then ReLU, which commute: fewer positions are compared with zero.

    Only where the pooling alone reads the ReLU. Both keep their names.
    """
    kept: dict[str, Operator] = {}
    renamed: dict[str, str] = {}
    value_of: dict[str, str] = {}
    for original in plan:
        operator = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        relu = kept[operator.inputs[0]] if isinstance(operator, MaxPool) else None
        if isinstance(relu, ReLU) and _only_reader(plan, value_of[relu.name]):
            del kept[relu.name]
            kept[operator.name] = replace(operator, inputs=relu.inputs)
            operator = replace(relu, inputs=(operator.name,), shape=operator.shape)
            renamed[original.name] = relu.name
        kept[operator.name] = operator
        value_of[operator.name] = original.name
    return replace(plan, operators=tuple(kept.values()), output=renamed.get(plan.output, plan.output))


def fold_average_pool(plan: Plan) -> Plan:
    """Turn average poolings into sums, their divisor k^2 into the weights of the next linear operators.

    This is done where every path from the pooling comes to a linear operator through ReLU, pooling and
    flattening only (all of them commute with a positive factor). In fixed point the divided weights keep
    log2(k^2) fewer significant bits: encode them with that many more fractional bits, or leave large windows
    alone.
    """
    _require_weights(plan)
    for pool in plan:
        if not isinstance(pool, AveragePool) or (any(pool.padding) and not pool.count_include_pad):
            continue
        readers = _linear_readers(plan, pool.name)
        if readers is not None:
            plan = _with_sum(plan, pool, readers)
    return plan


def _with_sum(plan: Plan, pool: AveragePool, readers: set[str]) -> Plan:
    factor = 1.0 / math.prod(pool.kernel)

    def change(operator: Operator) -> Operator:
        if operator.name == pool.name:
            return SumPool(pool.name, pool.inputs, pool.shape, pool.kernel, pool.stride, pool.padding)
        if operator.name not in readers:
            return operator
        if isinstance(operator, Affine):
            return replace(operator, scale=operator.scale * factor)
        assert isinstance(operator, Convolution | Linear)
        return replace(operator, weight=operator.weight * factor)

    return plan.rebuild(change)


def _linear_readers(plan: Plan, name: str) -> set[str] | None:
    """Linear operators that take up a positive factor on a value, or None if one of its readers cannot."""
    if name == plan.output:
        return None
    found: set[str] = set()
    for user in plan.consumers[name]:
        if isinstance(user, Convolution | Linear | Affine):
            found.add(user.name)
        elif isinstance(user, ReLU | MaxPool | AveragePool | SumPool | Flatten):
            further = _linear_readers(plan, user.name)
            if further is None:
                return None
            found |= further
        else:
            return None
    return found


def _after(producer: Operator, scale: Floats, shift: Floats) -> Operator:
    """The linear operator that equals ``producer`` followed by ``scale`` and ``shift`` for each channel."""
    if isinstance(producer, Affine):
        return replace(producer, scale=producer.scale * scale, shift=producer.shift * scale + shift)
    assert isinstance(producer, Convolution | Linear)
    bias = shift if producer.bias is None else producer.bias * scale + shift
    weight = producer.weight * scale.reshape(-1, *(1,) * (producer.weight.ndim - 1))
    return replace(producer, weight=weight, bias=bias)


def _only_reader(plan: Plan, name: str) -> bool:
    """Whether a value has exactly one reader and is not the result."""
    return len(plan.consumers[name]) == 1 and name != plan.output


def _require_weights(plan: Plan) -> None:
    if not plan.has_weights:
        raise PlanError("this plan is the public view without weights; rewrite it before removing them")
