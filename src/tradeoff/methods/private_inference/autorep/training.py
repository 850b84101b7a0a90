"""The training of AutoReP: weights, polynomials and scores together, under a budget of ReLUs."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.core.errors import TradeoffError
from tradeoff.nn.checkpoint import claim_folder, weights_digest
from tradeoff.nn.fit import Callback, FitConfig, FitState, History, Indexable, fit
from tradeoff.nn.keep_best import KeepBest
from tradeoff.nn.losses import distillation, frozen_copy, over_budget
from tradeoff.nn.polynomial import locate_divergence

from .replacement import (
    SiteCount,
    density,
    excess_flips,
    finalize,
    freeze,
    project,
    relu_count,
    relu_table,
    replace_relus,
    restore,
    set_positions,
    sites,
    total_count,
)
from .site import ReplaceableReLU, ReplacementConfig


class AutoReP:
    """Cut the ReLUs of a trained network to a budget (Peng et al., ICCV 2023).

    Two phases: *replacement* trains weights, polynomials and scores on

        cross-entropy + distillation + penalty * max(0, kept / total - budget / total),

    then what is still above the budget is dropped (smallest scores first), or what it leaves unused comes
    back (largest scores first), and *finetuning* goes on with the positions fixed.

    Args:
        model: trained, with ReLUs; it is left as it is.
        budget: ReLUs per image to keep at most.
        input_shape: of one image, without the batch.
        config: what replaces a ReLU; see :class:`ReplacementConfig`.
        penalty: weight of the budget in the loss (lambda in the paper: 80 to 240; larger is faster).
        teacher: whose outputs are distilled: ``self`` for the given model, a module, or None for none.
        temperature: of the distillation.
        positions: fixed masks per site in place of learned ones, as the baselines use.
        seed: of the scores' start.

    Raises:
        InvalidBudget: the budget is negative or not an integer.
        NoReLUSites: the model has no ReLU.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 1, 4, 4), torch.arange(64) % 2)
        >>> method = AutoReP(network, budget=4, input_shape=(1, 4, 4), penalty=1000.0)
        >>> replacement = FitConfig(epochs=8, batch_size=8, optimizer="adam", learning_rate=0.001)
        >>> history = method.fit(data, None, replacement, replacement, score_learning_rate=0.1)
        >>> relu_count(method.finalize(), (1, 4, 4)) <= 4
        True
    """

    def __init__(
        self,
        model: nn.Module,
        budget: int,
        input_shape: tuple[int, ...],
        config: ReplacementConfig | None = None,
        *,
        penalty: float = 10.0,
        teacher: nn.Module | Literal["self"] | None = "self",
        temperature: float = 4.0,
        positions: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.budget = check_budget(budget)
        self.input_shape = tuple(input_shape)
        self.config = config or ReplacementConfig()
        self.penalty = penalty
        self.temperature = temperature
        source = model if teacher == "self" else teacher
        self.teacher = None if source is None else frozen_copy(source)
        self.network = replace_relus(model, input_shape, self.config, seed=seed)
        self.total = total_count(self.network)
        if self.budget > self.total:
            warnings.warn(
                f"the budget of {self.budget} ReLUs exceeds the {self.total} that the network has: "
                "nothing will be replaced",
                stacklevel=2,
            )
        if positions is not None:
            set_positions(self.network, positions)

    def fit(
        self,
        train: Indexable,
        validation: Indexable | None,
        replacement: FitConfig,
        finetuning: FitConfig | None = None,
        *,
        score_learning_rate: float | None = None,
        checkpoint: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> History:
        """Run both phases; the result is :attr:`network`.

        Args:
            train: training split.
            validation: chooses among the ends of epochs that meet the budget; None keeps the last.
            replacement: of the first phase (paper: Adam, 0.001 to 1e-5 by cosine, 200 epochs of batch 128).
            finetuning: of the second; by default one epoch at a tenth of the learning rate if ReLUs were
                dropped or came back after the first, else none.
            score_learning_rate: constant rate of the scores; by default that of ``replacement``. Runs of few
                steps need 5 to 20 times more, since a score has to fall from 0.5 on average.
            checkpoint: folder to resume from and to write to.
            callbacks: of :func:`tradeoff.nn.fit.fit`.

        Returns:
            The history of both phases; each epoch has ``relu_count``, ``density``, ``flips``.

        Raises:
            PolynomialDivergence: values became infinite or NaN.
            CheckpointMismatch: ``checkpoint`` holds a training of another network, budget or configuration.
        """
        if self.budget >= self.total:
            return History()
        if checkpoint is not None:
            claim_folder(checkpoint, self._settings(score_learning_rate))
        best = KeepBest(self._validation_accuracy)
        callbacks = [_Record(self.network), best, *callbacks]
        history = History()
        if any(site.selecting for site in sites(self.network).values()):
            history = self._phase(
                train,
                validation,
                replacement,
                callbacks,
                checkpoint and checkpoint / "replacement.safetensors",
                score_learning_rate,
            )
            changed = self.project() or restore(self.network, self.budget)
            if finetuning is None and changed:
                finetuning = _one_epoch_more(replacement)
        elif finetuning is None:
            finetuning = replacement
        freeze(self.network)
        if finetuning is not None:
            path = checkpoint and checkpoint / "finetuning.safetensors"
            history.epochs += self._phase(train, validation, finetuning, callbacks, path).epochs
        best.restore(self.network)
        freeze(self.network)
        return history

    def _validation_accuracy(self, state: FitState) -> float | None:
        """Of an epoch whose end meets the budget."""
        met = relu_count(self.network) <= self.budget
        return state.logs.get("validation_accuracy") if met else None

    def _settings(self, score_learning_rate: float | None) -> dict[str, Any]:
        """What a training depends on beside the two :class:`FitConfig`, which checkpoints compare."""
        teacher = self.teacher and weights_digest(self.teacher.state_dict())
        return {
            "budget": self.budget,
            "config": self.config.model_dump(mode="json"),
            "network": weights_digest(self.network.state_dict()),
            "penalty": self.penalty,
            "score_learning_rate": score_learning_rate,
            "teacher": teacher,
            "temperature": self.temperature,
        }

    def _phase(
        self,
        train: Indexable,
        validation: Indexable | None,
        config: FitConfig,
        callbacks: Sequence[Callback],
        checkpoint: Path | None,
        score_learning_rate: float | None = None,
    ) -> History:
        return fit(
            self.network,
            train,
            validation,
            config,
            loss=self.loss,
            parameter_groups=self._parameter_groups(config, score_learning_rate),
            callbacks=callbacks,
            checkpoint=checkpoint,
        )

    def _parameter_groups(self, config: FitConfig, score_learning_rate: float | None) -> list[dict[str, Any]]:
        """Scores and coefficients without weight decay; the rest follows the configuration."""
        found = sites(self.network).values()
        scores = [site.gate.scores for site in found if site.selecting]
        coefficients = [site.coefficients for site in found if site.coefficients.requires_grad]
        groups: list[dict[str, Any]] = []
        if scores:
            rate = score_learning_rate or config.learning_rate
            groups.append(
                {"params": scores, "learning_rate": rate, "schedule": "constant", "weight_decay": 0.0}
            )
        if coefficients:
            groups.append({"params": coefficients, "weight_decay": 0.0})
        return groups

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the objective of the class's docstring for one batch."""
        outputs = model(inputs)
        total = functional.cross_entropy(outputs, targets)
        if self.teacher is not None:
            with torch.no_grad():
                expected = self.teacher(inputs)
            total = total + distillation(outputs, expected, self.temperature)
        if any(site.selecting for site in sites(self.network).values()):
            total = total + self.penalty * over_budget(density(self.network), self.budget / self.total)
        if not torch.isfinite(total):
            raise locate_divergence(self.network, inputs, (ReplaceableReLU,), "quad_scale or clip_c2")
        return total

    def project(self) -> int:
        """Drop the kept ReLUs of smallest score that exceed the budget, with a warning; return how many."""
        dropped = project(self.network, self.budget)
        if dropped:
            warnings.warn(
                f"the replacement phase ended {dropped} ReLUs above the budget of {self.budget}; those of "
                "smallest score were dropped (more steps or a larger penalty would let training choose)",
                stacklevel=3,
            )
        return dropped

    def finalize(self) -> nn.Module:
        """Return the compressed network of plain modules, in evaluation mode; the budget holds."""
        if self.budget < self.total:
            project(self.network, self.budget)
        return finalize(self.network).eval()

    def relu_count(self) -> int:
        """Return the ReLUs per image that are left."""
        return relu_count(self.network)

    def relu_table(self) -> list[SiteCount]:
        """Return ReLUs kept and in total per site."""
        return relu_table(self.network, self.input_shape)

    def excess_flips(self) -> int:
        """Return changes of the masks beyond those that their final state needs."""
        return excess_flips(self.network)


class InvalidBudget(TradeoffError, ValueError):
    """The budget is negative or not a whole number."""


def check_budget(budget: int) -> int:
    """Return the budget if it is one, else raise :class:`InvalidBudget`."""
    if isinstance(budget, bool) or not isinstance(budget, int):
        raise InvalidBudget(f"the budget is a number of ReLUs per image, not {budget!r}")
    if budget < 0:
        raise InvalidBudget(f"the budget must not be negative, got {budget}")
    return budget


def _one_epoch_more(config: FitConfig) -> FitConfig:
    return config.model_copy(update={"epochs": 1, "steps": None, "learning_rate": config.learning_rate / 10})


class _Record(Callback):
    """Adds counts and flips to each epoch of the history."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def on_epoch_end(self, state: FitState) -> None:
        kept = relu_count(self.network)
        state.logs["relu_count"] = kept
        state.logs["density"] = kept / total_count(self.network)
        state.logs["flips"] = sum(int(site.flips) for site in sites(self.network).values())
