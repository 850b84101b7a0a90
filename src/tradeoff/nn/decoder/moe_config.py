"""What a mixture of experts consists of."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from tradeoff.nn.decoder.errors import InvalidConfig

if TYPE_CHECKING:
    from tradeoff.nn.decoder.feed_forward.routers import Router

RouterName = Literal["top_k", "top_p", "dtop_p", "expert_choice", "sigmoid"]
Dispatch = Literal["grouped", "loop", "dense"]


@dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts in place of the dense feed-forward layer.

    Attributes:
        experts: experts of a layer, E.
        active: experts a token passes; of ``top_p`` and ``dtop_p`` the mean that is aimed at.
        hidden: width of an expert; None for the dense layer's width over ``active``.
        router: who chooses; or a function of (dim, this configuration) that makes a :class:`Router`.
        threshold: probability mass of ``top_p`` and ``dtop_p``; None for max(active / E, 0.1).
        max_active: largest set of a token of ``top_p`` and ``dtop_p``; None for no limit.
        normalize_gates: gates of a token's set sum to one.
        gate_scale: factor of the gates, after normalization.
        groups: of ``sigmoid``: equal groups of experts, of which a token's set touches ``groups_kept``.
        groups_kept: see ``groups``.
        shared: experts that every token passes with gate one, beside the routed ones.
        dense_layers: first layers that stay dense.
        activation: of the experts.
        dispatch: ``grouped`` runs each expert on its sorted rows; ``loop`` is the reference; ``dense`` runs
            every expert on every token (for tiny models).
        balance, entropy, z: factors of the auxiliary losses: E * sum(share of slots * mean probability), the
            mean entropy of the router, and the mean squared log-sum-exp of its logits.

    Raises:
        InvalidConfig: a value is out of range or contradicts another; the message has the numbers.
    """

    experts: int
    active: float = 2
    hidden: int | None = None
    router: "RouterName | Callable[[int, MoEConfig], Router]" = "top_k"
    threshold: float | None = None
    max_active: int | None = None
    normalize_gates: bool = True
    gate_scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    shared: int = 0
    dense_layers: int = 0
    activation: Literal["swiglu", "gelu"] = "swiglu"
    dispatch: Dispatch = "grouped"
    balance: float = 0.0
    entropy: float = 0.0
    z: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.experts, int) or self.experts < 1 or not 1 <= self.active <= self.experts:
            raise InvalidConfig(
                f"{self.active} active of {self.experts} experts; expected 1 to {self.experts}"
            )
        if not callable(self.router) and self.router not in get_args(RouterName):
            raise InvalidConfig(f"router is {self.router!r}; it is one of {', '.join(get_args(RouterName))}")
        if self.router in ("top_k", "sigmoid") and self.active != int(self.active):
            raise InvalidConfig(f"{self.router} needs a whole number of active experts, not {self.active}")
        if self.hidden is not None and (not isinstance(self.hidden, int) or self.hidden < 1):
            raise InvalidConfig(f"experts of width {self.hidden}")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise InvalidConfig(f"threshold is {self.threshold}; it lies in (0, 1]")
        if self.max_active is not None and self.max_active < 1:
            raise InvalidConfig(f"max_active is {self.max_active}; it must be at least 1")
        if self.experts % self.groups or not 1 <= self.groups_kept <= self.groups:
            raise InvalidConfig(f"{self.groups_kept} of {self.groups} groups of {self.experts} experts")
        if self.groups > 1 and self.active > self.groups_kept * (self.experts // self.groups):
            raise InvalidConfig(
                f"{self.active} active experts do not fit {self.groups_kept} groups "
                f"of {self.experts // self.groups}"
            )
        if self.activation not in ("swiglu", "gelu") or self.dispatch not in get_args(Dispatch):
            raise InvalidConfig(f"activation {self.activation!r} with dispatch {self.dispatch!r}")
        if min(self.shared, self.dense_layers, self.balance, self.entropy, self.z) < 0:
            raise InvalidConfig("shared, dense_layers, balance, entropy and z must not be negative")
        for name in ("gate_scale", "balance", "entropy", "z"):
            if not math.isfinite(getattr(self, name)):
                raise InvalidConfig(f"{name} is {getattr(self, name)}; it must be a finite number")

    @property
    def first_threshold(self) -> float:
        """Probability mass that ``top_p`` and ``dtop_p`` start with."""
        return max(self.active / self.experts, 0.1) if self.threshold is None else self.threshold

    def expert_width(self, dense_width: int) -> int:
        """Width of an expert, given that of the dense layer."""
        return self.hidden or max(1, round(dense_width / self.active))
