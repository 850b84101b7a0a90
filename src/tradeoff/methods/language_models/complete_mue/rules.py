"""The rules: what a tensor's role and the ratios of target to base make of the tuned values.

Notation: ``m_N``, ``m_L``, ``m_B``, ``m_D`` are the ratios of width, depth, batch (tokens a step) and
duration (tokens in all), ``s = sqrt(m_B / m_D)``, ``n / n_0`` a tensor's fan-in over that of the same
tensor in the base, ``rho`` the part of the tokens that reaches an expert, over that of the base's experts.
Optimizer: Adam with decoupled decay as torch has it, each step decaying by rate x decay.

Sources: the dense rules are those of muP (Yang et al., 2022), CompleteP (Dey et al., 2025,
arXiv:2505.01618) and Complete(d)P (Mlodozeniec et al., 2025, arXiv:2512.22382). Those for experts and
routers are this project's derivation from what the abstract of Complete-muE (Peng et al., 2026,
arXiv:2605.23893) states.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from .errors import TransferError


class Role(StrEnum):
    """What a tensor is for; see :func:`values` for the rule of each."""

    EMBEDDING = "embedding"
    """Input embedding and learned positions; also one that is the output matrix at the same time."""
    HIDDEN = "hidden"
    """A matrix within a block, those of feed-forward layers aside."""
    FFN_IN = "ffn in"
    """A dense feed-forward layer's matrix that reads the residual stream."""
    FFN_OUT = "ffn out"
    """Its matrix that leads back."""
    EXPERT_IN = "expert in"
    """The same of a routed expert."""
    EXPERT_OUT = "expert out"
    SHARED_IN = "shared in"
    """The same of an expert that every token passes."""
    SHARED_OUT = "shared out"
    ROUTER = "router"
    """The matrix of the logits of the experts."""
    ROUTER_GAIN = "router gain"
    """Factor of the router's logits, where it has one."""
    GAIN = "gain"
    """Gain of a norm within a block."""
    BIAS = "bias"
    """Any additive vector within a block."""
    QK_GAIN = "query-key gain"
    """Gain of a norm of queries or keys."""
    FINAL_GAIN = "final gain"
    """Gain of the norm before the output; likewise its bias."""
    FINAL_BIAS = "final bias"
    OUTPUT = "output"
    """The matrix of the logits of the vocabulary, where it is no embedding."""

    @property
    def is_matrix(self) -> bool:
        """Whether it is drawn at random, and has a fan-in."""
        return self not in _VECTORS

    @property
    def is_feed_forward(self) -> bool:
        """Whether a dense layer and a mixture differ in it."""
        return self in _FEED_FORWARD

    @property
    def is_routed(self) -> bool:
        """Whether only a part of the tokens reaches it."""
        return self in (Role.EXPERT_IN, Role.EXPERT_OUT, Role.ROUTER)


_VECTORS = frozenset((Role.ROUTER_GAIN, Role.GAIN, Role.BIAS, Role.QK_GAIN, Role.FINAL_GAIN, Role.FINAL_BIAS))
_FEED_FORWARD = frozenset(
    (
        Role.FFN_IN, Role.FFN_OUT, Role.EXPERT_IN, Role.EXPERT_OUT, Role.SHARED_IN, Role.SHARED_OUT,
        Role.ROUTER, Role.ROUTER_GAIN,
    )
)  # fmt: skip


