"""Which weights of a model can be masked."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from .errors import MaskError


def maskable_weights(model: nn.Module, exempt: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """The weight matrices and kernels of ``model`` by name, in the model's order.

    Those of linear layers, PyG's included, and of convolutions count if they are trained; biases, norms and
    embeddings do not. A tied weight stands once, under its first name; one that an embedding shares, not at
    all.

    Args:
        exempt: names to leave out.

    Raises:
        MaskError: there is none, a name of ``exempt`` is none of them, or a module was pruned by
            ``torch.nn.utils.prune``, which keeps its weights elsewhere.
    """
    # Weights that an embedding shares, and, as they are met, those that were met before.
    seen = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    weights: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        if hasattr(module, "weight_orig"):
            raise MaskError(
                f"{name or 'the model'} is pruned by torch.nn.utils.prune; "
                "call torch.nn.utils.prune.remove(module, 'weight') first"
            )
        weight = module._parameters.get("weight")
        if weight is not None and _multiplies(module) and weight.requires_grad and id(weight) not in seen:
            seen.add(id(weight))
            weights[f"{name}.weight" if name else "weight"] = weight
    left_out = set(exempt)
    if unknown := left_out - weights.keys():
        raise MaskError(f"{sorted(unknown)} are none of the weights {list(weights)}")
    weights = {name: weight for name, weight in weights.items() if name not in left_out}
    if not weights:
        raise MaskError(f"{type(model).__name__} has no linear or convolution weight to mask")
    return weights


def users(model: nn.Module, weight: torch.Tensor) -> Iterator[nn.Module]:
    """The modules whose ``weight`` this is: several where it is tied."""
    return (module for module in model.modules() if module._parameters.get("weight") is weight)


def _multiplies(module: nn.Module) -> bool:
    """Whether it is a linear layer or a convolution; PyG's linear layers are known by their attributes."""
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return True
    shape = (getattr(module, "out_channels", None), getattr(module, "in_channels", None))
    return isinstance(module._parameters.get("weight"), nn.Parameter) and module.weight.shape == shape
