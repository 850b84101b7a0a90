"""The controller on a model: reads what routers did in a step, and moves their threshold."""

import math
import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn

from tradeoff.nn.decoder import MoE, TopP
from tradeoff.nn.fit import Callback, FitState

from .activity import Activity, Tally, expert_flops
from .control import HIGHEST, ControlConfig, ThresholdControl
from .diagnostics import WINDOW, Diagnosis, diagnose
from .errors import ControlError, ControlWarning, StepError

HISTORY = 10_000
"""Steps that a controller remembers."""


@dataclass(frozen=True)
class Observation:
    """What routers did in one step, over all ranks and micro-batches, and the answer.

    Attributes:
        active: experts that a token passed in a layer, mean over tokens and layers.
        spread: standard deviation of that number over tokens, mean over the layers.
        target: what it should have been.
        per_layer: ``active`` of each layer.
        threshold: p of the step, one for all layers or one each.
        at_limit: whether each next p stands at its lowest or highest value.
        truncated: part of the tokens whose set was cut to ``max_active``.
        flops: floating-point operations of the routed experts, forward.
        top_k_flops: the same if every token had passed the target's number of experts.
    """

    active: float
    spread: float
    target: float
    per_layer: tuple[float, ...]
    threshold: tuple[float, ...]
    at_limit: tuple[bool, ...]
    truncated: float
    flops: int
    top_k_flops: float


