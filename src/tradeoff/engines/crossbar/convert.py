"""A trained network with its linear layers and convolutions in crossbars."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tradeoff.core.metric import Metric, counted, modelled
from tradeoff.engines.crossbar.config import CrossbarConfig
from tradeoff.engines.crossbar.cost import ComponentTable, LayerCost, layer_cost
from tradeoff.engines.crossbar.errors import InvalidOperand
from tradeoff.engines.crossbar.faults import FaultModel
from tradeoff.engines.crossbar.layers import CrossbarConv2d, CrossbarLinear
from tradeoff.engines.crossbar.layers import Path as ProductPath
from tradeoff.engines.crossbar.quantization import Calibration, InputRange, calibrate

LayerConfigs = Callable[[str, nn.Module], CrossbarConfig]
"""Name and layer to its crossbars; layers that share a weight must get equal ones."""
_MULTIPLIERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: in the network.
        shape: outputs and inputs of its weight.
        cost: of the layer and one product.
        stuck: cells of its weights that are stuck.
        products: vectors that it multiplied since the last reset.
        fast: whether it multiplies by one matrix product.
    """

    name: str
    shape: tuple[int, int]
    cost: LayerCost
    stuck: int
    products: int
    fast: bool

    def metrics(self) -> dict[str, Metric]:
        """Its figures with their kinds; ``energy`` and ``latency`` are those of one product, the totals those
        of all, one after the other."""
        return {
            **self.cost.metrics(),
            "stuck": counted(self.stuck),
            "products": counted(self.products),
            "total_energy": modelled(self.products * self.cost.energy),
            "total_latency": modelled(self.products * self.cost.latency),
        }


@dataclass(frozen=True)
class CrossbarReport:
    """The layers of a network in crossbars.

    Attributes:
        layers: in the order of their crossbars; a weight that several layers share stands once.
        table: name of the component table.
    """

    layers: tuple[LayerReport, ...]
    table: str

    @property
    def totals(self) -> dict[str, Metric]:
        """Sums over the layers."""
        first, *others = (layer.metrics() for layer in self.layers)
        sums = {name: (metric.value, metric.kind) for name, metric in first.items()}
        for metrics in others:
            sums = {name: (value + metrics[name].value, kind) for name, (value, kind) in sums.items()}
        return {name: Metric(value=value, kind=kind) for name, (value, kind) in sums.items()}

    def document(self) -> dict[str, Any]:
        """As JSON."""

        def plain(metrics: dict[str, Metric]) -> dict[str, Any]:
            return {name: metric.model_dump(mode="json") for name, metric in metrics.items()}

        return {
            "components": self.table,
            "layers": [
                {"name": layer.name, "shape": list(layer.shape), "fast": layer.fast, **plain(layer.metrics())}
                for layer in self.layers
            ],
            "totals": plain(self.totals),
        }


