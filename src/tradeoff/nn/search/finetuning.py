"""After a choice was made: batch statistics of the new activations, and training with teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from tradeoff.nn.fit import Callback, FitConfig, History, Indexable, TrainingDiverged, fit
from tradeoff.nn.keep_best import KeepBest
from tradeoff.nn.losses import distillation, frozen_copy
from tradeoff.nn.polynomial import StraightThroughQuadratic, locate_divergence
from tradeoff.nn.search.gates import GroupedActivation

DAMPING = "a smaller scale, clip or ramp_steps"
BATCH = 256


@torch.no_grad()
def recalibrate(network: nn.Module, train: Indexable, images: int = 2048) -> None:
    """Measure the statistics of all batch normalizations anew: another activation gives other ones.

    Args:
        network: changed in place.
        train: its first ``images`` are run.
    """
    count = min(images, len(train))
    batches = torch.split(torch.arange(count), BATCH)
    device = next(network.parameters(), torch.empty(0)).device
    update_bn((train[part][0] for part in batches if len(part) > 1), network, device=device)


def finetune(
    network: nn.Module,
    train: Indexable,
    validation: Indexable | None,
    config: FitConfig,
    *,
    teacher: nn.Module | None = None,
    temperature: float = 4.0,
    multiplier: float = 1.0,
    checkpoint: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train a network whose architecture is fixed, in place; the epoch of best validation accuracy is kept.

    The numbers of quadratics get no weight decay.

    Args:
        teacher: whose outputs are distilled beside the labels, such as the network with all its ReLUs.
        temperature: of the distillation.
        multiplier: of the learning rate of the quadratics' numbers.
        checkpoint: folder to resume from and to write to.

    Raises:
        PolynomialDivergence: values became infinite or NaN; it names the site.
    """
    guide = None if teacher is None else frozen_copy(teacher)

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = model(inputs)
        total = functional.cross_entropy(outputs, targets)
        if guide is not None:
            with torch.no_grad():
                expected = guide(inputs)
            total = total + distillation(outputs, expected, temperature)
        return checked(total, network, inputs)

    best = KeepBest(lambda state: state.logs.get("validation_accuracy"))
    history = fit(
        network,
        train,
        validation,
        config,
        loss=loss,
        parameter_groups=polynomial_group(network, config, multiplier),
        callbacks=[best, *callbacks],
        checkpoint=checkpoint and checkpoint / "finetuning.safetensors",
    )
    best.restore(network)
    return history


def polynomial_group(network: nn.Module, config: FitConfig, multiplier: float) -> list[dict[str, object]]:
    """The parameter group of the quadratics: without weight decay, and with a multiple of the rates."""
    found = [m.weights for m in network.modules() if isinstance(m, StraightThroughQuadratic)]
    trained = [weights for weights in found if weights.requires_grad]
    rates = {
        "learning_rate": multiplier * config.learning_rate,
        "final_learning_rate": multiplier * config.final_learning_rate,
    }
    return [{"params": trained, "weight_decay": 0.0, **rates}] if trained else []


def checked(loss: Tensor, network: nn.Module, inputs: Tensor) -> Tensor:
    """The loss, if it is finite.

    Raises:
        PolynomialDivergence: it is not, and a quadratic is where values stopped being finite.
        TrainingDiverged: it is not, in a network without quadratics.
    """
    if torch.isfinite(loss):
        return loss
    kinds = (StraightThroughQuadratic, GroupedActivation)
    if any(isinstance(module, kinds) for module in network.modules()):
        raise locate_divergence(network, inputs, kinds, DAMPING)
    raise TrainingDiverged(f"the loss is {loss.item()}; lower the learning rate or clip gradients")
