"""torch.fx tracing that knows shapes, so that a forward pass may look at them.

While the graph is recorded, each call is also executed on meta tensors (shapes without data). Hence
``x.shape[1]`` is a number and ``if x.shape[1] != 3`` can be followed, as the ResNets of Hugging Face need;
the batch size alone stays symbolic. In-place calls are detected by the version counters of those tensors and
their effect on later readers is written into the graph.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from tradeoff.nn.plan.errors import UntraceableModel
from tradeoff.nn.polynomial import MaskedReLU, Polynomial

BATCH = 13  # batch size of the meta tensors: unlikely as a channel count

_ELEMENTWISE_LEAVES = (MaskedReLU, Polynomial)


@dataclass(frozen=True)
class TracedModel:
    """A model as a graph of calls.

    Args:
        root: the model that the graph's module paths refer to.
        graph: calls in execution order, one input, one output; in-place effects are explicit.
        labels: a unique, stable name for each call: the module path for the first call of a module
            (``layer1.0.relu``), the path of the enclosing module and the function for a function
            (``layer1.0.add``), with ``_2``, ``_3`` for further calls.
        shapes: shape of each call's result with the batch as the first entry (None for results that are
            not one tensor).
    """

    root: nn.Module
    graph: fx.Graph
    labels: dict[fx.Node, str]
    shapes: dict[fx.Node, tuple[int, ...] | None]

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a ``call_module`` node calls."""
        return self.root.get_submodule(str(node.target))

    def image_shape(self, node: fx.Node) -> tuple[int, ...]:
        """Per-image shape of a call's result.

        Raises:
            UntraceableModel: the result is not a tensor with the batch in front.
        """
        shape = self.shapes[node]
        if shape is None or not shape or shape[0] != BATCH:
            raise UntraceableModel(self.labels[node], f"result of shape {shape} does not keep images apart")
        return shape[1:]


def trace_model(model: nn.Module, input_shape: tuple[int, ...]) -> TracedModel:
    """Record the evaluation-mode forward pass of ``model`` for inputs (batch, *input_shape).

    Only the first argument of ``forward`` is an input; the others keep their defaults. A result with
    ``logits`` (Hugging Face) or with a single tensor is unwrapped.

    Raises:
        UntraceableModel: naming the call that could not be followed.
    """
    tracer = _ShapeTracer(model, input_shape)
    with _evaluation_mode(model):
        try:
            graph = tracer.trace(model)
        except UntraceableModel:
            raise
        except Exception as error:
            raise UntraceableModel(
                _place(error, tracer.failed_path), str(error) or type(error).__name__
            ) from error
    _write_out_in_place_effects(graph, tracer.labels)
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    return _plain(model, graph, tracer.labels)


def _plain(model: nn.Module, graph: fx.Graph, labels: dict[fx.Node, str]) -> TracedModel:
    """Move the record to a graph that knows nothing of this tracer, so that it can be copied and pickled."""
    copied: dict[fx.Node, fx.Node] = {}
    plain = fx.Graph()
    plain.output(plain.graph_copy(graph, copied))
    shapes = {new: _shape(old.meta["value"]) for old, new in copied.items()}
    for node in plain.nodes:
        node.meta.clear()
    return TracedModel(model, plain, {new: labels[old] for old, new in copied.items()}, shapes)


class _ShapedProxy(fx.Proxy):
    """A proxy whose shape is known: sizes are numbers, that of the batch a proxy."""

    def _value(self) -> Any:
        return self.node.meta["value"]

    @property
    def shape(self) -> Any:
        value = self._value()
        return self.size() if isinstance(value, Tensor) else fx.Proxy.__getattr__(self, "shape")

    @property
    def ndim(self) -> int:
        return int(self._value().dim())

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._value().dtype
        return dtype

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        sizes = tuple(self._value().shape)
        if self.node.op == "get_attr" or not sizes or sizes[0] != BATCH:
            return sizes if dim is None else sizes[dim]
        if dim is None:
            return (self._batch(), *sizes[1:])
        return sizes[dim] if dim % len(sizes) else self._batch()

    def _batch(self) -> Any:
        return self.tracer.create_proxy("call_method", "size", (self, 0), {})


