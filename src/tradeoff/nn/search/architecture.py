"""Architectures: what became of each site; into a network, out of it, onto a plan, into a file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from tradeoff.core.errors import StoreError, TradeoffError
from tradeoff.core.files import read_json, write_json
from tradeoff.nn import plan as op
from tradeoff.nn.models import ArchMismatch
from tradeoff.nn.polynomial import MaskedReLU, Polynomial, StraightThroughQuadratic
from tradeoff.nn.search.gates import (
    Gate,
    GateConfig,
    GatedActivation,
    GatedPooling,
    GroupedActivation,
    channel_groups,
)
from tradeoff.nn.surgery import activation_sites, pooling_sites, replace_sites

FORMAT = "tradeoff-architecture-1"
ACTIVATIONS, POOLINGS = ("relu", "poly", "identity"), ("max", "average")


class NoSearchableSites(TradeoffError, ValueError):
    """The network has neither an activation nor a max pooling to choose for."""


@dataclass(frozen=True)
class Architecture:
    """What stands at each site.

    Attributes:
        choices: site -> ``relu``, ``poly`` or ``identity`` for each channel group of an activation, ``max``
            or ``average`` for a pooling.
    """

    choices: Mapping[str, tuple[str, ...]]

    def with_choice(self, site: str, *choice: str) -> Architecture:
        """Another choice at one site."""
        return Architecture({**self.choices, site: choice})

    @classmethod
    def uniform(cls, network: nn.Module, activation: str, pooling: str) -> Self:
        """The same choice at all sites of a network with gates."""
        return cls(
            {
                name: (activation if isinstance(gate, GatedActivation) else pooling,) * len(gate.alpha)
                for name, gate in gates(network).items()
            }
        )

    @property
    def relu_sites(self) -> int:
        """Activation sites with a ReLU in at least one group."""
        return sum("relu" in choice for choice in self.choices.values())

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        document = {name: list(choice) for name, choice in self.choices.items()}
        write_json(path, {"format": FORMAT, "choices": document})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read :meth:`save`'s file.

        Raises:
            FileNotFoundError: there is none.
            ArchMismatch: it is damaged, or no architecture.
        """
        try:
            document = read_json(path)
        except StoreError as error:
            raise ArchMismatch(str(error)) from None
        choices = document.get("choices") if isinstance(document, dict) else None
        if not isinstance(choices, dict) or document.get("format") != FORMAT:
            raise ArchMismatch(f"{path} is no architecture ({FORMAT})")
        wrong = [
            name
            for name, choice in choices.items()
            if not isinstance(choice, list)
            or not choice
            or not (set(map(str, choice)) <= set(ACTIVATIONS) or choice in (["max"], ["average"]))
        ]
        if wrong:
            raise ArchMismatch(f"{path}: no choice for sites {', '.join(sorted(wrong))}")
        return cls({name: tuple(choice) for name, choice in choices.items()})


def insert_gates(
    model: nn.Module, input_shape: tuple[int, ...], config: GateConfig | None = None
) -> nn.Module:
    """Return a copy of a network with a gate at each activation and max pooling.

    Every call of an activation has a gate of its own, functional calls and modules that are called several
    times included.

    Args:
        model: left as it is; its ReLU6 and SiLU become ReLU.
        input_shape: of one image, without the batch.
        config: see :class:`GateConfig`.

    Raises:
        NoSearchableSites: there is nothing to choose.
        UntraceableModel: naming the call that torch.fx cannot follow.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
        >>> sorted(gates(insert_gates(network, (1, 6, 6))))
        ['1', '2']
    """
    config = config or GateConfig()
    modules: dict[str, nn.Module] = {
        site.name: GatedActivation(site, config) for site in activation_sites(model, input_shape)
    }
    modules |= {site.name: GatedPooling(site) for site in pooling_sites(model, input_shape)}
    if not modules:
        raise NoSearchableSites(f"{type(model).__name__} has no ReLU and no max pooling to choose for")
    like = next(model.parameters(), torch.empty(0))
    return replace_sites(model, modules, input_shape).to(like)


def gates(network: nn.Module) -> dict[str, Gate]:
    """The gates of a network by site, in the order of its modules."""
    return {module.site: module for module in network.modules() if isinstance(module, Gate)}


def architecture_of(network: nn.Module) -> Architecture:
    """What the gates of a network choose now."""
    return Architecture({name: gate.choice() for name, gate in gates(network).items()})


def check_fits(architecture: Architecture, network: nn.Module) -> None:
    """Raise :class:`ArchMismatch` unless the architecture chooses for just the gates of the network."""
    found = gates(network)
    wrong = sorted(found.keys() ^ architecture.choices.keys())
    wrong += [
        name
        for name, choice in architecture.choices.items()
        if name in found
        and (len(choice) != len(found[name].alpha) or not set(choice) <= set(found[name].choices))
    ]
    if wrong:
        raise ArchMismatch(f"the architecture does not fit the network at {', '.join(wrong)}")


@torch.no_grad()
def set_architecture(network: nn.Module, architecture: Architecture, confidence: float = 4.0) -> None:
    """Let gates choose what an architecture says, ``alpha`` being ``confidence`` for it and zero else.

    Raises:
        ArchMismatch: it does not fit the network.
    """
    check_fits(architecture, network)
    for name, gate in gates(network).items():
        chosen = [gate.choices.index(choice) for choice in architecture.choices[name]]
        gate.alpha.zero_()
        gate.alpha[torch.arange(len(chosen)), torch.tensor(chosen)] = confidence


