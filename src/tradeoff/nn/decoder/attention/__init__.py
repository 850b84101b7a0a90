"""Attention layers: keys and values per head, or cached latents."""

from torch import nn

from tradeoff.nn.decoder.attention.grouped import GroupedAttention
from tradeoff.nn.decoder.config import DecoderConfig

__all__ = ["GroupedAttention", "make_attention"]


def make_attention(config: DecoderConfig, layer: int) -> nn.Module:
    """The attention layer that a configuration asks for."""
    return GroupedAttention(config, layer)