class _ShapeTracer(fx.Tracer):
    """Records calls and executes each on meta tensors at once."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        floating = (t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
        self.input_dtype = next(floating, torch.float32)
        self.labels: dict[fx.Node, str] = {}
        self.failed_path: str | None = None
        self._executing = False
        self._taken = {name for name, _ in model.named_modules(remove_duplicate=False)}
        self._called: set[str] = set()

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        name = next(iter(list(inspect.signature(root_fn).parameters)[1:]), "input")
        proxy = self.create_proxy("placeholder", name if name.isidentifier() else "input", (), {})
        return (lambda root, x: _single_result(root_fn(root, x))), [self.root, proxy]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _ELEMENTWISE_LEAVES) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        made_in_forward = self.submodule_paths is not None and m not in self.submodule_paths
        if self._executing or made_in_forward:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_path is None:
                self.failed_path = self.path_of_module(m)
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._executing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _ShapedProxy(node, self)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind != "output":
            self.labels[node] = self._label(node)
            tensors = [n for n in node.all_input_nodes if isinstance(n.meta["value"], Tensor)]
            versions = [n.meta["value"]._version for n in tensors]
            node.meta["value"] = self._execute(node)
            node.meta["writes"] = [
                n for n, version in zip(tensors, versions, strict=True) if n.meta["value"]._version != version
            ]
        return node

    def _label(self, node: fx.Node) -> str:
        if node.op == "call_module" and node.target not in self._called:
            self._called.add(str(node.target))
            return str(node.target)
        scope = self.scope.module_path
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
        name = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}.get(name, name)
        base = (
            str(node.target) if node.op == "call_module" else ".".join(filter(None, (scope, name.strip("_"))))
        )
        label, count = base, 1
        while label in self._taken:
            count += 1
            label = f"{base}_{count}"
        self._taken.add(label)
        return label

    def _execute(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        self._executing = True
        try:
            with torch.no_grad():
                return _to_meta(self._result(node, args, kwargs))
        except Exception as error:
            raise UntraceableModel(self.labels[node], f"{node.target} fails: {error}") from error
        finally:
            self._executing = False

    def _result(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "placeholder":
            return torch.empty((BATCH, *self.input_shape), dtype=self.input_dtype, device="meta")
        if node.op == "get_attr":
            value: Any = self.root
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            assert callable(node.target)
            return node.target(*args, **kwargs)
        module = self.root.get_submodule(str(node.target))
        if isinstance(module, _ELEMENTWISE_LEAVES):
            return torch.empty_like(args[0])
        tensors = {name: t.to("meta") for name, t in (*module.named_parameters(), *module.named_buffers())}
        return functional_call(module, tensors, args, kwargs)


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.device.type == "meta" else value.detach().to("meta")
    if isinstance(value, tuple | list):
        return type(value)(_to_meta(item) for item in value) if type(value) in (tuple, list) else value
    return value


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _single_result(result: Any) -> Any:
    """The one tensor that a model returns."""
    if isinstance(result, fx.Proxy):
        return result
    logits = getattr(result, "logits", None)
    if isinstance(logits, fx.Proxy):
        return logits
    parts = list(result.values()) if isinstance(result, dict) else result
    if isinstance(parts, tuple | list):
        tensors = [part for part in parts if part is not None]
        if len(tensors) == 1 and isinstance(tensors[0], fx.Proxy):
            return tensors[0]
    raise UntraceableModel("the result", f"the model returns {type(result).__name__}, not one tensor")


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _place(error: BaseException, path: str | None) -> str:
    """Module path and source line of the model's code that raised an error."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__)))
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)
    ]
    where = path or "the forward pass"
    if not frames:
        return where
    last = frames[-1]
    return f"{where} ({Path(last.filename).name}:{last.lineno}: {last.line})"


def _write_out_in_place_effects(graph: fx.Graph, labels: dict[fx.Node, str]) -> None:
    """Let readers of a tensor that come after an in-place call read the result of that call.

    In ``relu_(x); y = x + 1`` the second statement reads what ReLU wrote, though the recorded graph has an
    edge from ``x``.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for writer in list(graph.nodes):
        for written in writer.meta.get("writes", ()):
            storage = written.meta["value"].untyped_storage()._cdata
            for alias in [n for n in order if order[n] < order[writer] and _storage(n) == storage]:
                late = [user for user in alias.users if order[user] > order[writer]]
                if late and not _same_view(alias.meta["value"], writer.meta["value"]):
                    raise UntraceableModel(
                        labels.get(writer, writer.name),
                        "it changes in place a tensor that is later read in another shape",
                    )
                for user in late:
                    user.replace_input_with(alias, writer)


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("value")
    return int(value.untyped_storage()._cdata) if isinstance(value, Tensor) else None


def _same_view(a: Tensor, b: Any) -> bool:
    return (
        isinstance(b, Tensor)
        and a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.storage_offset() == b.storage_offset()
    )
