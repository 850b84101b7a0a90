"""Masks by weight name: made, applied, counted and stored."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import safetensors
import torch
from jaxtyping import Bool
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tradeoff.nn.selection import top_k

from .densities import Distribution, active_counts
from .errors import MaskError

_FORMAT = "tradeoff-masks-1"
NAMES_SHOWN = 5


class MaskSet(Mapping[str, Bool[Tensor, "..."]]):
    """One boolean mask for each weight, true where the weight is active.

    The tensors may be changed in place by whoever trains with them; their names and shapes may not.

    Args:
        masks: name of a weight -> mask of its shape.

    Raises:
        MaskError: there is none, or one is not boolean.

    Example:
        >>> from torch import nn
        >>> from tradeoff.nn.masks import MaskSet, maskable_weights
        >>> model = nn.Linear(64, 10)
        >>> masks = MaskSet.random(maskable_weights(model), density=0.1)
        >>> masks.apply(model)
        >>> masks.count(), int(model.weight.count_nonzero())
        (64, 64)
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        if not masks:
            raise MaskError("a mask set needs at least one mask")
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise MaskError(f"the mask of {name} is {mask.dtype}, not boolean")
        self._masks = dict(masks)

    @classmethod
    def dense(cls, weights: Mapping[str, Tensor]) -> Self:
        """Masks that keep everything."""
        return cls({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()})

    @classmethod
    def random(
        cls,
        weights: Mapping[str, Tensor],
        density: float,
        distribution: Distribution = "erk",
        seed: int = 0,
    ) -> Self:
        """Masks of exactly :func:`active_counts` positions, drawn evenly for each (seed, name).

        Raises:
            InfeasibleDensity: see :func:`active_counts`.
        """
        counts = active_counts({n: w.shape for n, w in weights.items()}, density, distribution)
        masks = {}
        for name, weight in weights.items():
            order = torch.randperm(weight.numel(), generator=keyed_generator(seed, name, "positions"))
            mask = torch.zeros(weight.numel(), dtype=torch.bool)
            mask[order[: counts[name]]] = True
            masks[name] = mask.reshape(weight.shape).to(weight.device)
        return cls(masks)

    @classmethod
    def project(cls, weights: Mapping[str, Tensor], counts: Mapping[str, int]) -> Self:
        """Masks of the ``counts[name]`` largest magnitudes; of equal ones the earlier in memory stays."""
        return cls({name: top_k(weights[name].abs(), count) for name, count in counts.items()})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            MaskError: it is no file of masks.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no mask file {path}")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                written_as = (file.metadata() or {}).get("format")
            if written_as != _FORMAT:
                raise MaskError(f"{path} holds no masks (its format is {written_as!r}, not {_FORMAT!r})")
            return cls(load_file(path))
        except safetensors.SafetensorError as error:
            raise MaskError(f"{path} is not a safetensors file: {error}") from error

    def save(self, path: Path | str) -> None:
        """Write the masks to ``path`` (safetensors)."""
        masks = {name: mask.cpu().contiguous() for name, mask in self.items()}
        save_file(masks, path, metadata={"format": _FORMAT})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"MaskSet({self.count():,} of {self.size:,} weights in {len(self)} layers)"

    def counts(self) -> dict[str, int]:
        """Active weights of each layer."""
        return {name: int(mask.sum()) for name, mask in self.items()}

    def count(self) -> int:
        """Active weights of all layers."""
        return sum(self.counts().values())

    @property
    def size(self) -> int:
        """Weights of all layers, active or not."""
        return sum(mask.numel() for mask in self.values())

    @property
    def density(self) -> float:
        """Part of the weights that is active."""
        return self.count() / self.size

    def clone(self) -> "MaskSet":
        """A copy that later changes of these tensors leave alone."""
        return MaskSet({name: mask.clone() for name, mask in self.items()})

    def weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's parameters that the masks belong to.

        Raises:
            MaskError: one is missing or has another shape.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        problems = [f"{name} is missing" for name in self if name not in parameters]
        problems += [
            f"{name} has shape {tuple(parameters[name].shape)}, its mask {tuple(mask.shape)}"
            for name, mask in self.items()
            if name in parameters and parameters[name].shape != mask.shape
        ]
        if problems:
            rest = len(problems) - NAMES_SHOWN
            shown = "; ".join(problems[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
            raise MaskError(f"the masks do not fit {type(model).__name__}: {shown}")
        return {name: parameters[name] for name in self}

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set the inactive weights of ``model`` to exactly zero, in place.

        Raises:
            MaskError: the masks do not fit the model.
        """
        for name, weight in self.weights(model).items():
            weight.masked_fill_(~self[name], 0)


def keyed_generator(*key: object) -> torch.Generator:
    """Random numbers that depend on ``key`` alone, whatever else was drawn before."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big")
    return torch.Generator().manual_seed(seed >> 1)


@contextmanager
def as_buffers(model: nn.Module, kind: str, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a tensor for each weight be part of ``model.state_dict()`` inside the block.

    So checkpoints of :func:`tradeoff.nn.fit.fit` hold them and restore them in place.

    Args:
        kind: is appended to the weight's name: ``layer.weight`` and ``mask`` make ``layer:weight_mask``.

    Raises:
        MaskError: the model has such an attribute already.
    """
    # All at the model itself: the linear layers of PyG store no buffers of their own.
    registered: list[str] = []
    try:
        for name, tensor in tensors.items():
            attribute = f"{name.replace('.', ':')}_{kind}"
            if hasattr(model, attribute):
                raise MaskError(f"the model has a {attribute} already: another training holds it")
            model.register_buffer(attribute, tensor)
            registered.append(attribute)
        yield
    finally:
        for attribute in registered:
            delattr(model, attribute)
