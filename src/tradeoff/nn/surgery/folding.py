"""Batch normalization merged into the linear layer before it, on torch modules."""

from __future__ import annotations

import copy
from collections import Counter

from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from tradeoff.nn.surgery.tracer import trace_model


def fold_batch_norm(model: nn.Module, input_shape: tuple[int, ...]) -> fx.GraphModule:
    """A copy in evaluation mode whose batch normalizations are merged into convolutions and linear layers.

    Those that follow something else, a layer that others read too, or a layer that is called twice, stay.
    Names of the remaining modules do not change.

    Args:
        model: it is not changed.
        input_shape: shape of one input, without the batch.

    Raises:
        UntraceableModel: naming the call that torch.fx cannot follow.
    """
    traced = trace_model(copy.deepcopy(model).eval(), input_shape)
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        norm = traced.module(node)
        if len(before.users) > 1 or calls[before.target] > 1 or getattr(norm, "running_mean", None) is None:
            continue
        fused = _fused(traced.module(before), norm)
        if fused is not None:
            traced.root.set_submodule(str(before.target), fused)
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    return fx.GraphModule(traced.root, traced.graph, type(model).__name__)


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """One layer that equals ``norm(layer(x))``, or None if they do not merge."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        return fuse_conv_bn_eval(layer, norm)
    if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
        return fuse_linear_bn_eval(layer, norm)
    return None
