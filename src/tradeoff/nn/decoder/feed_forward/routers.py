"""Routers: which experts a token passes, and with which gate."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn.decoder.errors import InvalidInput
from tradeoff.nn.decoder.kernels import at_least_float32
from tradeoff.nn.decoder.layers import UsesKernels
from tradeoff.nn.decoder.moe_config import MoEConfig


@dataclass(frozen=True, eq=False)
class Routing:
    """What a router decided about N tokens, each with up to K experts.

    Attributes:
        indices: expert of every slot.
        weights: gates, zero where ``mask`` is false.
        mask: which slots are used.
        probabilities: of all experts; the auxiliary losses act on them.
        logits: of all experts.
    """

    indices: Int[Tensor, "tokens slots"]
    weights: Float[Tensor, "tokens slots"]
    mask: Bool[Tensor, "tokens slots"]
    probabilities: Float[Tensor, "tokens experts"]
    logits: Float[Tensor, "tokens experts"]

    def gates(self) -> Float[Tensor, "tokens experts"]:
        """The gates as one matrix, zero where an expert is not chosen."""
        return torch.zeros_like(self.probabilities).scatter_add(1, self.indices, self.weights)


class Router(UsesKernels):
    """Base of the routers: logits ``W x`` in float32 at least, and a rule that chooses.

    Args:
        dim: width of a token.
        config: of the layer.
    """

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.randn(config.experts, dim) * 0.02)

    def forward(self, x: Float[Tensor, "tokens dim"]) -> Routing:
        """Route tokens."""
        wide = at_least_float32(x)
        return self.choose(self.kernels.linear(wide, self.weight.to(wide.dtype), None))

    def choose(self, logits: Float[Tensor, "tokens experts"]) -> Routing:
        """The rule, given logits."""
        raise NotImplementedError

    def normalized(self, weights: Tensor) -> Tensor:
        """Gates as the configuration wants them: sum one in a token's set, times the scale."""
        if self.config.normalize_gates:
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
        return weights if self.config.gate_scale == 1 else weights * self.config.gate_scale


class TopK(Router):
    """The k most probable experts (Shazeer et al., 2017); of equals the lower index wins."""

    def choose(self, logits: Tensor) -> Routing:
        """See :class:`Router`."""
        probabilities = logits.softmax(-1)
        values, order = probabilities.sort(dim=-1, descending=True, stable=True)
        count = int(self.config.active)
        weights, indices = self.normalized(values[:, :count]), order[:, :count]
        return Routing(indices, weights, torch.ones_like(indices, dtype=torch.bool), probabilities, logits)


class TopP(Router):
    """The smallest set of most probable experts whose probabilities reach a threshold (Huang et al., 2024).

    An expert is active iff the probabilities before it, in descending order, sum to less than the threshold;
    the first always is. Of equals the lower index comes first.

    Attributes:
        threshold: the mass p, a buffer that a controller may change in place.
    """

    threshold: Tensor

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__(dim, config)
        self.register_buffer("threshold", torch.tensor(float(config.first_threshold)))

    def choose(self, logits: Tensor) -> Routing:
        """See :class:`Router`."""
        probabilities = self.distribution(logits).softmax(-1)
        values, indices = probabilities.sort(dim=-1, descending=True, stable=True)
        before = functional.pad(values.cumsum(-1)[:, :-1], (1, 0))
        mask = before < self.threshold
        if self.config.max_active is not None:
            mask[:, self.config.max_active :] = False
        mask[:, 0] = True
        return Routing(indices, self.normalized(values * mask), mask, probabilities, logits)

    def distribution(self, logits: Tensor) -> Tensor:
        """What the softmax is taken of."""
        return logits


class DTopP(TopP):
    """Top-p over logits that are normalized per token, times a gain (Can Jin et al., arXiv 2512.13996).

    With mean 0 and standard deviation 1 over a token's logits, one threshold serves all layers, which differ
    by their learned gain: a large one makes sets smaller.
    """

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__(dim, config)
        self.gain = nn.Parameter(torch.ones(()))

    def distribution(self, logits: Tensor) -> Tensor:
        """Normalized logits times the gain."""
        centered = logits - logits.mean(-1, keepdim=True)
        # Of equal logits, the root of a variance of 0 has no gradient: that of its bound, 0, is taken.
        deviation = centered.pow(2).mean(-1, keepdim=True).clamp_min(1e-24).sqrt()
        return self.gain * centered / (deviation + 1e-6)


class ExpertChoice(Router):
    """Every expert takes the tokens that want it most, ``active`` a token on average (Zhou et al., 2022).

    A choice depends on all tokens, later ones too: for training only.
    """

    def choose(self, logits: Tensor) -> Routing:
        """See :class:`Router`.

        Raises:
            InvalidInput: outside training.
        """
        if not self.training:
            raise InvalidInput("expert choice looks at all tokens of a batch; it cannot decode")
        probabilities = logits.softmax(-1)
        tokens, experts = logits.shape
        capacity = min(tokens, max(1, round(tokens * self.config.active / experts)))
        taken = probabilities.topk(capacity, dim=0).indices
        mask = torch.zeros_like(probabilities, dtype=torch.bool).scatter(0, taken, True)
        indices = torch.arange(experts, device=logits.device).expand(tokens, experts)
        scale = self.config.gate_scale
        return Routing(indices, probabilities * mask * scale, mask, probabilities, logits)


class SigmoidBalanced(Router):
    """The k largest sigmoid scores plus a bias that evens out the load without a loss; gates are scores alone
    (DeepSeek-AI, "DeepSeek-V3", 2024).

    With ``groups``, only the ``groups_kept`` groups whose two best experts sum highest are open to a token.

    Attributes:
        bias: of the choice, a buffer that :meth:`update_bias` moves.
    """

    bias: Tensor

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__(dim, config)
        self.register_buffer("bias", torch.zeros(config.experts))

    def choose(self, logits: Tensor) -> Routing:
        """See :class:`Router`."""
        scores = logits.sigmoid()
        ranked = self._open_groups(scores.detach() + self.bias)
        indices = ranked.sort(dim=-1, descending=True, stable=True).indices[:, : int(self.config.active)]
        weights = self.normalized(scores.gather(1, indices))
        probabilities = scores / scores.sum(-1, keepdim=True)
        return Routing(indices, weights, torch.ones_like(indices, dtype=torch.bool), probabilities, logits)

    @torch.no_grad()
    def update_bias(self, slots: Int[Tensor, " experts"], rate: float = 1e-3) -> None:
        """Raise the bias of experts with fewer slots than the mean, lower that of the others."""
        counts = slots.to(self.bias)
        self.bias += rate * (counts.mean() - counts).sign()

    def _open_groups(self, ranked: Tensor) -> Tensor:
        if self.config.groups == 1:
            return ranked
        grouped = ranked.view(len(ranked), self.config.groups, -1)
        best = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter(
            1, best.topk(self.config.groups_kept, -1).indices, True
        )
        return grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1)


ROUTERS: dict[str, type[Router]] = {
    "top_k": TopK,
    "top_p": TopP,
    "dtop_p": DTopP,
    "expert_choice": ExpertChoice,
    "sigmoid": SigmoidBalanced,
}


def make_router(dim: int, config: MoEConfig) -> Router:
    """The router that a configuration asks for."""
    return (
        ROUTERS[config.router](dim, config) if isinstance(config.router, str) else config.router(dim, config)
    )