class CrossbarModel(nn.Module):
    """A network some layers of which lie in crossbars; called as the network itself.

    Attributes:
        model: the network.
        faults: of the chip.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, CrossbarLinear],
        faults: FaultModel,
    ) -> None:
        super().__init__()
        self.model, self.faults = model, faults
        self._names = list(layers)
        self._layers = list(layers.values())  # a list, not a module: they belong to ``model`` already

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def layers(self) -> Iterator[tuple[str, CrossbarLinear]]:
        """The layers in crossbars by name, in the order of their crossbars."""
        return zip(self._names, self._layers, strict=True)

    def reprogram(self, faults: FaultModel | None = None, *, seed: int | None = None) -> None:
        """Write the same integer weights into another chip.

        Args:
            faults: of that chip; those of the last one when not given.
            seed: of that chip.
        """
        faults = faults or self.faults
        self.faults = faults if seed is None else faults.chip(seed)
        for layer in self._layers:
            layer.program(self.faults)

    def set_path(self, path: ProductPath) -> None:
        """``slow``: every product cycle by cycle, even where one matrix product gives the same."""
        for layer in self._layers:
            layer.path = path

    def reset(self) -> None:
        """Count products from 0 on."""
        for layer in self._layers:
            layer.products = 0

    def report(self, components: ComponentTable | Path | None = None) -> CrossbarReport:
        """What the layers take and what their products cost.

        Args:
            components: a table or its file; ISAAC's when not given.

        Raises:
            InvalidConfig: the file is no table.
        """
        if components is None or isinstance(components, Path):
            components = ComponentTable.load(components) if components else ComponentTable.load()
        rows: dict[int, LayerReport] = {}
        for name, layer in self.layers():
            first, products = layer.placement.first, layer.products
            if first in rows:  # the same cells, used once more
                products += rows[first].products
                name = rows[first].name
            shape = (layer.out_features, layer.in_features)
            cost = layer_cost(layer.placement, components)
            rows[first] = LayerReport(name, shape, cost, layer.stuck, products, layer.fast)
        return CrossbarReport(tuple(rows.values()), components.name)


def to_crossbar(
    model: nn.Module,
    config: CrossbarConfig | LayerConfigs | None = None,
    faults: FaultModel | None = None,
    *,
    calibration: Calibration,
    include: str = "",
    exclude: str | None = None,
    percentile: float = 100.0,
    path: ProductPath = "auto",
) -> CrossbarModel:
    """Map the linear layers and convolutions of a network onto crossbars.

    Products of activations with activations, biases, norms and everything else stay digital in floating
    point. Crossbars are numbered layer by layer in the network's order.

    Args:
        model: it is not changed. Modules of it that hold no mapped layer are shared with the result.
        config: of the crossbars, or a function that gives that of each layer.
        faults: of the chip; none by default.
        calibration: what sets the ranges of inputs, never test data: batches, each a tensor, a mapping of
            keyword arguments or a sequence that starts with the input, or a function that calls the model.
        include, exclude: regular expressions that are searched in the names of layers; what ``exclude``
            finds is left as it is.
        percentile: of a layer's inputs that their range covers. Below 100 it clips the largest; try it on
            your network: it costs a MiniLM encoder, whose few large activations matter, 9 points at 99.9.
        path: see :meth:`CrossbarModel.set_path`.

    Raises:
        InvalidOperand: no layer is chosen, one cannot be mapped, or values are NaN or infinite.
        NotCalibrated: a chosen layer gets no calibration data.
    """
    faults = faults or FaultModel()
    chosen = _choose(model, include, exclude)
    configs = {
        name: config(name, layer) if callable(config) else config or CrossbarConfig()
        for name, layer in chosen.items()
    }
    bits = {name: each.act_bits for name, each in configs.items()}
    ranges = calibrate(model, chosen, calibration, bits, percentile)
    replaced: dict[str, CrossbarLinear] = {}
    placed: dict[int, int] = {}
    memo: dict[int, Any] = {}
    following = 0
    for name, layer in chosen.items():
        first = placed.setdefault(id(layer.weight), following)
        new = _mapped(layer, configs[name], ranges[name], faults, first, name, path)
        following = max(following, first + new.placement.crossbars)
        replaced[name] = memo[id(layer)] = new.train(layer.training)
    holders = {id(part) for name in chosen for part in _holders(model, name)}
    for module in model.modules():
        if id(module) not in holders:
            memo.setdefault(id(module), module)
    return CrossbarModel(copy.deepcopy(model, memo), replaced, faults)


def _holders(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """The modules on the way to one of them, from the outermost on, without it."""
    yield model
    parts = name.split(".")
    for end in range(1, len(parts)):
        yield model.get_submodule(".".join(parts[:end]))


def _choose(model: nn.Module, include: str, exclude: str | None) -> dict[str, Any]:
    """The layers to map by name, each once."""
    try:
        wanted, unwanted = re.compile(include), re.compile(exclude) if exclude is not None else None
    except re.error as error:
        raise InvalidOperand(f"include and exclude are regular expressions: {error}") from error
    if isinstance(model, _MULTIPLIERS):
        raise InvalidOperand("the model is a single layer; put it into torch.nn.Sequential")
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _MULTIPLIERS)
        and wanted.search(name)
        and not (unwanted is not None and unwanted.search(name))
    }
    if not found:
        raise InvalidOperand(
            f"{type(model).__name__} has no linear layer or convolution whose name matches {include!r}"
        )
    for name, module in found.items():
        if type(module) not in (nn.Linear, nn.Conv2d):
            raise InvalidOperand(
                f"{name} is a {type(module).__name__}; crossbars take Linear and Conv2d: exclude it"
            )
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise InvalidOperand(f"{name} has {module.groups} groups; crossbars take convolutions of one")
    return found


def _mapped(
    layer: nn.Module,
    config: CrossbarConfig,
    inputs: InputRange,
    faults: FaultModel,
    first: int,
    name: str,
    path: ProductPath,
) -> CrossbarLinear:
    if isinstance(layer, nn.Conv2d):
        return CrossbarConv2d(layer, config, inputs, faults, first_crossbar=first, name=name, path=path)
    assert isinstance(layer, nn.Linear)
    return CrossbarLinear(
        layer.weight.detach(), layer.bias, config, inputs, faults, first_crossbar=first, name=name, path=path
    )
