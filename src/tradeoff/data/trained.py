"""Networks trained once and shared by the trials of a study: what every compression starts from."""

import json
import time
from pathlib import Path

import torch
from torch import nn

from tradeoff.core import Context
from tradeoff.core.context import Progress
from tradeoff.data.splits import ImageData
from tradeoff.nn.fit import Callback, FitConfig, FitState, fit
from tradeoff.nn.models import build, load_weights, save_weights
from tradeoff.nn.surgery import with_relus


class Advance(Callback):
    """Moves a progress bar with the steps of a training."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar

    def on_step_end(self, state: FitState) -> None:
        self.bar.advance()


def trained_base(
    arch: str, name: str, data: ImageData, config: FitConfig, seed: int, context: Context
) -> tuple[nn.Module, float]:
    """A seed's network, with ReLU in place of ReLU6 and SiLU, trained once for all trials of a run.

    Args:
        arch: of :data:`tradeoff.nn.models.ARCHITECTURES`.
        name: of the data, for the cache.
        data: to train on.
        config: of the training; its seed is replaced.
        seed: of the trial.
        context: of the trial: cache, device, progress.

    Returns:
        the network in evaluation mode, and the seconds that its training took.
    """
    config = config.model_copy(update={"seed": 3 * seed})
    torch.manual_seed(seed)
    network = with_relus(build(arch, data.num_classes, data.input_shape), data.input_shape)
    network.to(context.device)

    def train(folder: Path) -> None:
        started = time.perf_counter()
        with context.progress(None, "training the network with all ReLUs") as bar:
            checkpoint = context.work / "base.safetensors"
            fit(network, data.train, data.validation, config, callbacks=[Advance(bar)], checkpoint=checkpoint)
        save_weights(network, folder / "model.safetensors")
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - started))

    key = {"base": arch, "data": name, "fit": config.model_dump(mode="json"), "seed": seed}
    folder = context.cache(key, train)
    load_weights(network, folder / "model.safetensors")
    seconds: float = json.loads((folder / "seconds.json").read_text())
    return network.eval(), seconds
