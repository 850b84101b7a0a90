"""The search of PolyMPCNet: ReLU or quadratic, max or average pooling, under a latency in the loss."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tradeoff.nn.fit import Callback, FitConfig, History, Indexable, evaluate
from tradeoff.nn.latency import LatencyModel, NetworkLatency
from tradeoff.nn.search import Architecture, ArchitectureConfig, GateConfig, LatencySearch

LARGEST_EXPONENT = 308
"""Of a number in double precision, base 10."""


class PolyMPCNet:
    """Choose, for each activation and max pooling of a trained network, whether it stays or becomes cheap.

    Three steps: a *search* with a mixture of both at each site, under ``cross-entropy + penalty * latency``
    (weights on one half of the training split, choices on the other); *discretization*; and *finetuning* of
    what was chosen. A ReLU becomes a quadratic that starts as the identity, a max pooling an average pooling.

    Args:
        model: trained; it is left as it is.
        latency: what an architecture costs: :func:`tradeoff.data.devices.fpga_latency`, the two-party
            engine's ``EngineLatency``, or another :class:`tradeoff.nn.latency.LatencyModel`.
        input_shape: of one image, without the batch.
        penalty: loss of a millisecond (lambda); 0 searches for accuracy alone.
        gates: what sites may become and how quadratics start.
        architecture: how choices are trained; the published search takes Adam at 3e-4, second order.

    Raises:
        NoSearchableSites: there is nothing to choose.
        ValueError: the penalty is negative.

    Example:
        >>> from tradeoff.data.devices import fpga_latency
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 1, 4, 4), torch.arange(64) % 2)
        >>> steps = FitConfig(steps=4, batch_size=8, optimizer="adam", learning_rate=0.001)
        >>> eager = ArchitectureConfig(learning_rate=0.5)
        >>> method = PolyMPCNet(network, fpga_latency(), (1, 4, 4), penalty=1e6, architecture=eager)
        >>> history = method.search(data, steps)
        >>> method.architecture().choices["1"]
        ('poly',)
    """

    def __init__(
        self,
        model: nn.Module,
        latency: LatencyModel,
        input_shape: tuple[int, ...],
        penalty: float,
        gates: GateConfig | None = None,
        architecture: ArchitectureConfig | None = None,
    ) -> None:
        self._search = LatencySearch(model, latency, input_shape, penalty, gates, architecture)

    @property
    def network(self) -> nn.Module:
        """The network with gates, as it is trained by the search."""
        return self._search.network

    def search(
        self,
        train: Indexable,
        config: FitConfig,
        *,
        checkpoint: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> History:
        """Train weights and choices.

        Args:
            train: training split; one half is held out from the weights, for the choices.
            config: of the weights (paper: SGD, 0.025 to 0.001 by cosine, momentum 0.9, clipped at 5, 50
                epochs of batch 64).
            checkpoint: folder to resume from and to write to.
            callbacks: of :func:`tradeoff.nn.fit.fit`.

        Raises:
            PolynomialDivergence: values became infinite or NaN; it names the site.
            CheckpointMismatch: ``checkpoint`` holds another search.
        """
        return self._search.fit(train, config, checkpoint=checkpoint, callbacks=callbacks)

    def architecture(self) -> Architecture:
        """What is chosen now at each site."""
        return self._search.architecture()

    def latency(self, architecture: Architecture | None = None) -> NetworkLatency:
        """The modelled latency of an architecture, operator by operator; of the present one if not given."""
        return self._search.hard_latency(architecture)

    def relu_count(self, architecture: Architecture | None = None) -> int:
        """ReLUs of an image that are left."""
        return self._search.hard_plan(architecture).relu_count

    def finish(
        self,
        train: Indexable,
        validation: Indexable | None,
        config: FitConfig,
        *,
        architecture: Architecture | None = None,
        distill: bool = True,
        checkpoint: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> nn.Module:
        """Return the network of the choice, finetuned, of plain modules.

        Args:
            train: training split, all of it.
            validation: chooses among the ends of epochs; None keeps the last.
            config: of the finetuning (paper: SGD, 0.01 to 0.001, 100 epochs of batch 64 on CIFAR).
            architecture: another one than the present choice.
            distill: learn from the outputs of the given network, too.
            checkpoint: folder to resume from and to write to.

        Raises:
            PolynomialDivergence: values became infinite or NaN; it names the site.
        """
        return self._search.finish(
            train,
            validation,
            config,
            architecture=architecture,
            distill=distill,
            checkpoint=checkpoint,
            callbacks=callbacks,
        )


@dataclass(frozen=True)
class Point:
    """One network of a Pareto front.

    Attributes:
        penalty: it was searched with.
        architecture: what was chosen.
        network: finetuned, of plain modules.
        latency: modelled, operator by operator.
        relu_count: ReLUs of an image.
        accuracy: on the validation split.
    """

    penalty: float
    architecture: Architecture
    network: nn.Module
    latency: NetworkLatency
    relu_count: int
    accuracy: float


def pareto(
    model: nn.Module,
    latency: LatencyModel,
    input_shape: tuple[int, ...],
    penalties: Sequence[float],
    train: Indexable,
    validation: Indexable,
    search: FitConfig,
    finetuning: FitConfig,
    *,
    gates: GateConfig | None = None,
    architecture: ArchitectureConfig | None = None,
    checkpoint: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[Point]:
    """Search once for each penalty; larger ones give networks of lower latency.

    Args:
        checkpoint: folder with one subfolder a penalty, to resume from and to write to.

    Raises:
        ValueError: no penalty, or a negative one.
    """
    if not penalties:
        raise ValueError("a front needs at least one penalty")
    points = []
    for index, penalty in enumerate(penalties):
        folder = checkpoint and checkpoint / f"penalty-{index}"
        method = PolyMPCNet(model, latency, input_shape, penalty, gates, architecture)
        method.search(train, search, checkpoint=folder and folder / "search", callbacks=callbacks)
        network = method.finish(
            train, validation, finetuning, checkpoint=folder and folder / "finetuning", callbacks=callbacks
        )
        points.append(
            Point(
                penalty,
                method.architecture(),
                network,
                method.latency(),
                method.relu_count(),
                evaluate(network, validation),
            )
        )
    return points


@torch.no_grad()
def swap_magnitude(network: nn.Module, inputs: torch.Tensor) -> float:
    """Return the base-10 logarithm of the largest logit, in double precision: what a swap did to a network.

    Numbers beyond double precision count as 308.

    Args:
        network: just after its activations were swapped, batch statistics as they were.
        inputs: images.
    """
    result = copy.deepcopy(network).double().eval()(inputs.double()).abs().max()
    largest = float(result)
    if not math.isfinite(largest):
        return LARGEST_EXPONENT
    return math.log10(max(largest, 1e-300))
