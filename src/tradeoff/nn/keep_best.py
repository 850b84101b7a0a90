"""A callback that remembers the weights of the best epoch."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from tradeoff.nn.checkpoint import load_checkpoint, save_checkpoint
from tradeoff.nn.fit import Callback, FitState


class KeepBest(Callback):
    """Remembers the epoch of best validation accuracy; :meth:`restore` goes back to it.

    Args:
        network: whose weights are kept.
        file: keeps them over an interruption; None for memory only.
        eligible: asked at the end of an epoch whether its weights may be kept at all.
    """

    def __init__(
        self, network: nn.Module, file: Path | None = None, eligible: Callable[[], bool] = lambda: True
    ) -> None:
        self.network, self.file, self.eligible = network, file, eligible
        self.accuracy = -1.0
        self.weights: dict[str, Tensor] | None = None
        if file is not None and file.exists():
            self.weights, progress = load_checkpoint(file)
            self.accuracy = progress["accuracy"]

    def on_epoch_end(self, state: FitState) -> None:
        accuracy = state.logs.get("validation_accuracy", -1.0)
        if accuracy <= self.accuracy or not self.eligible():
            return
        self.accuracy = accuracy
        self.weights = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
        if self.file is not None:
            save_checkpoint(self.file, self.weights, {"accuracy": accuracy})

    def restore(self) -> None:
        """Load the best epoch's weights into the network; nothing if there was none."""
        if self.weights is not None:
            self.network.load_state_dict(self.weights)
