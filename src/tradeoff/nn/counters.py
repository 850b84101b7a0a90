"""What one image costs a network: multiply-accumulates, parameters, activations and ReLUs, layer by layer.

Counted by running the network on tensors without data, so that large networks are counted in moments, and by
watching the operators that really run: ``functional.relu(x)`` counts as ``nn.ReLU()`` does.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Counts", "LayerCount", "count"]

_aten = torch.ops.aten

RELUS = {_aten.relu, _aten.relu_}
CLIPPED = {_aten.hardtanh, _aten.hardtanh_}
"""How ReLU6 runs: with a lower limit of 0."""
ACTIVATIONS = (
    RELUS
    | CLIPPED
    | {
        _aten.silu,
        _aten.silu_,
        _aten.gelu,
        _aten.sigmoid,
        _aten.sigmoid_,
        _aten.tanh,
        _aten.tanh_,
        _aten.elu,
        _aten.elu_,
        _aten.leaky_relu,
        _aten.leaky_relu_,
        _aten.hardswish,
        _aten.hardswish_,
        _aten.hardsigmoid,
        _aten.softplus,
    }
)


@dataclass(frozen=True)
class LayerCount:
    """One row: a module that ran an operator of its own, or holds parameters of its own.

    Attributes:
        name: path of the module in the model.
        kind: its class.
        output_shape: of its last call, for one image, without the batch.
        macs: multiply-accumulates of convolutions and matrix products.
        parameters: elements, each shared tensor counted at its first owner.
        activations: elements that passed a non-linearity (pooling and softmax are none).
        relus: of these, through ReLU or ReLU6; of a partly replaced site, those kept.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    macs: int
    parameters: int
    activations: int
    relus: int


@dataclass(frozen=True)
class Counts:
    """The table and its sums."""

    layers: tuple[LayerCount, ...]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """Two per multiply-accumulate."""
        return 2 * self.macs

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def activations(self) -> int:
        return sum(layer.activations for layer in self.layers)

    @property
    def relus(self) -> int:
        return sum(layer.relus for layer in self.layers)

    @property
    def activation_sites(self) -> int:
        """Modules with an activation."""
        return sum(layer.activations > 0 for layer in self.layers)

    def table(self) -> str:
        """Plain text, one line a layer and one for the sums."""
        header = ("layer", "kind", "output", "MACs", "parameters", "activations", "ReLUs")
        rows = [
            (layer.name, layer.kind, "x".join(map(str, layer.output_shape)), layer.macs, layer.parameters,
             layer.activations, layer.relus)
            for layer in self.layers
        ]  # fmt: skip
        rows.append(("total", "", "", self.macs, self.parameters, self.activations, self.relus))
        cells = [header, *(tuple(f"{c:,}" if isinstance(c, int) else c for c in row) for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                text.ljust(w) if i < 3 else text.rjust(w)
                for i, (text, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        )


def count(model: nn.Module, input_shape: tuple[int, ...]) -> Counts:
    """Count ``model`` on one image of ``input_shape``, in evaluation mode; the model is left as it was.

    A module without children that knows how many rectified elements it keeps says so in an integer attribute
    or property ``relu_count`` (:class:`tradeoff.nn.polynomial.MaskedReLU` does).

    Args:
        input_shape: ``(channels, height, width)``, or whatever one input is, without the batch.
    """
    watch = _Watch(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    on_meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    with torch.no_grad(), _evaluation(model), watch.hooks(), watch:
        torch.func.functional_call(model, on_meta, (torch.empty((1, *input_shape), device="meta"),))
    return Counts(tuple(watch.rows()))


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass
class _Tally:
    shape: tuple[int, ...] = ()
    macs: int = 0
    activations: int = 0
    relus: int = 0
    calls: int = 0


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Attributes each operator that runs to the innermost module that is running."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.kept = {module: _declared_relus(module) for module in self.names}
        self.tallies: dict[nn.Module, _Tally] = {module: _Tally() for module in self.names}
        self.running: list[nn.Module] = []

    @contextmanager
    def hooks(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.names:
                for handle in (
                    module.register_forward_pre_hook(self._enter),
                    module.register_forward_hook(self._leave),
                ):
                    stack.callback(handle.remove)
            yield

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.running.append(module)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.running.pop()
        tally = self.tallies[module]
        tally.calls += 1
        if isinstance(output, Tensor):
            tally.shape = tuple(output.shape[1:])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tally = self.tallies[self.running[-1] if self.running else self.model]
        operator = func.overloadpacket
        if operator in _MACS:
            tally.macs += _MACS[operator](args, output)
        elif operator in ACTIVATIONS:
            tally.activations += output.numel()
            if operator in RELUS or (operator in CLIPPED and len(args) > 1 and args[1] == 0):
                tally.relus += output.numel()
        return output

    def rows(self) -> Iterator[LayerCount]:
        owned: set[int] = set()
        for module, tally in self.tallies.items():
            own = {id(p): p.numel() for p in module.parameters(recurse=False) if id(p) not in owned}
            owned |= own.keys()
            kept = self.kept[module]
            relus = tally.relus if kept is None else kept * tally.calls
            activations = tally.activations if kept is None else prod(tally.shape) * tally.calls
            if tally.macs or activations or own:
                name, kind = self.names[module], type(module).__name__
                yield LayerCount(name, kind, tally.shape, tally.macs, sum(own.values()), activations, relus)


def _declared_relus(module: nn.Module) -> int | None:
    declared = getattr(module, "relu_count", None)
    is_leaf = next(module.children(), None) is None
    return declared if is_leaf and isinstance(declared, int) else None


def _convolution_macs(args: tuple[Any, ...], output: Tensor) -> int:
    weight: Tensor = args[1]
    transposed: bool = args[6]
    positions = prod(args[0].shape[2:]) if transposed else prod(output.shape[2:])
    return output.shape[0] * positions * weight.numel()


def _product_macs(left: int, right: int) -> Callable[[tuple[Any, ...], Tensor], int]:
    """Of a (batched) matrix product whose operands are the arguments ``left`` and ``right``."""

    def macs(args: tuple[Any, ...], output: Tensor) -> int:
        return int(args[left].numel()) * int(args[right].shape[-1])

    return macs


_MACS: dict[Any, Callable[[tuple[Any, ...], Tensor], int]] = {
    _aten.convolution: _convolution_macs,
    _aten.mm: _product_macs(0, 1),
    _aten.bmm: _product_macs(0, 1),
    _aten.addmm: _product_macs(1, 2),
    _aten.baddbmm: _product_macs(1, 2),
}
