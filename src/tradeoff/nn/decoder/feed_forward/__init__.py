"""Feed-forward layers: dense, and mixtures of experts."""

from tradeoff.nn.decoder.feed_forward.dense import GELU, SwiGLU
from tradeoff.nn.decoder.feed_forward.experts import Experts
from tradeoff.nn.decoder.feed_forward.moe import MoE
from tradeoff.nn.decoder.feed_forward.routers import (
    DTopP,
    ExpertChoice,
    Router,
    Routing,
    SigmoidBalanced,
    TopK,
    TopP,
)
from tradeoff.nn.decoder.moe_config import MoEConfig

__all__ = [
    "GELU",
    "DTopP",
    "ExpertChoice",
    "Experts",
    "MoE",
    "MoEConfig",
    "Router",
    "Routing",
    "SigmoidBalanced",
    "SwiGLU",
    "TopK",
    "TopP",
]
