"""The two routes to a sparse network: train and prune, or sparse from the first step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field
from torch import nn

from tradeoff.nn.checkpoint import claim_folder, weights_digest
from tradeoff.nn.fit import (
    Callback,
    FitConfig,
    FitState,
    History,
    Indexable,
    Loss,
    cross_entropy,
    evaluate,
    fit,
)
from tradeoff.nn.keep_best import KeepBest
from tradeoff.nn.masks import (
    ADMM,
    SLR,
    FlopMeter,
    MaskSet,
    SparseRule,
    SparseTraining,
    active_counts,
    fit_sparse,
    maskable_weights,
)
from tradeoff.nn.masks.densities import Distribution
from tradeoff.nn.masks.mask_set import as_buffers

Score = Callable[[nn.Module, Any], float]
"""``score(model, split)``: what a validation split chooses the best epoch by; higher is better."""

SETTINGS = FitConfig(epochs=30, batch_size=512, learning_rate=0.1, momentum=0.9)
"""SGD with a cosine, as for node classification in the published code; its epochs are replaced."""


@dataclass
class Report:
    """A trained network and what it took.

    Attributes:
        accuracy: score of the best epoch on the validation split; None without one.
        masks: where its weights are; None for a dense one.
        density: part of the maskable weights that is active.
        train_flops: operations of the training, without what happened to the model before.
        steps, growth_steps: optimizer steps, and those that needed the gradient of inactive weights.
        training_sparsity: part of the weights that was inactive, over all steps.
        itop_rate: part of the weights that was active at some time.
        history: of all phases.
    """

    model: nn.Module
    accuracy: float | None
    masks: MaskSet | None
    density: float
    train_flops: int
    training_sparsity: float
    itop_rate: float
    steps: int
    growth_steps: int
    history: History = field(repr=False)


@dataclass(frozen=True)
class Objective:
    """What is trained, and what a validation split chooses the best epoch by.

    Attributes:
        parameter_groups: of a model, as :func:`tradeoff.nn.fit.fit` takes them.
    """

    loss: Loss = field(default_factory=cross_entropy)
    score: Score = evaluate
    parameter_groups: Callable[[nn.Module], Sequence[Mapping[str, Any]]] = lambda model: ()

    def on(self, validation: Indexable | None) -> Callable[[FitState], float | None]:
        """The score of each epoch on a validation split, written to its history; None without a split."""

        def score(state: FitState) -> float | None:
            if validation is None:
                return None
            state.logs["validation"] = self.score(state.model, validation)
            return state.logs["validation"]

        return score


class DenseTrainer:
    """Training with all weights, to compare with and to prune from.

    Args:
        model: trained in place; it ends with the weights of the epoch of best validation score.
    """

    def __init__(self, model: nn.Module, objective: Objective | None = None) -> None:
        self.model, self.objective = model, objective or Objective()

    def fit(
        self,
        train: Indexable,
        validation: Indexable | None,
        config: FitConfig = SETTINGS,
        *,
        epochs: int | None = None,
        checkpoint: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Report:
        """Train; see :meth:`SparseTrainer.fit` for the arguments."""
        _claim(checkpoint, self.model, {})
        best = KeepBest(self.objective.on(validation))
        file = checkpoint and checkpoint / "training.safetensors"
        with FlopMeter(self.model) as meter:
            history = fit(
                self.model,
                train,
                None,
                _with_epochs(config, epochs),
                loss=self.objective.loss,
                parameter_groups=self.objective.parameter_groups(self.model),
                callbacks=[meter, best, *callbacks],
                checkpoint=file,
            )
        best.restore(self.model)
        return _report(self.model, best.value, None, meter, history)


class SparseTrainer:
    """Train with few weights from the first step on, by a rule that moves them.

    Args:
        model: its weights are masked at once, and trained in place.
        rule: ``Static``, ``SET``, ``RigL`` or another of :mod:`tradeoff.nn.masks`.
        objective: cross-entropy and accuracy when not given.
        exempt: names of weights that stay dense.
        seed: of the first masks, of random growth and of ties.

    Raises:
        InfeasibleDensity: a layer would keep no weight.
        MaskError: the model has no weight to mask.

    Example::

        rule = RigL(density=0.03, update_every=20, drop=0.5, rescale=True)
        report = SparseTrainer(model, rule).fit(train, validation, epochs=30)
        report.accuracy, report.density, report.train_flops, report.itop_rate
    """

    def __init__(
        self,
        model: nn.Module,
        rule: SparseRule,
        objective: Objective | None = None,
        *,
        exempt: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.model, self.rule, self.objective = model, rule, objective or Objective()
        self.training = SparseTraining.start(model, rule, exempt=exempt, seed=seed)

    def fit(
        self,
        train: Indexable,
        validation: Indexable | None,
        config: FitConfig = SETTINGS,
        *,
        epochs: int | None = None,
        checkpoint: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Report:
        """Train, and leave the model with the weights and masks of the epoch of best validation score.

        Args:
            train: gives ``(inputs, targets)`` for positions, as :func:`tradeoff.nn.fit.fit` takes it.
            validation: chooses the epoch; None keeps the last. Never the test split.
            config: optimizer, batch, schedule.
            epochs: in place of the configuration's.
            checkpoint: folder to go on from and to write to.

        Raises:
            CheckpointMismatch: ``checkpoint`` holds another training.
        """
        rule = [type(self.rule).__name__, self.rule.model_dump(mode="json")]
        _claim(checkpoint, self.model, {"rule": rule, "seed": self.training.seed})
        return _fit_masked(
            self.training,
            self.objective,
            train,
            validation,
            _with_epochs(config, epochs),
            checkpoint,
            callbacks,
        )


class Splitting(pydantic.BaseModel):
    """How a dense network is drawn toward a sparse one before it is pruned.

    Attributes:
        kind: ``admm``, or ``slr`` for surrogate Lagrangian relaxation.
        rho: weight of the penalty.
        sigma: first step size of SLR.
        period: epochs after which the learning rate starts anew, a tenth of it in each third, as in the
            published code (9); None leaves the configuration's schedule.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    kind: Literal["admm", "slr"]
    rho: float = Field(default=0.02, gt=0)
    sigma: float = Field(default=0.02, gt=0)
    period: int | None = Field(default=None, ge=1)

    def start(self, model: nn.Module, counts: Mapping[str, int]) -> ADMM:
        """The state that goes with a model's training."""
        if self.kind == "slr":
            return SLR(model, counts, self.rho, sigma=self.sigma)
        return ADMM(model, counts, self.rho)


