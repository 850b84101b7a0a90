"""Routers by name: ``topk``, ``topp:0.4``, ``pi``, ``dtop_p``, ``dtop_p:layer``, ``expert_choice``,
``sigmoid``, and ``dense`` for no mixture at all."""

from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from tradeoff.nn.decoder import MoEConfig, SigmoidBalanced
from tradeoff.nn.fit import Callback, FitState

from .control import ControlConfig
from .errors import ControlError

_NAMES = {
    "topk": "top_k",
    "topp": "top_p",
    "pi": "top_p",
    "dtop_p": "dtop_p",
    "expert_choice": "expert_choice",
    "sigmoid": "sigmoid",
    "dense": None,
}
WITH_THRESHOLD = ("topp", "pi", "dtop_p")
CONTROLLED = ("pi", "dtop_p")


@dataclass(frozen=True)
class RouterChoice:
    """A router of a study.

    Attributes:
        name: ``topk`` the k most probable; ``topp`` a fixed threshold; ``pi`` a controlled threshold without
            normalized logits; ``dtop_p`` with them; ``expert_choice``; ``sigmoid`` with a balancing bias and
            no auxiliary loss; ``dense`` one layer of the same active parameters.
        threshold: of ``topp``.
        by_layer: of ``pi`` and ``dtop_p``: each layer has a threshold of its own.
    """

    name: str
    threshold: float | None = None
    by_layer: bool = False
    text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """A router from its text.

        Raises:
            ControlError: no such router, or what stands behind the colon does not belong to it.
        """
        name, _, detail = text.strip().partition(":")
        if name not in _NAMES:
            raise ControlError(f"no router {name!r}; there are {', '.join(_NAMES)}")
        if name == "topp":
            try:
                threshold = float(detail)
            except ValueError:
                raise ControlError(f"router {text!r} needs a threshold, such as topp:0.4") from None
            if not 0 < threshold <= 1:
                raise ControlError(f"the threshold of router {text!r} lies in (0, 1]")
            return cls(name, threshold=threshold, text=text.strip())
        if detail not in ("", "layer") or (detail and name not in CONTROLLED):
            raise ControlError(
                f"router {text!r}: only pi:layer and dtop_p:layer have a part behind the colon"
            )
        return cls(name, by_layer=detail == "layer", text=text.strip())

    @property
    def is_controlled(self) -> bool:
        """Whether a controller moves its threshold."""
        return self.name in CONTROLLED

    def mixture(
        self, experts: int, active: float, hidden: int, balance: float, entropy: float
    ) -> MoEConfig | None:
        """The mixture of experts; None for a dense layer. The dynamic loss is of routers with a threshold."""
        router: Any = _NAMES[self.name]
        if router is None:
            return None
        return MoEConfig(
            experts,
            active,
            hidden,
            router=router,
            threshold=self.threshold,
            balance=balance if self.name in ("topk", *WITH_THRESHOLD) else 0.0,
            entropy=entropy if self.name in WITH_THRESHOLD else 0.0,
        )

    @property
    def control(self) -> ControlConfig | None:
        """How its threshold is controlled; None where it is not."""
        return ControlConfig("layer" if self.by_layer else "global") if self.is_controlled else None

    def __str__(self) -> str:
        return self.text


class BalanceBias(Callback):
    """Moves the bias of sigmoid routers after each step, by the tokens that each expert had in it.

    Args:
        rate: of a step (DeepSeek-AI, "DeepSeek-V3", 2024, has 1e-3 over many thousand steps).
    """

    def __init__(self, model: nn.Module, rate: float = 1e-2) -> None:
        layers: Any = model.moe_layers
        self.layers = [layer for layer in layers if isinstance(layer.router, SigmoidBalanced)]
        self.rate = rate

    def on_step_end(self, state: FitState) -> None:
        """Move the biases."""
        for layer in self.layers:
            layer.router.update_bias(layer.slots, self.rate)
            layer.reset_counters()
