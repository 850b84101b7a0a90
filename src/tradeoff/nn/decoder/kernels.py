"""The products of a decoder behind one small interface, so that an engine can put its own in their place."""

from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tradeoff.nn.decoder.masks import Visibility

RotaryStyle = Literal["half", "interleaved"]


def at_least_float32(x: Tensor) -> Tensor:
    """Half types as float32, others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Kernels(Protocol):
    """What a decoder computes by; ``decoder.kernels = mine`` replaces it everywhere."""

    def linear(
        self, x: Float[Tensor, "... inputs"], weight: Float[Tensor, "outputs inputs"], bias: Tensor | None
    ) -> Float[Tensor, "... outputs"]:
        """``x W^T + b``."""
        ...

    def swiglu(self, gate: Float[Tensor, "*shape"], up: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``silu(gate) * up``, element by element."""
        ...

    def rms_norm(
        self, x: Float[Tensor, "*rows width"], gain: Tensor | None, eps: float, scale: float
    ) -> Float[Tensor, "*rows width"]:
        """``x / sqrt(mean x^2 + eps) * gain * scale``, in float32 at least."""
        ...

    def rotate(
        self,
        x: Float[Tensor, "batch *heads new width"],
        cos: Float[Tensor, "rows new pairs"],
        sin: Float[Tensor, "rows new pairs"],
        style: RotaryStyle,
    ) -> Float[Tensor, "batch *heads new width"]:
        """Turn pairs of the last dimension: element i with i + pairs (``half``), or 2i with 2i + 1."""
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

    def rms_norm(self, x: Tensor, gain: Tensor | None, eps: float, scale: float) -> Tensor:
        """See :class:`Kernels`."""
        out = functional.rms_norm(at_least_float32(x), x.shape[-1:], None, eps).to(x.dtype)
        if gain is not None:
            out = out * gain
        return out if scale == 1 else out * scale

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, style: RotaryStyle) -> Tensor:
        """See :class:`Kernels`."""
        shape = (cos.shape[0], *(1,) * (x.ndim - 3), *cos.shape[1:])
        cos, sin = cos.view(shape), sin.view(shape)
        if style == "half":
            first, second = x.chunk(2, -1)
            return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)

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
