"""The weights of a training's best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tradeoff.nn.fit import Callback, FitState


class KeepBest(Callback):
    """Scores the model at the ends of epochs and remembers the weights of the highest score.

    They are part of the training's checkpoint: one that was interrupted goes on with the best it had. Of
    equal scores the first counts. One object may watch several trainings of a model in turn.

    Args:
        score: of the epoch that ends, for example of its ``logs``; None, or NaN, leaves the epoch out.

    Attributes:
        value: the best score; None before the first.
        epoch: that had it, from 1; 0 before the first.
    """

    def __init__(self, score: Callable[[FitState], float | None]) -> None:
        self.score = score
        self.value: float | None = None
        self.epoch = 0
        self._weights: dict[str, Tensor] = {}

    def on_epoch_end(self, state: FitState) -> None:
        value = self.score(state)
        if value is not None and value > (-math.inf if self.value is None else self.value):
            self.value, self.epoch = value, state.epoch
            self._weights = {name: t.detach().cpu().clone() for name, t in state.model.state_dict().items()}

    def restore(self, model: nn.Module) -> None:
        """Give the model the best epoch's weights; without any it keeps its own."""
        if self._weights:
            model.load_state_dict({name: self._weights[name] for name in model.state_dict()})

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value, self.epoch = state["value"], state["epoch"]

    def state_tensors(self) -> dict[str, Tensor]:
        return self._weights

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._weights = dict(tensors)
