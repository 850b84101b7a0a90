"""Attention whose keys and values are made from small latents, which alone are cached."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tradeoff.nn.decoder.cache import KVCache
from tradeoff.nn.decoder.config import HEAD_SHARES, LATENT_HEADS, DecoderConfig
from tradeoff.nn.decoder.layers import Linear, RMSNorm, Rotation, UsesKernels
from tradeoff.nn.decoder.masks import Visibility


class LatentAttention(UsesKernels):
    """Multi-head latent attention (DeepSeek-AI, "DeepSeek-V2", 2024), grouped latent attention (Zadouri et
    al., 2025) and multi-head low-rank attention (Songtao Liu et al., ICLR 2026).

    A token's latent of ``kv_rank`` numbers consists of G parts, each with a norm of its own. Latent g is
    projected up to keys and values of a contiguous 1/P of the heads, part ``g mod P``, and attended to with
    its own softmax; outputs for the same heads, one from each of the G/P branches, are added.

    ========= === === ========
    variant    G   P  branches
    ========= === === ========
    ``mla``    1   1  1
    ``gla2``   2   2  1
    ``gla4``   4   4  1
    ``mlra2``  4   2  2
    ``mlra4``  4   1  4
    ========= === === ========

    A key is ``[W_K latent; rotary key]``, and the rotary key is shared by all heads and latents. What is
    cached is the latent after norm and scale and the rotary key after rotation. Behind cached text the
    up-projection is absorbed into query and output (:meth:`absorbed`), otherwise keys and values are made
    (:meth:`expanded`); both give the same numbers up to rounding.

    Args:
        config: of the decoder.
        layer: index of the block, under which the cache keeps its latents.

    Attributes:
        latent_up: ``(latents, heads * (nope + value), rank)`` with the heads that a latent serves; a head's
            first rows make the key, the others the value.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.latents = LATENT_HEADS[config.attention]
        self.shares = HEAD_SHARES[config.attention]
        self.branches = self.latents // self.shares
        self.nope, self.rope = config.nope_dim or 0, config.rope_dim or 0
        self.value_width = config.value_width
        self.rank = config.latent_rank // self.latents
        self.scale = config.score_scale
        self.branch_scale = self.branches**-0.5 if config.latent_scale else 1.0
        biased = config.bias in (True, "qkv")

        def norm(shape: tuple[int, ...]) -> RMSNorm:
            factor = (config.dim / shape[-1]) ** 0.5 if config.latent_scale else 1.0
            return RMSNorm(shape, config.latent_norm_eps, scale=factor)

        query_width = config.heads * config.score_width
        if config.q_rank is None:
            self.query = Linear(config.dim, query_width, biased)
        else:
            self.query_down = Linear(config.dim, config.q_rank, biased)
            self.query_norm = norm((config.q_rank,))
            self.query_up = Linear(config.q_rank, query_width)
        self.direct = config.q_rank is None
        self.latent_down = Linear(config.dim, config.latent_rank + self.rope, biased)
        self.latent_norm = norm((self.latents, self.rank))
        served = config.heads // self.shares
        self.latent_up = nn.Parameter(
            torch.randn(self.latents, served * (self.nope + self.value_width), self.rank) * config.init_std
        )
        self.gate = Linear(config.dim, config.heads * self.value_width) if config.attention_gate else None
        self.output = Linear(config.heads * self.value_width, config.dim, config.bias is True)

    def forward(
        self,
        x: Float[Tensor, "batch new dim"],
        rotation: Rotation | None,
        visible: Visibility,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch new dim"]:
        """Attend; with a cache, write the new latents behind its committed ones first."""
        query, rope_query = self.queries(x, rotation)
        latents, rope_key = self.compress(x, rotation)
        if cache is not None:
            slots = cache.append(self.layer, {"latents": latents, "rope_key": rope_key})
            latents, rope_key = slots["latents"].to(x.dtype), slots["rope_key"].to(x.dtype)
        attend = self.absorbed if visible.slots > visible.new else self.expanded
        joined = self.join(attend(query, rope_query, latents, rope_key, visible))
        if self.gate is not None:
            joined = joined * self.gate(x).sigmoid()
        out: Tensor = self.output(joined)
        return out

    def queries(
        self, x: Float[Tensor, "batch new dim"], rotation: Rotation | None
    ) -> tuple[Float[Tensor, "batch latents heads new nope"], Float[Tensor, "batch latents heads new rope"]]:
        """Both parts of the queries that each latent answers, the second one rotated."""
        flat = self.query(x) if self.direct else self.query_up(self.query_norm(self.query_down(x)))
        heads = flat.view(*x.shape[:2], -1, self.nope + self.rope).transpose(1, 2)
        nope, rope = heads.split((self.nope, self.rope), -1)
        if rotation is not None:
            rope = rotation(rope)
        return self._served(nope), self._served(rope)

    def compress(
        self, x: Float[Tensor, "batch new dim"], rotation: Rotation | None
    ) -> tuple[Float[Tensor, "batch latents new rank"], Float[Tensor, "batch new rope"]]:
        """What is cached of a token: normalized latents and the rotated key."""
        flat, rope = self.latent_down(x).split((self.latents * self.rank, self.rope), -1)
        latents = self.latent_norm(flat.reshape(*x.shape[:2], self.latents, self.rank)).transpose(1, 2)
        return latents, rope if rotation is None else rotation(rope)

    def expanded(
        self, query: Tensor, rope_query: Tensor, latents: Tensor, rope_key: Tensor, visible: Visibility
    ) -> Float[Tensor, "batch latents heads new value"]:
        """Attention over keys and values of every slot."""
        made = torch.stack(
            [
                self.kernels.linear(latent, weight, None)
                for latent, weight in zip(latents.unbind(1), self.latent_up, strict=True)
            ],
            1,
        )
        heads = made.unflatten(-1, (-1, self.nope + self.value_width)).transpose(2, 3)  # type: ignore[no-untyped-call]
        nope, values = heads.split((self.nope, self.value_width), -1)
        rope = rope_key[:, None, None].expand(*nope.shape[:-1], self.rope)
        keys = torch.cat((nope, rope), -1)
        out = self.kernels.attention(
            torch.cat((query, rope_query), -1).flatten(1, 2),
            keys.flatten(1, 2),
            values.flatten(1, 2),
            visible,
            self.scale,
        )
        return out.view(*query.shape[:-1], self.value_width)

    def absorbed(
        self, query: Tensor, rope_query: Tensor, latents: Tensor, rope_key: Tensor, visible: Visibility
    ) -> Float[Tensor, "batch latents heads new value"]:
        """Attention in latent space: ``(q^T W_K) latent`` is the score, ``W_V sum(p latent)`` the output."""
        up = self.latent_up.view(self.latents, -1, self.nope + self.value_width, self.rank)
        key_up, value_up = torch.split(up, [self.nope, self.value_width], 2)
        mixed = self.kernels.latent_attention(
            query @ key_up, latents, rope_query, rope_key, visible, self.scale
        )
        out: Tensor = mixed @ value_up.mT
        return out

    def join(self, heads: Float[Tensor, "batch latents heads new value"]) -> Float[Tensor, "batch new width"]:
        """Branches added, parts of the heads side by side."""
        batch, _, served, new, width = heads.shape
        parts = heads.view(batch, self.branches, self.shares * served, new, width)
        summed = parts[:, 0] if self.branches == 1 else parts.sum(1) * self.branch_scale
        return summed.transpose(1, 2).flatten(2)

    def _served(self, x: Float[Tensor, "batch heads new width"]) -> Tensor:
        """The heads that each latent serves: ``(batch, latents, heads / shares, new, width)``."""
        batch, heads, new, width = x.shape
        parts = x.view(batch, 1, self.shares, heads // self.shares, new, width)
        return parts.expand(-1, self.branches, -1, -1, -1, -1).flatten(1, 2)
