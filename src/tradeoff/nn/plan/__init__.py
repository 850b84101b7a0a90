"""Plan: a convolutional network as a list of typed operators, which every private engine reads.

:func:`trace` reads a torch model; everything else here is NumPy only, so that a party process can load and
execute a plan without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tradeoff.nn.plan.errors import PlanError, UnsupportedLayer, UntraceableModel
from tradeoff.nn.plan.files import dumps, load, loads, save
from tradeoff.nn.plan.operators import (
    Add,
    Affine,
    ArgMax,
    AveragePool,
    Concatenate,
    Convolution,
    Flatten,
    Input,
    Linear,
    MaskedReLU,
    MaxPool,
    Operator,
    Plan,
    Polynomial,
    ReLU,
    SumPool,
)
from tradeoff.nn.plan.passes import fold_average_pool, fold_batch_norm, swap_relu_maxpool
from tradeoff.nn.plan.reference import calibrate

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Add",
    "Affine",
    "ArgMax",
    "AveragePool",
    "Concatenate",
    "Convolution",
    "Flatten",
    "Input",
    "Linear",
    "MaskedReLU",
    "MaxPool",
    "Operator",
    "Plan",
    "PlanError",
    "Polynomial",
    "ReLU",
    "SumPool",
    "UnsupportedLayer",
    "UntraceableModel",
    "calibrate",
    "dumps",
    "fold_average_pool",
    "fold_batch_norm",
    "load",
    "loads",
    "save",
    "swap_relu_maxpool",
    "trace",
]


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Plan:
    """Read a torch model into a :class:`Plan` of its evaluation-mode function.

    Batch normalizations are folded into the linear layer before them, dropout and identities vanish, and
    operators carry the dotted path of the module that they came from (``layer1.0.conv1``; the second call of
    a shared module is ``layer1.0.relu_2``).

    Args:
        model: any traceable module; it is neither changed nor executed on data.
        input_shape: shape of one input without the batch, for example ``(3, 32, 32)``.

    Raises:
        UnsupportedLayer: an operation that no engine can execute.
        UntraceableModel: the forward pass depends on values, or is otherwise out of reach of torch.fx.
        ValueError: a weight is NaN or infinite.
    """
    from tradeoff.nn.plan.lowering import lower

    return lower(model, input_shape)