class PruneTrainer:
    """Prune a trained network by magnitude: at once, or after a training toward sparsity; then retrain it.

    Args:
        model: trained with all its weights; changed in place.
        density: part of the maskable weights to keep.
        splitting: SLR or ADMM before the weights are cut; None cuts at once.
        init: how the kept weights are shared out over layers.
        objective: cross-entropy and accuracy when not given.
        exempt: names of weights that stay dense.

    Raises:
        InfeasibleDensity: a layer would keep no weight.
        MaskError: the model has no weight to mask.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float,
        splitting: Splitting | None = None,
        objective: Objective | None = None,
        *,
        init: Distribution = "uniform",
        exempt: Sequence[str] = (),
    ) -> None:
        self.model, self.splitting, self.objective = model, splitting, objective or Objective()
        shapes = {name: weight.shape for name, weight in maskable_weights(model, exempt).items()}
        self.counts = active_counts(shapes, density, init)

    def fit(
        self,
        train: Indexable,
        validation: Indexable | None,
        reweighting: FitConfig | None = None,
        retraining: FitConfig | None = None,
        *,
        checkpoint: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Report:
        """Train toward sparsity if there is a splitting, cut, and retrain what is left.

        Args:
            train, validation: as of :meth:`SparseTrainer.fit`.
            reweighting: of the training toward sparsity; needed with a splitting.
            retraining: of the masked training after the cut; None for none.
            checkpoint: folder to go on from and to write to.

        Raises:
            ValueError: a splitting without ``reweighting``, or the reverse.
        """
        if (self.splitting is None) != (reweighting is None):
            raise ValueError("a splitting and the configuration of its training go together")
        splitting = self.splitting and self.splitting.model_dump()
        _claim(checkpoint, self.model, {"counts": self.counts, "splitting": splitting})
        history, meter = History(), FlopMeter(self.model)
        if self.splitting is not None and reweighting is not None:
            history, meter = self._reweight(self.splitting, train, reweighting, checkpoint, callbacks)
        weights = maskable_weights(self.model)
        masks = MaskSet.project({name: weights[name] for name in self.counts}, self.counts)
        training = SparseTraining(self.model, masks)
        if retraining is None:
            accuracy = None if validation is None else self.objective.score(self.model, validation)
            return _report(self.model, accuracy, training, meter, history)
        folder = checkpoint and checkpoint / "retraining"
        report = _fit_masked(training, self.objective, train, validation, retraining, folder, callbacks)
        return _joined(meter, history, report)

    def _reweight(
        self,
        splitting: Splitting,
        train: Indexable,
        config: FitConfig,
        checkpoint: Path | None,
        callbacks: Sequence[Callback],
    ) -> tuple[History, FlopMeter]:
        state = splitting.start(self.model, self.counts)
        schedule = [] if splitting.period is None else [PeriodicDecay(splitting.period)]
        with state.in_state_dict(), FlopMeter(self.model) as meter:
            history = fit(
                self.model,
                train,
                None,
                config,
                loss=state.loss(self.objective.loss),
                parameter_groups=self.objective.parameter_groups(self.model),
                callbacks=[*schedule, meter, state, *callbacks],
                checkpoint=checkpoint and checkpoint / "reweighting.safetensors",
            )
        return history, meter


class PeriodicDecay(Callback):
    """The published code's learning rate while reweighting: divided by ten each third of a period.

    Args:
        epochs: of a period; the next one starts at the full rate again.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_step_begin(self, state: FitState) -> None:
        third = state.epoch % self.epochs * 3 // self.epochs
        for group in state.optimizer.param_groups:
            group["lr"] = group["base_lr"] / 10**third