class Controller(nn.Module):
    """Holds the average number of active experts of a model at a target (Can Jin et al., arXiv 2512.13996).

    It becomes the submodule ``moe_controller`` of the model, whose checkpoints then hold its state. In
    training mode the routers have the threshold that the controller moves; in evaluation mode its mean over
    the last 100 steps.

        >>> from tradeoff.nn.decoder import Decoder, DecoderConfig, MoEConfig
        >>> model = Decoder(DecoderConfig(dim=32, layers=2, heads=2, ffn=MoEConfig(8, router="dtop_p")))
        >>> controller = Controller(model, target_active=2)
        >>> loss = model.loss(torch.randint(256, (4, 17)))   # any number of forward passes, then backward
        >>> seen = controller.step()                         # once for each step of the optimizer
        >>> len(controller.history), len(seen.per_layer)
        (1, 2)

    Under a process group every rank calls :meth:`step`; one small all-reduce makes their thresholds equal.

    Args:
        model: with mixtures of experts whose routers have a threshold (``dtop_p`` or ``top_p``).
        target_active: experts a token shall pass on average; None for the ``active`` of the model's own
            configuration.
        config: gains, and whether each layer has a threshold of its own.
        group: of the ranks that share a step; None for all.

    Attributes:
        history: the last observations.

    Raises:
        ControlError: there is nothing to control, layers differ, or the target is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        target_active: float | None = None,
        config: ControlConfig | None = None,
        group: "distributed.ProcessGroup | None" = None,
    ) -> None:
        super().__init__()
        self.config = config or ControlConfig()
        self._layers = _controllable(model)
        experts = self._layers[0].config.experts
        target = self._layers[0].config.active if target_active is None else target_active
        loops = len(self._layers) if self.config.control == "layer" else 1
        self.law = ThresholdControl(target, experts, self.config, loops)
        self.history: deque[Observation] = deque(maxlen=HISTORY)
        self._group = group
        self._activity = Activity(self._layers)
        self._oscillates = False
        self.to(self._layers[0].router.weight.device)
        self.register_load_state_dict_post_hook(_publish)  # type: ignore[no-untyped-call]
        model.add_module("moe_controller", self)
        self.train(model.training)

    @property
    def target_active(self) -> float:
        """Experts a token shall pass on average; it may be changed at any time."""
        return self.law.target

    @target_active.setter
    def target_active(self, target: float) -> None:
        self.law.target = target

    @property
    def p(self) -> float | tuple[float, ...]:
        """The threshold that training goes on with; under control by layer one for each layer."""
        values: list[float] = self.law.threshold.tolist()
        return tuple(values) if self.config.control == "layer" else values[0]

    @torch.no_grad()
    def step(self) -> Observation | None:
        """Read the counts of the forward passes in training since the last step, and move the threshold.

        Returns:
            What happened; None, after a warning, where all tokens were padding.

        Raises:
            StepError: there was no forward pass in training since the last step.
        """
        if not self._activity.passes:
            raise StepError("no forward pass in training mode since the controller's last step")
        tally = self._activity.take(self._group)
        if not int(tally.tokens.sum()):
            warnings.warn(
                "all tokens of the step are padding: p is left as it is", ControlWarning, stacklevel=2
            )
            return None
        before = tuple(self.law.threshold.tolist())
        active = tally.active
        after = self.law.update(active if self.config.control == "layer" else active.nanmean()[None])
        self._publish()
        seen = self._observe(tally, before, after)
        self.history.append(seen)
        self._watch()
        return seen

    def diagnosis(self) -> Diagnosis:
        """What the last steps say; under control by layer, of the layer that is worst off."""
        if self.config.control == "global":
            return self._diagnose(None)
        order = ("oscillating", "saturated", "off target", "starting", "holding")
        each = [self._diagnose(layer) for layer in range(len(self._layers))]
        return min(each, key=lambda one: (order.index(one.state), -abs(one.mean - one.target)))

    def callback(self) -> "ControlCallback":
        """The controller as a callback of :func:`tradeoff.nn.fit.fit`."""
        return ControlCallback(self)

    def train(self, mode: bool = True) -> Self:
        """In training the threshold moves; in evaluation it is the mean of the last 100 steps."""
        super().train(mode)
        self._publish()
        return self

    def extra_repr(self) -> str:
        """How it controls."""
        return f"control={self.config.control!r}, layers={len(self._layers)}"

    @torch.no_grad()
    def _publish(self) -> None:
        """Write the thresholds into the routers."""
        values = self.law.threshold if self.training else self.law.frozen
        for layer, value in zip(self._layers, values.expand(len(self._layers)), strict=True):
            router = layer.router
            assert isinstance(router, TopP)
            if router.threshold.dtype in (torch.bfloat16, torch.float16):
                router.threshold = router.threshold.float()  # three digits are too few to control
            router.threshold.copy_(value)

    def _observe(self, tally: Tally, before: tuple[float, ...], after: Tensor) -> Observation:
        slots, tokens = tally.slots.tolist(), tally.tokens.tolist()
        per_slot = [expert_flops(layer, 1) for layer in self._layers]
        limits = (after <= self.law.lowest) | (after >= HIGHEST)
        return Observation(
            active=float(tally.active.nanmean()),
            spread=float(tally.spread.nanmean()),
            target=self.target_active,
            per_layer=tuple(tally.active.tolist()),
            threshold=before,
            at_limit=tuple(limits.tolist()),
            truncated=int(tally.truncated.sum()) / sum(tokens),
            flops=sum(map(int.__mul__, per_slot, slots)),
            top_k_flops=self.target_active * sum(map(int.__mul__, per_slot, tokens)),
        )

    def _diagnose(self, layer: int | None) -> Diagnosis:
        seen = [one for one in list(self.history)[-WINDOW:] if one.target == self.target_active]
        active = [one.active if layer is None else one.per_layer[layer] for one in seen]
        limits = [one.at_limit[layer or 0] for one in seen]
        known = [(a, limit) for a, limit in zip(active, limits, strict=True) if not math.isnan(a)]
        return diagnose([a for a, _ in known], [limit for _, limit in known], self.target_active, layer)

    def _watch(self) -> None:
        """Warn once when the count begins to swing."""
        if len(self.history) % (WINDOW // 5):
            return
        found = self.diagnosis()
        if found.state == "oscillating" and not self._oscillates:
            warnings.warn(f"the controller is {found}", ControlWarning, stacklevel=3)
        self._oscillates = found.state == "oscillating"


class ControlCallback(Callback):
    """Steps a controller after each step of the optimizer, and keeps its history over an interruption."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller

    def on_step_end(self, state: FitState) -> None:
        """Move the threshold."""
        self.controller.step()

    def state_dict(self) -> dict[str, Any]:
        """The history; thresholds and sums are buffers of the model."""
        return {"history": [asdict(one) for one in self.controller.history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a history."""
        self.controller.history.clear()
        for one in state["history"]:
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in one.items()
            }
            self.controller.history.append(Observation(**values))


def _publish(controller: Controller, keys: object) -> None:
    """After a checkpoint was loaded: the routers follow the state of the controller."""
    controller._publish()


def _controllable(model: nn.Module) -> tuple[MoE, ...]:
    if isinstance(getattr(model, "moe_controller", None), nn.Module):
        raise ControlError("the model has a controller already: model.moe_controller")
    layers = [m for m in model.modules() if isinstance(m, MoE) and isinstance(m.router, TopP)]
    if not layers:
        raise ControlError("no layer has a router with a threshold: MoEConfig(router='dtop_p')")
    sizes = sorted({layer.config.experts for layer in layers})
    if len(sizes) > 1:
        raise ControlError(
            f"layers of {' and '.join(map(str, sizes))} experts; one controller needs equal ones"
        )
    return tuple(layers)
