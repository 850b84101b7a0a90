"""Activation and pooling sites: where a network compares, and how to put something else there."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from tradeoff.nn.plan.errors import UntraceableModel
from tradeoff.nn.surgery.tracer import TracedModel, trace_model

_MODULES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu"}
_FUNCTIONS: dict[Any, str] = {
    functional.relu: "relu",
    functional.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    functional.relu6: "relu6",
    functional.silu: "silu",
}
_METHODS = {"relu": "relu", "relu_": "relu"}
_MAX_POOLS = (functional.max_pool2d, torch.max_pool2d)
_DEFAULTS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU}
_DROPOUTS: dict[Any, Callable[[float], nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.alpha_dropout: nn.AlphaDropout,
}


@dataclass(frozen=True)
class Site:
    """One call of an activation.

    Args:
        name: unique and stable: the module's path for the first call of a module (``layer1.0.relu``), with
            ``_2``, ``_3`` for further calls of it; for a function the path of the module that calls it, then
            the function (``layer1.0.relu``). :func:`replace_sites` puts the new module at this path.
        shape: of the output for one image, (channels, height, width) or (features,).
        path: of the module that is called, or of the module whose forward calls the function.
        kind: ``relu``, ``relu6`` or ``silu``.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    kind: str


@dataclass(frozen=True)
class PoolingSite:
    """One call of a two-dimensional max pooling.

    Args:
        name: as :attr:`Site.name`.
        shape: of the output for one image, (channels, height, width).
        input_shape: of the input for one image.
        kernel, stride, padding: of the window, (height, width).
    """

    name: str
    shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def activation_sites(model: nn.Module, input_shape: tuple[int, ...]) -> list[Site]:
    """All calls of ReLU, ReLU6 and SiLU, as modules, functions or methods, in execution order.

    Args:
        model: any traceable module; it is not changed.
        input_shape: shape of one input, without the batch.

    Raises:
        UntraceableModel: naming the call that torch.fx cannot follow.
    """
    traced = trace_model(model, input_shape)
    return [_site(traced, node, kind) for node, kind in _activations(traced)]


def pooling_sites(model: nn.Module, input_shape: tuple[int, ...]) -> list[PoolingSite]:
    """All calls of two-dimensional max pooling that an average pooling of the same window can replace.

    That leaves out those with dilation or ``ceil_mode``, and those that return indices.

    Args:
        model: any traceable module; it is not changed.
        input_shape: shape of one input, without the batch.

    Raises:
        UntraceableModel: naming the call that torch.fx cannot follow.
    """
    traced = trace_model(model, input_shape)
    return [_pooling_site(traced, node, pool) for node, pool in _max_pools(traced)]


