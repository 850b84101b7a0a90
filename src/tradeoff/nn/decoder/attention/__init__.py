"""Attention layers: keys and values per head, or cached latents."""

from tradeoff.nn.decoder.attention.grouped import GroupedAttention
from tradeoff.nn.decoder.attention.latent import LatentAttention
from tradeoff.nn.decoder.config import DecoderConfig

__all__ = ["GroupedAttention", "LatentAttention", "make_attention"]


def make_attention(config: DecoderConfig, layer: int) -> GroupedAttention | LatentAttention:
    """The attention layer that a configuration asks for."""
    return LatentAttention(config, layer) if config.is_latent else GroupedAttention(config, layer)
