"""Attention with one key and value head for each, some or all query heads."""

from jaxtyping import Float
from torch import Tensor

from tradeoff.nn.decoder.cache import KVCache
from tradeoff.nn.decoder.config import DecoderConfig
from tradeoff.nn.decoder.layers import Linear, RMSNorm, Rotation, UsesKernels
from tradeoff.nn.decoder.masks import Visibility


class GroupedAttention(UsesKernels):
    """Multi-head (Vaswani et al., 2017), grouped-query (Ainslie et al., 2023) and multi-query attention
    (Shazeer, 2019).

    Query head h reads key and value head ``h // (heads / kv_heads)``.

    Args:
        config: of the decoder.
        layer: index of the block, under which the cache keeps its keys and values.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        width = config.head_width
        bias = config.bias in (True, "qkv")
        self.layer = layer
        self.width = width
        self.scale = config.score_scale
        self.query = Linear(config.dim, config.heads * width, bias)
        self.key = Linear(config.dim, config.key_value_heads * width, bias)
        self.value = Linear(config.dim, config.key_value_heads * width, bias)
        self.gate = Linear(config.dim, config.heads * width) if config.attention_gate else None
        self.query_norm = RMSNorm((width,), config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm((width,), config.norm_eps) if config.qk_norm else None
        self.output = Linear(config.heads * width, config.dim, config.bias is True)

    def forward(
        self,
        x: Float[Tensor, "batch new dim"],
        rotation: Rotation | None,
        visible: Visibility,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch new dim"]:
        """Attend; with a cache, write the new keys and values behind its committed ones first."""
        query = self._heads(self.query(x))
        keys = self._heads(self.key(x))
        values = self._heads(self.value(x))
        if self.query_norm is not None and self.key_norm is not None:
            query, keys = self.query_norm(query), self.key_norm(keys)
        if rotation is not None:
            query, keys = rotation(query), rotation(keys)
        if cache is not None:
            slots = cache.append(self.layer, {"keys": keys, "values": values})
            keys, values = slots["keys"].to(x.dtype), slots["values"].to(x.dtype)
        heads = self.kernels.attention(query, keys, values, visible, self.scale)
        joined = heads.transpose(1, 2).flatten(2)
        if self.gate is not None:
            joined = joined * self.gate(x).sigmoid()
        out: Tensor = self.output(joined)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.width).transpose(1, 2)