class Tuned(BaseModel):
    """What was tuned on the base.

    Attributes:
        learning_rate: of Adam, at the peak of its schedule.
        weight_decay: as torch counts it: a step decays by rate x decay.
        vector_decay: of gains and biases.
        betas, eps: of Adam.
        init_std: standard deviation of the base's matrices.
        output: ``multiplier`` keeps the output matrix as it is and scales the logits by 1/m_N (with tied
            embeddings the only way); ``variance`` scales the matrix itself.
        output_zero: start the output matrix at zero (not where it is the embedding).
        alpha: residual branches are scaled by ``m_L ** -alpha``: 1, or 0.5 where blocks stay linear in depth.
        residual_shift: exponent c of ``rho ** c``, the rate of experts; 0 leaves the bounded shift that
            remains between all and some active experts uncorrected.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    vector_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    init_std: float = Field(default=0.02, gt=0, allow_inf_nan=False)
    output: Literal["multiplier", "variance"] = "multiplier"
    output_zero: bool = False
    alpha: float = Field(default=1.0, ge=0.5, le=1)
    residual_shift: float = Field(default=0.0, ge=-1, le=1)


@dataclass(frozen=True)
class Ratios:
    """Target over base.

    Attributes:
        width, depth: m_N, m_L.
        batch, tokens: m_B, m_D.

    Raises:
        TransferError: one is not positive and finite.
    """

    width: float = 1.0
    depth: float = 1.0
    batch: float = 1.0
    tokens: float = 1.0

    def __post_init__(self) -> None:
        for name, ratio in vars(self).items():
            if not 0 < ratio < math.inf:
                raise TransferError(f"the ratio of {name} is {ratio}; it must be positive and finite")

    @property
    def noise(self) -> float:
        """``s``: by what rates and decays shrink when less noise of gradients is to be summed up."""
        return math.sqrt(self.batch / self.tokens)

    @property
    def steps(self) -> float:
        """Optimizer steps of the target over those of the base."""
        return self.tokens / self.batch


@dataclass(frozen=True)
class Values:
    """What one tensor gets.

    Attributes:
        std: of its initial values; zero for all alike, see ``fill``.
        fill: the initial value where they are all alike.
        learning_rate, weight_decay, eps: of its parameter group.
    """

    std: float
    fill: float
    learning_rate: float
    weight_decay: float
    eps: float


def values(
    role: Role, tuned: Tuned, ratios: Ratios, fan: float = 1.0, share: float = 1.0, sparse: bool = False
) -> Values:
    """The rule of a role.

    ==============  ===================  ===========================  =================  ===================
    role            initial std / sigma  rate / eta s                 decay / lambda s   eps s / eps_0
    ==============  ===================  ===========================  =================  ===================
    embedding       1                    1                            1                  1/m_N
    hidden, ffn     (n_0/n)^1/2          (n_0/n) m_L^(alpha-1)        n/n_0              1/m_N m_L^-alpha
    expert          (n_0/n)^1/2          (n_0/n) m_L^(alpha-1) rho^c  n/n_0              1/m_N m_L^-alpha rho
    router          1/m_N, or 0          1/m_N m_L^(alpha-1)          m_N                m_L^-alpha rho
    gain, bias      fill 1, 0            m_L^(alpha-1)                of vectors         1/m_N m_L^-alpha
    query-key gain  fill 1               m_L^(alpha-1)                0                  m_L^-alpha
    final gain      fill 1               1                            0                  1/m_N
    output          1, logits by 1/m_N   1                            1                  1/m_N
    (variance)      1/m_N, or 0          1/m_N                        m_N                1
    ==============  ===================  ===========================  =================  ===================

    Args:
        fan: n/n_0. What leads out of experts has the **active** width for n, all that is added into one
            token's output: the width of one expert would change the rates with granularity, though the
            function family stays.
        share: rho. Tokens a step and tokens in all shrink alike for an expert that sees fewer: the
            corrections of rate and decay for either cancel, and only eps is left, since mean gradients are
            smaller by rho.
        sparse: whether some experts are idle. If all are active, routers start at zero, with equal gates;
            else a zero would send all tokens to the same experts.
    """
    s, depth, width = ratios.noise, ratios.depth, ratios.width
    eta, decay = tuned.learning_rate * s, tuned.weight_decay * s
    eta_block = eta * depth ** (tuned.alpha - 1)
    eps = tuned.eps / s
    eps_block = eps * depth**-tuned.alpha
    sigma = tuned.init_std
    match role:
        case Role.EMBEDDING:
            return Values(sigma, 0.0, eta, decay, eps / width)
        case Role.HIDDEN | Role.FFN_IN | Role.FFN_OUT | Role.SHARED_IN | Role.SHARED_OUT:
            return Values(sigma / math.sqrt(fan), 0.0, eta_block / fan, decay * fan, eps_block / width)
        case Role.EXPERT_IN | Role.EXPERT_OUT:
            rate = eta_block / fan * share**tuned.residual_shift
            return Values(sigma / math.sqrt(fan), 0.0, rate, decay * fan, eps_block / width * share)
        case Role.ROUTER:
            std = sigma / width if sparse else 0.0
            return Values(std, 0.0, eta_block / width, decay * width, eps_block * share)
        case Role.GAIN | Role.ROUTER_GAIN | Role.BIAS:
            fill = 0.0 if role is Role.BIAS else 1.0
            return Values(0.0, fill, eta_block, tuned.vector_decay * s, eps_block / width)
        case Role.QK_GAIN:
            return Values(0.0, 1.0, eta_block, 0.0, eps_block)
        case Role.FINAL_GAIN | Role.FINAL_BIAS:
            return Values(0.0, 1.0 if role is Role.FINAL_GAIN else 0.0, eta, 0.0, eps / width)
        case Role.OUTPUT if tuned.output == "multiplier":
            return Values(0.0 if tuned.output_zero else sigma, 0.0, eta, decay, eps / width)
        case Role.OUTPUT:
            return Values(0.0 if tuned.output_zero else sigma / width, 0.0, eta / width, decay * width, eps)


def scaled_betas(betas: tuple[float, float], ratios: Ratios) -> tuple[float, float]:
    """``1 - beta`` times m_B / m_D: the moments remember the same part of the training.

    Raises:
        TransferError: a beta would be negative, since a step is too large a part of the training.
    """
    factor = ratios.batch / ratios.tokens
    made = tuple(1 - (1 - beta) * factor for beta in betas)
    if min(made) < 0:
        raise TransferError(
            f"betas {betas[0]:g} and {betas[1]:g} become {made[0]:.3g} and {made[1]:.3g} at "
            f"{ratios.steps:.3g} times the steps; lower the batch by {(1 - min(betas)) * factor:.3g} times "
            "or more, or train on more tokens"
        )
    return made[0], made[1]
