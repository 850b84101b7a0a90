"""The products of a decoder behind one small interface, so that an engine can put its own in their place."""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tradeoff.nn.decoder.masks import Visibility


class Kernels(Protocol):
    """Linear layers, gates and attention; ``decoder.kernels = mine`` replaces them everywhere."""

    def linear(
        self, x: Float[Tensor, "... inputs"], weight: Float[Tensor, "outputs inputs"], bias: Tensor | None
    ) -> Float[Tensor, "... outputs"]:
        """``x W^T + b``."""
        ...

    def swiglu(self, gate: Float[Tensor, "*shape"], up: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``silu(gate) * up``, element by element."""
        ...

    def attention(
        self,
        query: Float[Tensor, "batch heads new width"],
        keys: Float[Tensor, "batch kv_heads slots width"],
        values: Float[Tensor, "batch kv_heads slots value_width"],
        visible: Visibility,
        scale: float,
    ) -> Float[Tensor, "batch heads new value_width"]:
        """Softmax attention; query head h reads key head ``h // (heads / kv_heads)``.

        Keys and values may be views of a cache: dense in the last dimension, strided in the others.
        """
        ...

    def latent_attention(
        self,
        query: Float[Tensor, "batch latents heads new rank"],
        latents: Float[Tensor, "batch latents slots rank"],
        rope_query: Float[Tensor, "batch latents heads new rope_width"],
        rope_key: Float[Tensor, "batch slots rope_width"],
        visible: Visibility,
        scale: float,
    ) -> Float[Tensor, "batch latents heads new rank"]:
        """Absorbed attention: scores ``scale (query . latent + rope_query . rope_key)`` of latents."""
        ...


class TorchKernels:
    """The products as torch has them; the reference of every other implementation."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :class:`Kernels`."""
        return functional.linear(x, weight, bias)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """See :class:`Kernels`."""
        return functional.silu(gate) * up

    def attention(
        self, query: Tensor, keys: Tensor, values: Tensor, visible: Visibility, scale: float
    ) -> Tensor:
        """See :class:`Kernels`; the heads of a group are rows of one product, so no key is repeated."""
        batch, heads, new, width = query.shape
        groups = keys.shape[1]
        if visible.is_causal and heads == groups:
            return functional.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scale)
        rows = heads // groups * new
        seen = None
        if not visible.is_full:
            seen = visible.dense(query.device).repeat(1, heads // groups, 1)[:, None]
        out = functional.scaled_dot_product_attention(
            query.reshape(batch, groups, rows, width), keys, values, attn_mask=seen, scale=scale
        )
        return out.reshape(batch, heads, new, values.shape[-1])

    def latent_attention(
        self,
        query: Tensor,
        latents: Tensor,
        rope_query: Tensor,
        rope_key: Tensor,
        visible: Visibility,
        scale: float,
    ) -> Tensor:
        """See :class:`Kernels`."""
        batch, groups, heads, new, rank = query.shape
        flat = query.reshape(batch, groups, heads * new, rank)
        scores = flat @ latents.mT
        scores += rope_query.reshape(batch, groups, heads * new, -1) @ rope_key[:, None].mT
        scores = scores.reshape(batch, groups, heads, new, -1) * scale
        if not visible.is_full:
            scores = scores.masked_fill(~visible.dense(query.device)[:, None, None], float("-inf"))
        kind = torch.float32 if scores.dtype in (torch.bfloat16, torch.float16) else scores.dtype
        weights = scores.softmax(-1, dtype=kind).to(query.dtype)
        return (weights.reshape(batch, groups, heads * new, -1) @ latents).reshape(query.shape)


TORCH = TorchKernels()