def _claim(folder: Path | None, model: nn.Module, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds a training of another start or other settings."""
    if folder is not None:
        claim_folder(folder, {"model": weights_digest(model.state_dict()), **settings})


def _fit_masked(
    training: SparseTraining,
    objective: Objective,
    train: Indexable,
    validation: Indexable | None,
    config: FitConfig,
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
) -> Report:
    best = KeepBest(objective.on(validation))
    with FlopMeter(training.model, training) as meter:
        history = fit_sparse(
            training,
            train,
            None,
            config,
            loss=objective.loss,
            parameter_groups=objective.parameter_groups(training.model),
            callbacks=[meter, best, *callbacks],
            checkpoint=checkpoint and checkpoint / "training.safetensors",
        )
    # Masks were part of the state; counters, such as the visits of each position, stay the whole training's.
    with as_buffers(training.model, "mask", training.masks):
        best.restore(training.model)
    return _report(training.model, best.value, training, meter, history)


def _with_epochs(config: FitConfig, epochs: int | None) -> FitConfig:
    return config if epochs is None else config.model_copy(update={"epochs": epochs, "steps": None})


def _report(
    model: nn.Module,
    accuracy: float | None,
    training: SparseTraining | None,
    meter: FlopMeter,
    history: History,
) -> Report:
    active = sum(training.counts.values()) if training else 0
    return Report(
        model=model,
        accuracy=accuracy,
        masks=training.masks.clone() if training else None,
        density=active / training.masks.size if training else 1.0,
        train_flops=meter.total,
        training_sparsity=meter.training_sparsity,
        itop_rate=training.itop_rate if training else 1.0,
        steps=meter.steps,
        growth_steps=training.growth_steps if training else 0,
        history=history,
    )


def _joined(meter: FlopMeter, history: History, report: Report) -> Report:
    """The report of a masked retraining, with the phase before it counted in."""
    steps = meter.steps + report.steps
    report.train_flops += meter.total
    if steps:
        # All phases meet the same weights, so steps are what weighs their sparsities.
        report.training_sparsity *= report.steps / steps
    report.steps = steps
    report.history = History([*history.epochs, *report.history.epochs])
    return report
