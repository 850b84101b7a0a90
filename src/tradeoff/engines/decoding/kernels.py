"""Products for the few rows of a decoding step, in C++, so that a row's bits depend on that row alone."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tradeoff.core.native import extension
from tradeoff.nn.decoder import TorchKernels, Tree, Visibility

_Paths = tuple[NDArray[np.int64], NDArray[np.int32]]


class NativeKernels(TorchKernels):
    """Linear layers, gates and attention of a decoder on a CPU; ``model.kernels = NativeKernels()``.

    A library chooses how it sums by the number of rows, so that a token's logits differ in the last bits
    between a step of one row and a step of eight, and a near tie of two tokens may flip. Here every number is
    summed in one fixed order: a row of a linear layer does not depend on the other rows, and a query is
    attended over its own slots, first the cached ones, then its ancestors, exactly as if they had come one by
    one. A tree of guesses, a prompt, a batch and single steps give the same bits, with any number of threads.

    The other gain is time: up to six rows cost what reading the weights costs.

    Taken are float32 tensors on the CPU outside of training; everything else is torch's, without that
    promise: gradients, other types and devices, masks that are matrices, and where there is no compiled
    extension (one warning says so). Layers with latents project with torch's products and do not have it
    either.
    """

    def __init__(self) -> None:
        self._native = extension()
        self._seen: Visibility | None = None
        self._plan: tuple[NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.int32] | None]

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :class:`~tradeoff.nn.decoder.Kernels`."""
        if not self._takes(x, weight):
            return super().linear(x, weight, bias)
        rows, out = _rows(x), torch.empty(*x.shape[:-1], weight.shape[0])
        self._native.skinny_linear(  # type: ignore[union-attr]
            _array(weight.contiguous()), rows, _rows(out), torch.get_num_threads()
        )
        return out if bias is None else out.add_(bias)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """See :class:`~tradeoff.nn.decoder.Kernels`."""
        if not self._takes(gate, up):
            return super().swiglu(gate, up)
        out = torch.empty(gate.shape)
        self._native.swiglu(_rows(gate), _rows(up), _rows(out), torch.get_num_threads())  # type: ignore[union-attr]
        return out

    def attention(
        self, query: Tensor, keys: Tensor, values: Tensor, visible: Visibility, scale: float
    ) -> Tensor:
        """See :class:`~tradeoff.nn.decoder.Kernels`."""
        if isinstance(visible.mask, Tensor) or not self._takes(query, keys, values):
            return super().attention(query, keys, values, visible, scale)
        return self._attend(query, keys, values, None, None, visible, scale)

    def latent_attention(
        self,
        query: Tensor,
        latents: Tensor,
        rope_query: Tensor,
        rope_key: Tensor,
        visible: Visibility,
        scale: float,
    ) -> Tensor:
        """See :class:`~tradeoff.nn.decoder.Kernels`."""
        if isinstance(visible.mask, Tensor) or not self._takes(query, latents, rope_query, rope_key):
            return super().latent_attention(query, latents, rope_query, rope_key, visible, scale)
        shared = rope_key[:, None].expand(-1, latents.shape[1], -1, -1)
        out = self._attend(
            query.flatten(1, 2), latents, latents, rope_query.flatten(1, 2), shared, visible, scale
        )
        return out.unflatten(1, query.shape[1:3])  # type: ignore[no-untyped-call, no-any-return]

    def _attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        rope_query: Tensor | None,
        rope_keys: Tensor | None,
        visible: Visibility,
        scale: float,
    ) -> Tensor:
        batch, heads, new, _ = query.shape
        out = torch.empty(batch, new, heads, values.shape[-1]).transpose(1, 2)
        if visible is not self._seen:  # once for all layers
            starts, paths = _paths(visible.mask) if isinstance(visible.mask, Tree) else (None, None)
            self._plan = (np.array(visible.offsets, dtype=np.int64), starts, paths)
            self._seen = visible
        self._native.tree_attention(  # type: ignore[union-attr]
            *(None if x is None else _strided(x) for x in (query, keys, values, rope_query, rope_keys)),
            *self._plan,
            _array(out),
            scale,
            torch.get_num_threads(),
        )
        return out

    def _takes(self, *tensors: Tensor) -> bool:
        if self._native is None:
            return False
        training = torch.is_grad_enabled()
        return all(
            x.dtype == torch.float32 and x.device.type == "cpu" and not (training and x.requires_grad)
            for x in tensors
        )


@lru_cache(maxsize=256)
def _paths(tree: Tree) -> _Paths:
    """Where the list of each node begins, and the lists: its ancestors from the root on and itself."""
    paths = [row.nonzero()[0] for row in tree.ancestors.numpy()]
    starts = np.cumsum([0, *map(len, paths)], dtype=np.int64)
    return starts, np.concatenate(paths).astype(np.int32)


def _rows(x: Tensor) -> NDArray[np.float32]:
    """A matrix whose rows are the last dimension, in the memory of x if it has no gaps."""
    return _array(x.reshape(-1, x.shape[-1]).contiguous())


def _strided(x: Tensor) -> NDArray[np.float32]:
    return _array(x if x.stride(-1) == 1 else x.contiguous())


def _array(x: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = x.detach().numpy()
    return array
