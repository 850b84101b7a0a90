"""Other ways to choose which ReLUs stay, at an equal count: at random, and whole layers at a time."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn.fit import Indexable, evaluate
from tradeoff.nn.surgery import Site, activation_sites, replace_sites

from .replacement import NoReLUSites, like


def random_positions(
    model: nn.Module, input_shape: tuple[int, ...], budget: int, seed: int = 0
) -> dict[str, Tensor]:
    """Return masks that keep ``budget`` ReLUs, drawn uniformly from all positions of all sites."""
    found = _sites(model, input_shape)
    sizes = [_size(site) for site in found]
    generator = torch.Generator().manual_seed(seed)
    flat = torch.zeros(sum(sizes), dtype=torch.bool)
    flat[torch.randperm(len(flat), generator=generator)[:budget]] = True
    return {
        site.name: part.reshape(site.shape)
        for site, part in zip(found, torch.split(flat, sizes), strict=True)
    }


def layerwise_positions(
    model: nn.Module, input_shape: tuple[int, ...], budget: int, validation: Indexable
) -> dict[str, Tensor]:
    """Return masks that keep whole layers, the most useful first, as DeepReDuce does (Jha et al., ICML 2021).

    A layer's use is the accuracy that is lost when its ReLUs alone become the identity, without training.
    What is left of the budget after the last layer that fits goes to whole channels of the most useful layer
    that did not fit, those first in which ReLU removes most energy.
    """
    found = _sites(model, input_shape)
    use = {site.name: -_accuracy_without(model, input_shape, site, validation) for site in found}
    masks = {site.name: torch.zeros(site.shape, dtype=torch.bool) for site in found}
    thinned = False
    for site in sorted(found, key=lambda site: use[site.name], reverse=True):
        if _size(site) <= budget:
            masks[site.name][:] = True
            budget -= _size(site)
        elif not thinned:
            thinned = True
            channels = budget // (_size(site) // site.shape[0])
            best = _removed_energy(model, input_shape, site, validation).argsort(descending=True)[:channels]
            masks[site.name][best] = True
            budget -= channels * (_size(site) // site.shape[0])
    return masks


def _sites(model: nn.Module, input_shape: tuple[int, ...]) -> list[Site]:
    found = activation_sites(model, input_shape)
    if not found:
        raise NoReLUSites(f"{type(model).__name__} has no ReLU to choose from")
    return found


def _size(site: Site) -> int:
    return int(torch.Size(site.shape).numel())


def _accuracy_without(
    model: nn.Module, input_shape: tuple[int, ...], site: Site, validation: Indexable
) -> float:
    return evaluate(replace_sites(model, {site.name: nn.Identity()}, input_shape), validation)


class _RemovedEnergy(nn.Module):
    """ReLU that notes the mean square per channel of what it removes."""

    energy: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.energy = functional.relu(-x).square().transpose(0, 1).flatten(1).mean(1).cpu()
        return functional.relu(x)


@torch.no_grad()
def _removed_energy(
    model: nn.Module, input_shape: tuple[int, ...], site: Site, validation: Indexable, images: int = 500
) -> Tensor:
    meter = _RemovedEnergy()
    metered = replace_sites(model, {site.name: meter}, input_shape).eval()
    inputs, _ = validation[torch.arange(min(images, len(validation)))]
    metered(inputs.to(like(model)))
    return meter.energy