def with_relus(model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """Return the model with ReLU in place of ReLU6 and SiLU; itself where there are none."""
    others = [site.name for site in activation_sites(model, input_shape) if site.kind != "relu"]
    return replace_sites(model, {name: nn.ReLU() for name in others}, input_shape) if others else model


def replace_sites(
    model: nn.Module, modules: Mapping[str, nn.Module], input_shape: tuple[int, ...]
) -> fx.GraphModule:
    """A copy of the network with other modules at some of its activation and pooling sites.

    Every activation site gets a module of its own at the path that its name tells, also where the model
    calls functions or one module several times; so names in the state dict follow from the names of sites,
    and those of all other weights stay. Functional dropout becomes modules, so that ``train()`` and
    ``eval()`` work; a model that otherwise computes other things in training keeps its evaluation-mode path.
    The result returns the logits where the model returns a structure.

    Args:
        model: it is not changed; the copy shares nothing with it.
        modules: the new module (not copied) for each site name; the others keep what they have.
        input_shape: shape of one input, without the batch.

    Raises:
        KeyError: there is no site of that name.
        UntraceableModel: naming the call that torch.fx cannot follow.
    """
    traced = trace_model(copy.deepcopy(model), input_shape)
    sites = list(_activations(traced))
    pools = [node for node, _ in _max_pools(traced)]
    _check_names(modules, [traced.labels[node] for node in (*(node for node, _ in sites), *pools)])
    for node in pools:
        if traced.labels[node] in modules:
            _call_instead(traced, node, modules[traced.labels[node]])
    for node, kind in sites:
        name = traced.labels[node]
        _call_instead(traced, node, modules[name] if name in modules else _DEFAULTS[kind]())
    for node in list(traced.graph.nodes):
        if (
            node.op == "call_function"
            and node.target in _DROPOUTS
            and not _argument(node, 2, "training", True)
        ):
            _call_instead(traced, node, _DROPOUTS[node.target](_argument(node, 1, "p", 0.5)))
        elif node.op == "call_function" and "training" in node.kwargs:
            raise UntraceableModel(
                traced.labels[node], "a functional call with a training flag; use the module"
            )
    return fx.GraphModule(traced.root, traced.graph, type(model).__name__)


def split_shared_activations(model: nn.Module, input_shape: tuple[int, ...]) -> fx.GraphModule:
    """A copy of the network in which each activation call has its own module; see :func:`replace_sites`."""
    return replace_sites(model, {}, input_shape)


def _activations(traced: TracedModel) -> list[tuple[fx.Node, str]]:
    """Nodes that are activation calls, with their kind."""
    kinds = {
        "call_module": lambda node: _MODULES.get(type(traced.module(node))),
        "call_function": lambda node: _FUNCTIONS.get(node.target),
        "call_method": lambda node: _METHODS.get(node.target),
    }
    found = [(node, kinds[node.op](node)) for node in traced.graph.nodes if node.op in kinds]
    return [(node, kind) for node, kind in found if kind is not None]


def _max_pools(traced: TracedModel) -> list[tuple[fx.Node, nn.MaxPool2d]]:
    """Nodes that are max poolings of the kind of :func:`pooling_sites`, with their settings as a module."""
    found = []
    for node in traced.graph.nodes:
        pool: nn.Module | None = None
        if node.op == "call_module":
            pool = traced.module(node)
        elif node.op == "call_function" and node.target in _MAX_POOLS:
            pool = _pool_of(node)
        if type(pool) is nn.MaxPool2d and not (
            pool.ceil_mode or pool.return_indices or set(_pair(pool.dilation)) != {1}
        ):
            found.append((node, pool))
    return found


def _pool_of(node: fx.Node) -> nn.MaxPool2d:
    """The module that equals a functional call."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    defaults = (None, None, 0, 1, False, False)
    values = {
        name: _argument(node, position, name, default)
        for position, (name, default) in enumerate(zip(names, defaults, strict=True), start=1)
    }
    return nn.MaxPool2d(**{**values, "stride": values["stride"] or None})


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def _pooling_site(traced: TracedModel, node: fx.Node, pool: nn.MaxPool2d) -> PoolingSite:
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    window = [_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding)]
    return PoolingSite(traced.labels[node], traced.image_shape(node), traced.image_shape(source), *window)


def _site(traced: TracedModel, node: fx.Node, kind: str) -> Site:
    name = traced.labels[node]
    path = str(node.target) if node.op == "call_module" else name.rpartition(".")[0]
    return Site(name, traced.image_shape(node), path, kind)


def _check_names(modules: Mapping[str, nn.Module], names: list[str]) -> None:
    for name in modules:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; sites are {', '.join(names) or 'none'}"
            raise KeyError(f"the model has no site {name!r}{hint}")


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _call_instead(traced: TracedModel, node: fx.Node, module: nn.Module) -> None:
    """Let a node call ``module``, placed at the node's label, with its first argument only."""
    name = traced.labels[node]
    traced.root.set_submodule(name, module.train(traced.root.training))
    source = node.args[0] if node.args else node.kwargs["input"]
    node.op, node.target, node.args, node.kwargs = "call_module", name, (source,), {}
