"""A compressed network as a folder: weights, what became of each activation and max pooling, and the plan."""

from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from torch import nn

from tradeoff.core.errors import StoreError
from tradeoff.core.files import read_json
from tradeoff.nn import plan
from tradeoff.nn.models import ArchMismatch, build, load_weights, save_weights
from tradeoff.nn.polynomial import MaskedReLU, Polynomial
from tradeoff.nn.surgery import PoolingSite, Site, activation_sites, pooling_sites, replace_sites

WEIGHTS, CONFIG, PLAN = "model.safetensors", "config.json", "plan.safetensors"
Side = Annotated[int, pydantic.Field(ge=1, le=4096)]


class Activation(pydantic.BaseModel):
    """What stands at one site: its kind, and how many coefficients per channel its polynomial has.

    A masked ReLU without any lets the other positions pass unchanged.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    kind: Literal["relu", "identity", "polynomial", "masked_relu"]
    terms: int = pydantic.Field(default=0, ge=0, le=5)

    @classmethod
    def of(cls, module: nn.Module) -> "Activation":
        """Describe an activation module."""
        if isinstance(module, Polynomial | MaskedReLU):
            kind: Literal["polynomial", "masked_relu"] = (
                "polynomial" if isinstance(module, Polynomial) else "masked_relu"
            )
            return cls(kind=kind, terms=0 if module.coefficients is None else len(module.coefficients))
        return cls(kind="identity" if isinstance(module, nn.Identity) else "relu")

    def module(self, site: Site) -> nn.Module:
        """Make the module, with values to be loaded."""
        coefficients = torch.zeros(self.terms, site.shape[0]) if self.terms else None
        if self.kind == "masked_relu":
            return MaskedReLU(torch.zeros(site.shape, dtype=torch.bool), coefficients, site.name)
        if self.kind == "polynomial" and coefficients is not None:
            return Polynomial(coefficients)
        return nn.Identity() if self.kind == "identity" else nn.ReLU()


Pooling = Literal["max", "average"]


def average_pool(site: PoolingSite) -> nn.AvgPool2d:
    """The average pooling of a site's window."""
    return nn.AvgPool2d(site.kernel, site.stride, site.padding)


class CompressedConfig(pydantic.BaseModel):
    """Everything but the weights that :func:`load_compressed` needs."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    format: Literal["tradeoff-compressed-1"] = "tradeoff-compressed-1"
    arch: str
    num_classes: int = pydantic.Field(ge=2, le=1_000_000)
    input_shape: tuple[Side, Side, Side]
    activations: dict[str, Activation]
    poolings: dict[str, Pooling] = {}


def save_compressed(
    folder: Path, network: nn.Module, *, arch: str, num_classes: int, input_shape: tuple[int, int, int]
) -> None:
    """Write a finalized network to a folder, which is made if needed.

    Args:
        folder: gets ``model.safetensors``, ``config.json`` and ``plan.safetensors``.
        network: of plain modules, with ``ReLU``, ``Identity``, ``Polynomial`` or ``MaskedReLU`` at its
            activation sites, and max or average pooling at its pooling sites.
        arch: of :data:`tradeoff.nn.models.ARCHITECTURES` that the network was made from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    original = build(arch, num_classes, input_shape)
    activations = {
        site.name: Activation.of(network.get_submodule(site.name))
        for site in activation_sites(original, input_shape)
    }
    poolings: dict[str, Pooling] = {
        site.name: "average" if isinstance(network.get_submodule(site.name), nn.AvgPool2d) else "max"
        for site in pooling_sites(original, input_shape)
    }
    config = CompressedConfig(
        arch=arch,
        num_classes=num_classes,
        input_shape=input_shape,
        activations=activations,
        poolings=poolings,
    )
    save_weights(network, folder / WEIGHTS)
    (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
    plan.save(plan.trace(network.cpu(), input_shape), folder / PLAN)


def load_compressed(folder: Path) -> nn.Module:
    """Read what :func:`save_compressed` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: no such folder, or a file is missing.
        ArchMismatch: the files do not belong together, or are not of this format.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"no compressed network in {folder}: {CONFIG} is missing")
    try:
        config = CompressedConfig.model_validate(read_json(folder / CONFIG))
        network = build(config.arch, config.num_classes, config.input_shape)
    except (StoreError, ValueError) as error:
        raise ArchMismatch(f"{folder / CONFIG} does not describe a compressed network: {error}") from None
    sites = {site.name: site for site in activation_sites(network, config.input_shape)}
    if sites.keys() != config.activations.keys():
        different = sorted(sites.keys() ^ config.activations.keys())
        raise ArchMismatch(f"{folder / CONFIG}: not the activations of {config.arch}: {', '.join(different)}")
    modules = {name: config.activations[name].module(site) for name, site in sites.items()}
    pools = {site.name: site for site in pooling_sites(network, config.input_shape)}
    if not config.poolings.keys() <= pools.keys():
        different = sorted(config.poolings.keys() - pools.keys())
        raise ArchMismatch(f"{folder / CONFIG}: not the poolings of {config.arch}: {', '.join(different)}")
    averages = [name for name, kind in config.poolings.items() if kind == "average"]
    modules |= {name: average_pool(pools[name]) for name in averages}
    replaced = replace_sites(network, modules, config.input_shape)
    load_weights(replaced, folder / WEIGHTS)
    return replaced.eval()
