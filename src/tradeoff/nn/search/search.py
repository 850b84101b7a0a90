"""The search: weights on one half of the training split, architecture parameters on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn.checkpoint import claim_folder, weights_digest
from tradeoff.nn.fit import Callback, FitConfig, FitState, History, Indexable, fit
from tradeoff.nn.latency import LatencyModel, NetworkLatency
from tradeoff.nn.plan import Plan, trace
from tradeoff.nn.search.architecture import (
    Architecture,
    apply_to_plan,
    architecture_of,
    discretize,
    finalize,
    gates,
    insert_gates,
)
from tradeoff.nn.search.bilevel import ArchitectureConfig, ArchitectureStep
from tradeoff.nn.search.cost import SiteCosts, site_costs
from tradeoff.nn.search.finetuning import checked, finetune, polynomial_group, recalibrate
from tradeoff.nn.search.gates import GateConfig
from tradeoff.nn.surgery import with_relus


@dataclass(frozen=True)
class Part:
    """Some positions of a split, as a split."""

    split: Indexable
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        return self.split[self.positions[index]]


def halves(split: Indexable, seed: int = 0) -> tuple[Part, Part]:
    """Two disjoint halves of a split, drawn at random."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    middle = (len(order) + 1) // 2
    return Part(split, order[:middle]), Part(split, order[middle:])


class LatencySearch:
    """A network with gates, what its choices cost, and the training that makes them.

    The loss is ``cross-entropy + penalty * latency in milliseconds``, the latency that of the mixture.

    Args:
        model: trained; it is left as it is. Its ReLU6 and SiLU become ReLU.
        latency: what an architecture costs.
        input_shape: of one image, without the batch.
        penalty: loss of a millisecond (lambda of the papers, which is tied to their unit).
        config: what sites may become.
        architecture: how choices are trained.

    Raises:
        NoSearchableSites: there is nothing to choose.
        UntraceableModel: naming the call that torch.fx cannot follow.
        MissingLatency: the latency model does not know an operator of the network.
        ValueError: the penalty is negative.
    """

    def __init__(
        self,
        model: nn.Module,
        latency: LatencyModel,
        input_shape: tuple[int, ...],
        penalty: float,
        config: GateConfig | None = None,
        architecture: ArchitectureConfig | None = None,
    ) -> None:
        if not penalty >= 0:
            raise ValueError(f"the penalty of a millisecond must not be negative, got {penalty}")
        self.model = with_relus(model, input_shape)
        self.latency = latency
        self.input_shape = tuple(input_shape)
        self.penalty = penalty
        self.config = config or GateConfig()
        self.architecture_config = architecture or ArchitectureConfig()
        self.network = insert_gates(self.model, self.input_shape, self.config)
        self.plan: Plan = trace(self.model, self.input_shape)
        self.costs: SiteCosts = site_costs(self.plan, self.network, latency)

    def fit(
        self,
        train: Indexable,
        config: FitConfig,
        *,
        checkpoint: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> History:
        """Search; the result is what the gates of :attr:`network` choose.

        Args:
            train: split, of which one half trains the weights and the other the choices.
            config: of the weights.
            checkpoint: folder to resume from and to write to.

        Returns:
            The history; each epoch has ``latency`` (of the hard choice, in seconds) and ``relu_sites``.

        Raises:
            PolynomialDivergence: values became infinite or NaN; it names the site.
            CheckpointMismatch: ``checkpoint`` holds another search.
        """
        if checkpoint is not None:
            claim_folder(checkpoint, self._settings())
        ours, held_out = halves(train, config.seed)
        step = ArchitectureStep(
            [gate.alpha for gate in gates(self.network).values()],
            held_out,
            ours,
            self.objective,
            self.training_objective,
            self.architecture_config,
            self._set_temperature,
        )
        return fit(
            self.network,
            ours,
            None,
            config,
            loss=self.training_objective,
            parameter_groups=polynomial_group(self.network, config, self.config.learning_rate_multiplier),
            callbacks=[step, _Record(self), *callbacks],
            checkpoint=checkpoint and checkpoint / "search.safetensors",
        )

    def training_objective(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy: what the weights minimize."""
        return checked(functional.cross_entropy(model(inputs), targets), self.network, inputs)

    def objective(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy and the latency's penalty: what the choices minimize."""
        loss = self.training_objective(model, inputs, targets)
        return loss + self.penalty * 1e3 * self.costs.expected(model) if self.penalty else loss

    def architecture(self) -> Architecture:
        """What the gates choose now."""
        return architecture_of(self.network)

    def hard_plan(self, architecture: Architecture | None = None) -> Plan:
        """The plan of an architecture, for costs; of the present one if not given."""
        return apply_to_plan(self.plan, architecture or self.architecture())

    def hard_latency(self, architecture: Architecture | None = None) -> NetworkLatency:
        """The latency of an architecture, operator by operator: the sum over operators, nothing soft."""
        return self.latency.network(self.hard_plan(architecture))

    def discretize(self, architecture: Architecture | None = None) -> nn.Module:
        """The network of an architecture, with what the search trained; of the present one if not given."""
        return discretize(self.network, architecture)

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
        """The network of an architecture, ready to run: batch statistics, finetuning, plain modules.

        Args:
            train: the whole training split.
            validation: chooses among the ends of epochs; None keeps the last.
            config: of the finetuning.
            architecture: the present choice if not given.
            distill: learn from the outputs of the network with all its ReLUs, too.
            checkpoint: folder to resume from and to write to.

        Raises:
            PolynomialDivergence: values became infinite or NaN; it names the site.
        """
        network = self.discretize(architecture)
        recalibrate(network, train)
        finetune(
            network,
            train,
            validation,
            config,
            teacher=self.model if distill else None,
            multiplier=self.config.learning_rate_multiplier,
            checkpoint=checkpoint,
            callbacks=callbacks,
        )
        return finalize(network, self.input_shape)

    def _set_temperature(self, temperature: float) -> None:
        for gate in gates(self.network).values():
            gate.temperature = temperature

    def _settings(self) -> dict[str, Any]:
        """What a search depends on beside the configuration of the training, which checkpoints compare."""
        return {
            "model": weights_digest(self.model.state_dict()),
            "latency": self.latency.name,
            "floor": self.costs.floor,
            "penalty": self.penalty,
            "gates": self.config.model_dump(mode="json"),
            "architecture": self.architecture_config.model_dump(mode="json"),
        }


class _Record(Callback):
    """Adds the latency of the hard choice to each epoch of the history."""

    def __init__(self, search: LatencySearch) -> None:
        self.search = search

    def on_epoch_end(self, state: FitState) -> None:
        state.logs["latency"] = self.search.hard_latency().seconds
        state.logs["relu_sites"] = self.search.architecture().relu_sites
