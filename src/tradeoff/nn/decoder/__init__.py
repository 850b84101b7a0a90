"""The common decoder-only transformer: attention, feed-forward and cache are exchangeable parts.

>>> import torch
>>> from tradeoff.nn.decoder import Decoder, DecoderConfig
>>> model = Decoder(DecoderConfig(dim=64, layers=2, heads=4, attention="gqa", kv_heads=2))
>>> cache = model.new_cache(max_len=64)
>>> logits = model(torch.tensor([[72, 105]]), cache=cache)      # (1, 2, 256); the cache holds 2 tokens
>>> logits = model(logits[:, -1:].argmax(-1), cache=cache)      # one more
"""

from tradeoff.nn.decoder.cache import KVCache
from tradeoff.nn.decoder.config import DecoderConfig, RopeScaling
from tradeoff.nn.decoder.errors import (
    CacheError,
    CacheOverflow,
    CheckpointError,
    DecoderError,
    InvalidConfig,
    InvalidInput,
)
from tradeoff.nn.decoder.feed_forward import (
    GELU,
    DTopP,
    ExpertChoice,
    MoE,
    MoEConfig,
    Router,
    Routing,
    SigmoidBalanced,
    SwiGLU,
    TopK,
    TopP,
)
from tradeoff.nn.decoder.kernels import TORCH, Kernels, TorchKernels
from tradeoff.nn.decoder.masks import Causal, Mask, Padded, Tree, Visibility
from tradeoff.nn.decoder.model import Block, Decoder

__all__ = [
    "GELU",
    "TORCH",
    "Block",
    "CacheError",
    "CacheOverflow",
    "Causal",
    "CheckpointError",
    "DTopP",
    "Decoder",
    "DecoderConfig",
    "DecoderError",
    "ExpertChoice",
    "InvalidConfig",
    "InvalidInput",
    "KVCache",
    "Kernels",
    "Mask",
    "MoE",
    "MoEConfig",
    "Padded",
    "RopeScaling",
    "Router",
    "Routing",
    "SigmoidBalanced",
    "SwiGLU",
    "TopK",
    "TopP",
    "TorchKernels",
    "Tree",
    "Visibility",
]
