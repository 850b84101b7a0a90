"""Replace the ReLUs of a network, count what is left, choose positions by hand, and freeze the result."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tradeoff.core.errors import TradeoffError
from tradeoff.nn.polynomial import MaskedReLU, Polynomial
from tradeoff.nn.selection import straight_through, top_k
from tradeoff.nn.surgery import activation_sites, replace_sites

from .site import ReplaceableReLU, ReplacementConfig


class NoReLUSites(TradeoffError, ValueError):
    """The network has no ReLU to replace."""


def replace_relus(
    model: nn.Module, input_shape: tuple[int, ...], config: ReplacementConfig | None = None, *, seed: int = 0
) -> nn.Module:
    """Return a copy of ``model`` with a :class:`ReplaceableReLU` in place of each call of an activation.

    ReLU, ReLU6 and SiLU are replaced, functional calls included. All positions start as ReLU, so the copy
    computes what the model with ReLUs does. Train it as any module, with :func:`density` in the loss.

    Args:
        model: left as it is; its weights are copied.
        input_shape: of one image, without the batch.
        config: what replaces a ReLU and when.
        seed: of the scores' start.

    Raises:
        NoReLUSites: nothing to replace.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        >>> relu_count(replace_relus(network, (1, 4, 4)))
        8
    """
    config = config or ReplacementConfig()
    found = activation_sites(model, input_shape)
    if not found:
        raise NoReLUSites(f"{type(model).__name__} has no ReLU, ReLU6 or SiLU to replace")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        modules = {site.name: ReplaceableReLU(site.shape, config, site.name) for site in found}
    replaced = replace_sites(model, modules, input_shape)
    return replaced.to(like(model))


def like(model: nn.Module) -> Tensor:
    """Return a tensor of the device and type of the model's parameters."""
    return next(model.parameters(), torch.empty(0))


def sites(model: nn.Module) -> dict[str, ReplaceableReLU]:
    """Return the replaceable activations by name."""
    return {module.site: module for module in model.modules() if isinstance(module, ReplaceableReLU)}


def density(model: nn.Module) -> Float[Tensor, ""]:
    """Return the part of all positions that keep their ReLU; its gradient reaches the scores."""
    gates = [straight_through(s.gate.scores, s.mask, s.gate.slope).sum() for s in sites(model).values()]
    return torch.stack(gates).sum() / total_count(model)


def total_count(model: nn.Module) -> int:
    """Return the number of positions per image over all replaceable activations."""
    return sum(site.mask.numel() for site in sites(model).values())


def set_positions(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Keep the ReLU exactly where ``masks`` (site name -> booleans) say, and freeze that choice.

    Raises:
        ValueError: the names or shapes are not those of the model's sites.
    """
    expected = {name: site.mask.shape for name, site in sites(model).items()}
    if expected != {name: mask.shape for name, mask in masks.items()}:
        raise ValueError("masks do not fit the network's activations: " + ", ".join(expected))
    for name, site in sites(model).items():
        site.flips += int((site.mask != masks[name]).sum())
        site.mask.copy_(masks[name])
        site.freeze()


def project(model: nn.Module, budget: int) -> int:
    """Drop kept ReLUs of smallest score until at most ``budget`` are left; return how many were dropped."""
    found = list(sites(model).values())
    kept = torch.cat([site.mask.flatten() for site in found])
    excess = int(kept.sum()) - budget
    if excess <= 0:
        return 0
    scores = torch.cat([site.gate.scores.detach().flatten() for site in found])
    chosen = top_k(scores.masked_fill(~kept, -torch.inf), budget)
    sizes = [site.mask.numel() for site in found]
    for site, mask in zip(found, torch.split(chosen, sizes), strict=True):
        site.flips += int((site.mask.flatten() != mask).sum())
        site.mask.copy_(mask.reshape(site.mask.shape))
    return excess


def restore(model: nn.Module, budget: int) -> int:
    """Bring dropped ReLUs of largest score back while fewer than ``budget`` are kept; return how many.

    Momentum carries scores past the budget, where no penalty pushes them any more. A position that comes back
    counts as one that never changed.
    """
    found = list(sites(model).values())
    kept = torch.cat([site.mask.flatten() for site in found])
    missing = min(budget, kept.numel()) - int(kept.sum())
    if missing <= 0:
        return 0
    scores = torch.cat([site.gate.scores.detach().flatten() for site in found])
    back = top_k(scores.masked_fill(kept, -torch.inf), missing)
    for site, mask in zip(found, torch.split(back, [site.mask.numel() for site in found]), strict=True):
        site.flips -= int(mask.sum())
        site.mask.logical_or_(mask.reshape(site.mask.shape))
    return missing


def freeze(model: nn.Module) -> None:
    """Keep all choices as they are from now on."""
    for site in sites(model).values():
        site.freeze()


def excess_flips(model: nn.Module) -> int:
    """Return how often a position changed sides beyond the one change that each dropped ReLU needs."""
    found = sites(model).values()
    return sum(int(site.flips) - int((~site.mask).sum()) for site in found)


def finalize(model: nn.Module) -> nn.Module:
    """Return a copy of plain modules: what is needed to run the network, and nothing of the training.

    A site becomes a ``ReLU`` where every position keeps it, a ``Polynomial`` (or ``Identity``) where none
    does, and a ``MaskedReLU`` otherwise.
    """
    result = copy.deepcopy(model)
    for path, module in list(result.named_modules()):
        if isinstance(module, ReplaceableReLU):
            result.set_submodule(path, _finished(module))
    return result


@torch.no_grad()
def _finished(site: ReplaceableReLU) -> nn.Module:
    if bool(site.mask.all()):
        return nn.ReLU()
    coefficients = None if site.config.polynomial == "identity" else site.effective_coefficients()
    if bool(site.mask.any()):
        return MaskedReLU(site.mask, coefficients, site.site)
    return nn.Identity() if coefficients is None else Polynomial(coefficients)


@dataclass(frozen=True)
class SiteCount:
    """One row of :func:`relu_table`: ReLUs kept and positions in total, per image."""

    site: str
    kept: int
    total: int


@torch.no_grad()
def relu_table(model: nn.Module, input_shape: tuple[int, ...]) -> list[SiteCount]:
    """Return ReLUs kept per activation module, in the order in which one image passes them.

    Args:
        model: before, during or after replacement; its activations must be modules.
        input_shape: of one image, without the batch.
    """
    rows: list[SiteCount] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU | MaskedReLU | Polynomial | ReplaceableReLU):

            def record(
                module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor, name: str = name
            ) -> None:
                rows.append(SiteCount(name, _kept(module, inputs[0]), inputs[0][0].numel()))

            handles.append(module.register_forward_hook(record))
    training = model.training
    try:
        model.eval()(like(model).new_zeros(1, *input_shape))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return rows


def _kept(module: nn.Module, x: Tensor) -> int:
    if isinstance(module, nn.ReLU):
        return x[0].numel()
    if isinstance(module, Polynomial):
        return 0
    return int(module.mask.sum())  # type: ignore[operator]


def relu_count(model: nn.Module, input_shape: tuple[int, ...] | None = None) -> int:
    """Return the ReLUs per image that are left.

    Args:
        model: before, during or after replacement.
        input_shape: needed unless every activation is a :class:`ReplaceableReLU`: a plain ReLU does not know
            how many positions it has.
    """
    if input_shape is not None:
        return sum(row.kept for row in relu_table(model, input_shape))
    return sum(int(site.mask.sum()) for site in sites(model).values())