def discretize(network: nn.Module, architecture: Architecture | None = None) -> nn.Module:
    """Return a copy of a network with gates in which one branch of each is left.

    The quadratics keep what the search trained; the other branches are gone.

    Args:
        architecture: what the gates choose, if not given.

    Raises:
        ArchMismatch: it does not fit the network.
    """
    architecture = architecture or architecture_of(network)
    check_fits(architecture, network)
    result = copy.deepcopy(network)
    for path, module in list(result.named_modules()):
        if isinstance(module, Gate):
            result.set_submodule(path, _branch(module, architecture.choices[module.site]))
    return result


def _branch(gate: Gate, choice: tuple[str, ...]) -> nn.Module:
    if isinstance(gate, GatedPooling):
        return gate.maximum if choice == ("max",) else gate.average
    assert isinstance(gate, GatedActivation)
    if len(set(choice)) > 1:
        kinds = torch.tensor([ACTIVATIONS.index(kind) for kind in choice], device=gate.group.device)
        return GroupedActivation(kinds[gate.group], gate.quadratic)
    return {"relu": nn.ReLU(), "identity": nn.Identity(), "poly": gate.quadratic}[choice[0]]


@torch.no_grad()
def finalize(network: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """Return a copy of plain modules, in evaluation mode: what engines and files take.

    A quadratic becomes a :class:`Polynomial`, a site of several kinds a :class:`MaskedReLU`.

    Args:
        network: of :func:`discretize`, finetuned or not.
        input_shape: of one image.
    """
    result = copy.deepcopy(network).eval()
    shapes = _input_shapes(result, input_shape)
    for path, module in list(result.named_modules()):
        if isinstance(module, StraightThroughQuadratic) and path in shapes:
            result.set_submodule(path, Polynomial(module.effective_coefficients()))
        elif isinstance(module, GroupedActivation):
            result.set_submodule(path, _masked(module, shapes[path]))
    return result.eval()


def _masked(module: GroupedActivation, shape: tuple[int, ...]) -> MaskedReLU:
    kept = (module.kinds == 0).reshape(-1, *([1] * (len(shape) - 1))).expand(shape)
    passes = not bool((module.kinds == ACTIVATIONS.index("poly")).any())
    return MaskedReLU(kept, None if passes else module.effective_coefficients(), module.site)


def _input_shapes(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Per-image input shape of each polynomial site, by path."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for path, module in network.named_modules():
        if isinstance(module, GroupedActivation) or (
            isinstance(module, StraightThroughQuadratic) and not path.endswith(".quadratic")
        ):

            def note(_module: nn.Module, inputs: tuple[Tensor, ...], path: str = path) -> None:
                shapes[path] = tuple(inputs[0].shape[1:])

            handles.append(module.register_forward_pre_hook(note))
    like = next(network.parameters(), torch.empty(0))
    try:
        network(like.new_zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def apply_to_plan(plan: op.Plan, architecture: Architecture) -> op.Plan:
    """The plan of the network that an architecture makes of a plan with ReLUs and max poolings.

    Its polynomials are stand-ins (x^2): for costs, which do not depend on coefficients.

    Raises:
        ArchMismatch: a site is no ReLU or max pooling of the plan.
    """
    known = {operator.name for operator in plan if isinstance(operator, op.ReLU | op.MaxPool)}
    missing = sorted(architecture.choices.keys() - known)
    if missing:
        raise ArchMismatch(f"the network has no ReLU or max pooling at {', '.join(missing)}")
    return plan.rebuild(lambda operator: _chosen(operator, architecture.choices.get(operator.name)))


def _chosen(operator: op.Operator, choice: tuple[str, ...] | None) -> op.Operator:
    place = (operator.name, operator.inputs, operator.shape)
    if choice is None or choice == ("max",) or set(choice) == {"relu"}:
        return operator
    if isinstance(operator, op.MaxPool):
        return op.AveragePool(*place, operator.kernel, operator.stride, operator.padding, True)
    channels = operator.shape[0]
    coefficients = np.repeat([[0.0], [0.0], [1.0]], channels, axis=1)
    if set(choice) == {"poly"}:
        return op.Polynomial(*place, coefficients)
    if set(choice) == {"identity"}:
        return op.MaskedReLU(*place, np.zeros(operator.shape, bool), None)
    group = channel_groups(channels, len(choice)).numpy()
    kept = np.array([kind == "relu" for kind in choice])[group]
    mask = np.broadcast_to(kept.reshape(-1, *([1] * (len(operator.shape) - 1))), operator.shape)
    passes = "poly" not in choice
    return op.MaskedReLU(*place, mask, None if passes else coefficients)


def comparison_count(plan: op.Plan) -> int:
    """Comparisons for one image beyond those of ReLUs: k - 1 for each result of a max pooling over k."""
    return sum(
        (prod(operator.kernel) - 1) * prod(operator.shape)
        for operator in plan
        if isinstance(operator, op.MaxPool)
    )


def relu_sites(plan: op.Plan) -> int:
    """Operators of a plan that compare with zero, at some positions or at all."""
    return sum(
        isinstance(operator, op.ReLU) or (isinstance(operator, op.MaskedReLU) and bool(operator.mask.any()))
        for operator in plan
    )
