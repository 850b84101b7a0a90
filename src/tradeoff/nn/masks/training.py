"""Training with masks: inactive weights stay exactly zero, and the masks move by a rule.

The work is done by hooks of the optimizer, so it goes with any training loop: after gradients were averaged
over processes and unscaled, before and after each step.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tradeoff.nn.checkpoint import CheckpointMismatch
from tradeoff.nn.fit import Callback, FitConfig, FitState, History, Indexable, fit

from .errors import MaskError
from .mask_set import MaskSet, as_buffers, keyed_generator
from .rules import DropAndGrow, Layer, SparseMomentum, SparseRule, drop_and_grow
from .weights import maskable_weights

_COUNTERS = ("steps", "updates", "growth_steps", "skipped")


class NonFiniteGradient(RuntimeWarning):
    """A mask update was skipped because a gradient was infinite or not a number."""


class SparseTraining:
    """Keeps a model's inactive weights at zero and, with a rule, moves its masks.

    Weights are masked at once. After :meth:`attach`, each ``optimizer.step()``

    1. notes the gradient at all positions, where the rule needs it, and zeroes it where the mask is false;
    2. steps;
    3. sets inactive weights to zero again; when an update is due, drops and grows, zeroes the optimizer's
       state (momentum, Adam's moments) of what is new or gone, and counts the visits of each position.

    Args:
        model: trained in place.
        masks: changed in place by the rule.
        rule: None, or a rule that is not :class:`DropAndGrow`, leaves the masks as they are.
        total_steps: optimizer steps of the whole training, from which a rule's schedule follows;
            :func:`fit_sparse` sets it.
        seed: of random growth and of the order in which ties are broken.

    Attributes:
        steps: optimizer steps done.
        updates: mask updates done.
        growth_steps: steps that needed the gradient of inactive weights.
        skipped: updates left out because a gradient was not finite.
        needed_dense_gradient: whether the last step did.
        visits: for each weight, the mask snapshots in which each position was active: the first, and one
            after each update.

    Raises:
        MaskError: the masks do not fit the model.

    Example:
        >>> import torch
        >>> from tradeoff.nn.masks import RigL, SparseTraining
        >>> model = torch.nn.Linear(64, 10)
        >>> rule = RigL(density=0.1, update_every=10)
        >>> training = SparseTraining.start(model, rule, total_steps=100)
        >>> training.attach(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    """

    def __init__(
        self,
        model: nn.Module,
        masks: MaskSet,
        rule: SparseRule | None = None,
        *,
        total_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.masks, self.seed = model, masks, seed
        self.rule = rule if isinstance(rule, DropAndGrow) else None
        self.total_steps = total_steps
        self.weights = masks.weights(model)
        self.counts = masks.counts()
        masks.apply(model)
        self.visits = {name: mask.to(torch.int32) for name, mask in masks.items()}
        self.momentum: dict[str, Tensor] = {}
        if isinstance(self.rule, SparseMomentum):
            self.momentum = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.steps = self.updates = self.growth_steps = self.skipped = 0
        self.needed_dense_gradient = False
        self._gradients: dict[str, Tensor] = {}
        self._ranks: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @classmethod
    def start(
        cls,
        model: nn.Module,
        rule: SparseRule,
        *,
        exempt: Sequence[str] = (),
        total_steps: int | None = None,
        seed: int = 0,
    ) -> "SparseTraining":
        """Begin sparse: draw random masks for the model as the rule says, and rescale its weights if it does.

        Args:
            exempt: names of weights that stay dense.

        Raises:
            MaskError: the model has no weights to mask.
            InfeasibleDensity: a layer would keep no weight.
        """
        weights = maskable_weights(model, exempt)
        masks = MaskSet.random(weights, rule.density, rule.init, seed)
        if rule.rescale:
            counts = masks.counts()
            with torch.no_grad():
                for name, weight in weights.items():
                    if counts[name] < weight.numel():
                        weight.mul_((weight.numel() / counts[name]) ** 0.5)
        return cls(model, masks, rule, total_steps=total_steps, seed=seed)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Act on each step of ``optimizer`` from now on, and no more on those of an earlier one.

        Raises:
            MaskError: the optimizer does not train the masked parameters themselves, or a rule is to follow a
                schedule and ``total_steps`` is not known.
        """
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if missing := [name for name, weight in self.weights.items() if id(weight) not in trained]:
            raise MaskError(
                f"the optimizer does not hold {missing[0]} of this model; make it from the model's own "
                "parameters, after the model is complete"
            )
        if self.rule is not None and self.total_steps is None:
            raise MaskError(f"{type(self.rule).__name__} needs total_steps for its schedule")
        self.detach()
        self._optimizer = optimizer
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def detach(self) -> None:
        """Leave the optimizer alone again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._optimizer = [], None

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """What :meth:`attach` was given last."""
        return self._optimizer

    @property
    def itop_rate(self) -> float:
        """Part of all positions that were active at some time (Liu et al., ICML 2021)."""
        ever = sum(int((visits > 0).sum()) for visits in self.visits.values())
        return ever / self.masks.size

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What must be stored to go on later, beside :meth:`state_dict`: kind -> name -> tensor."""
        kinds = {"mask": dict(self.masks), "visits": self.visits, "momentum": self.momentum}
        return {kind: tensors for kind, tensors in kinds.items() if tensors}

    @contextmanager
    def in_state_dict(self) -> Iterator[None]:
        """Let masks and counters be part of ``model.state_dict()`` inside the block."""
        with ExitStack() as stack:
            for kind, tensors in self.tensors().items():
                stack.enter_context(as_buffers(self.model, kind, tensors))
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, and what must be equal for them to be continued, as JSON values."""
        return {"settings": self._settings(), **{name: getattr(self, name) for name in _COUNTERS}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            CheckpointMismatch: it is of a training with another rule, seed, length or other numbers of
                weights.
        """
        if state["settings"] != (mine := self._settings()):
            different = sorted(key for key in mine if state["settings"].get(key) != mine[key])
            raise CheckpointMismatch(
                f"the checkpoint is of another sparse training ({', '.join(different)} differ)"
            )
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def _settings(self) -> dict[str, Any]:
        return {
            "rule": self.rule and [type(self.rule).__name__, self.rule.model_dump(mode="json")],
            "seed": self.seed,
            "active weights": self.counts,
            "total steps": self.total_steps,
        }

    @property
    def _due(self) -> bool:
        return self.rule is not None and self.rule.due(self.steps + 1, self.total_steps or 0)

    def _moved(self, name: str, step: int) -> int:
        assert self.rule is not None
        return self.rule.moved(self.counts[name], self.masks[name].numel(), step, self.total_steps or 0)

    @torch.no_grad()
    def _before_step(self) -> None:
        self.needed_dense_gradient = self._needs_dense_gradient()
        if self.needed_dense_gradient:
            self.growth_steps += 1
            self._gradients = {name: self._gradient(name).clone() for name in self.weights}
            if isinstance(self.rule, SparseMomentum) and self._finite():
                for name, momentum in self.momentum.items():
                    momentum.mul_(self.rule.decay).add_(self._gradients[name])
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(~self.masks[name], 0)

    def _gradient(self, name: str) -> Tensor:
        gradient = self.weights[name].grad
        if gradient is None:
            raise MaskError(f"{name} has no gradient: call backward() before optimizer.step()")
        return gradient

    def _finite(self) -> bool:
        return all(bool(torch.isfinite(gradient).all()) for gradient in self._gradients.values())

    def _needs_dense_gradient(self) -> bool:
        rule, step = self.rule, self.steps + 1
        if rule is None or rule.gradients == "never":
            return False
        if rule.gradients == "always":
            return step < rule.end * (self.total_steps or 0)
        return self._due and any(self._moved(name, step) for name in self.masks)

    @torch.no_grad()
    def _after_step(self) -> None:
        due = self._due
        self.steps += 1
        for name, weight in self.weights.items():
            weight.masked_fill_(~self.masks[name], 0)
        if due:
            self._update()
        self._gradients = {}

    def _update(self) -> None:
        if not self._finite():
            self.skipped += 1
            warnings.warn(
                f"a gradient is not finite at step {self.steps}: the masks stay as they are",
                NonFiniteGradient,
                stacklevel=2,
            )
            return
        self.updates += 1
        for name in self.masks:
            self._update_layer(name)

    def _update_layer(self, name: str) -> None:
        assert self.rule is not None
        weight, mask = self.weights[name], self.masks[name]
        moved = self._moved(name, self.steps)
        if moved:
            layer = Layer(
                name,
                weight.detach(),
                self._gradients.get(name),
                self.momentum.get(name),
                self.visits[name],
                self.steps,
                keyed_generator(self.seed, name, self.steps),
            )
            new = drop_and_grow(
                weight, mask, self.rule.scores(layer), moved, self._rank(name), self.rule.allow_regrow
            )
            replaced = ~(new & mask)
            weight.masked_fill_(replaced, 0)
            self._reset_state(weight, replaced)
            mask.copy_(new)
        self.visits[name] += mask

    def _rank(self, name: str) -> Tensor:
        if name not in self._ranks:
            mask = self.masks[name]
            order = torch.randperm(mask.numel(), generator=keyed_generator(self.seed, name, "ties"))
            self._ranks[name] = order.reshape(mask.shape).to(mask.device)
        return self._ranks[name]

    def _reset_state(self, weight: Tensor, replaced: Tensor) -> None:
        assert self._optimizer is not None
        for value in self._optimizer.state[weight].values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.masked_fill_(replaced, 0)


class _Attach(Callback):
    """Connects a :class:`SparseTraining` to the optimizer that :func:`fit` makes, and to its checkpoints."""

    def __init__(self, training: SparseTraining) -> None:
        self.training = training

    def on_step_begin(self, state: FitState) -> None:
        if self.training.optimizer is not state.optimizer:
            self.training.attach(state.optimizer)

    def on_epoch_end(self, state: FitState) -> None:
        state.logs["density"] = self.training.masks.density
        state.logs["itop_rate"] = self.training.itop_rate

    def state_dict(self) -> dict[str, Any]:
        return self.training.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.training.load_state_dict(state)


def fit_sparse(
    training: SparseTraining,
    train: Indexable,
    validation: Indexable | None,
    config: FitConfig,
    *,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    parameter_groups: Sequence[Mapping[str, Any]] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
) -> History:
    """:func:`tradeoff.nn.fit.fit` of ``training.model`` with its masks kept, moved and checkpointed.

    Each epoch of the history has ``density`` and ``itop_rate``. Arguments and errors are those of ``fit``; a
    checkpoint of other masks is a ``CheckpointMismatch``.
    """
    steps_per_epoch = max(1, len(train) // config.batch_size)
    training.total_steps = (
        config.steps if config.steps is not None else (config.epochs or 0) * steps_per_epoch
    )
    with training.in_state_dict():
        try:
            return fit(
                training.model,
                train,
                validation,
                config,
                loss=loss,
                parameter_groups=parameter_groups,
                callbacks=[_Attach(training), *callbacks],
                checkpoint=checkpoint,
            )
        finally:
            training.detach()
