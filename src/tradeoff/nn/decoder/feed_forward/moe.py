"""Mixture-of-experts layer."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tradeoff.nn.decoder.errors import InvalidInput
from tradeoff.nn.decoder.feed_forward.dense import GELU, SwiGLU
from tradeoff.nn.decoder.feed_forward.experts import Experts
from tradeoff.nn.decoder.feed_forward.routers import Routing, make_router
from tradeoff.nn.decoder.moe_config import MoEConfig


class MoE(nn.Module):
    """``sum over a token's experts of gate * expert(x)``, plus the shared experts. No token is dropped.

    Args:
        dim: width of the residual stream.
        config: what it consists of; ``hidden`` must be given.
        layer: index of the block, for messages.

    Attributes:
        slots: tokens that each expert got since :meth:`reset_counters`, without padding.
        tokens: tokens that were routed since then, without padding.
        aux: auxiliary loss of the last forward pass in training; None if all factors are zero.
    """

    slots: Tensor
    tokens: Tensor

    def __init__(self, dim: int, config: MoEConfig, layer: int = 0) -> None:
        super().__init__()
        if config.hidden is None:
            raise InvalidInput("a layer of its own needs the experts' width: MoEConfig(hidden=...)")
        gated = config.activation == "swiglu"
        self.config = config
        self.layer = layer
        self.router = make_router(dim, config)
        self.experts = Experts(config.experts, dim, config.hidden, gated)
        width = config.shared * config.hidden
        self.shared = (SwiGLU if gated else GELU)(dim, width) if width else None
        self.aux: Tensor | None = None
        self.register_buffer("slots", torch.zeros(config.experts, dtype=torch.int64), persistent=False)
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(
        self, x: Float[Tensor, "*rows dim"], valid: Bool[Tensor, "*rows"] | None = None
    ) -> Float[Tensor, "*rows dim"]:
        """Route, run, add.

        Args:
            x: the residual stream.
            valid: which rows are no padding; padding is computed but not counted. None for all.

        Raises:
            InvalidInput: the router's logits are not finite.
        """
        flat = x.reshape(-1, x.shape[-1])
        routing: Routing = self.router(flat)
        if not torch.isfinite(routing.logits).all():
            raise InvalidInput(f"the router logits of layer {self.layer} are not finite")
        valid = None if valid is None else valid.reshape(-1)
        used = routing.mask if valid is None else routing.mask & valid[:, None]
        slots = routing.indices[used].bincount(minlength=self.config.experts)
        self._count(slots, len(flat) if valid is None else valid.sum())
        self.aux = self._auxiliary(routing, slots, valid) if self.training else None
        out: Tensor = self.experts(flat, routing, self.config.dispatch)
        if self.shared is not None:
            out = out + self.shared(flat)
        return out.view(x.shape)

    @property
    def mean_active(self) -> float:
        """Mean experts per token since :meth:`reset_counters`; nan if there was none."""
        tokens = int(self.tokens)
        return int(self.slots.sum()) / tokens if tokens else float("nan")

    def reset_counters(self) -> None:
        """Forget what was counted."""
        self.slots.zero_()
        self.tokens.zero_()

    @torch.no_grad()
    def _count(self, slots: Tensor, tokens: Tensor | int) -> None:
        self.slots += slots
        self.tokens += tokens

    def _auxiliary(self, routing: Routing, slots: Tensor, valid: Tensor | None) -> Tensor | None:
        config = self.config
        if config.balance == config.entropy == config.z == 0:
            return None
        probabilities, logits = routing.probabilities, routing.logits
        if valid is not None:
            probabilities, logits = probabilities[valid], logits[valid]
        share = slots / slots.sum()
        balance = config.experts * (share * probabilities.mean(0)).sum()
        entropy = -torch.special.xlogy(probabilities, probabilities).sum(-1).mean()
        z = logits.logsumexp(-1).pow(2).mean()
        total: Tensor = config.balance * balance + config.entropy * entropy + config.z * z
        return total
