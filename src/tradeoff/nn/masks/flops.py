"""Floating-point operations of training with masks, counted as it runs and in closed form.

A multiply-add counts as two, and only the products with maskable weights count (not biases, norms,
embeddings, nor what a graph layer adds up over neighbors). A layer with ``n`` active weights that is applied
to ``rows`` vectors or positions costs ``2 n rows`` forward, as much for the gradient of its inputs, and as
much for that of its weights, where ``n`` is all weights if the step needs the dense gradient. These are
counts of arithmetic: masked weights are stored and multiplied as zeros, so training with masks takes as long
as without.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from tradeoff.nn.fit import Callback, FitState

from .mask_set import MaskSet
from .training import SparseTraining
from .weights import maskable_weights, users


class FlopMeter(Callback):
    """Counts a training while it runs: a callback of :func:`tradeoff.nn.fit.fit`, used as a context manager.

    In a loop of your own, call :meth:`step` after each optimizer step. Of several processes, each counts its
    own share of the batches.

    Args:
        model: whose training is counted.
        training: what masks it; None for a dense training.

    Attributes:
        total: operations so far.
        steps: optimizer steps so far.
        rows: for each weight, what it was applied to since the last step.

    Example:
        >>> model = nn.Linear(64, 10)
        >>> with FlopMeter(model) as meter:
        ...     model(torch.zeros(32, 64)).sum().backward()
        ...     meter.step()
        >>> meter.total == 3 * 2 * 64 * 10 * 32
        True
    """

    def __init__(self, model: nn.Module, training: SparseTraining | None = None) -> None:
        self.model, self.training = model, training
        self.weights = maskable_weights(model)
        self.active = {name: weight.numel() for name, weight in self.weights.items()}
        if training is not None:
            self.active |= training.counts
        self.total = self.steps = 0
        self._active_steps = self._all_steps = 0
        self.rows = dict.fromkeys(self.weights, 0)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(_counted_rows(self.model, self.weights, self.rows, training_only=True))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def step(self) -> None:
        """Count the forward passes since the last call, and their backward passes, as one optimizer step."""
        dense_gradient = self.training is not None and self.training.needed_dense_gradient
        for name, weight in self.weights.items():
            rows, active = self.rows[name], self.active[name]
            self.total += 2 * rows * (2 * active + (weight.numel() if dense_gradient else active))
            self.rows[name] = 0
            self._active_steps += active
            self._all_steps += weight.numel()
        self.steps += 1

    @property
    def training_sparsity(self) -> float:
        """``1 - active weights / all weights``, both summed over the steps."""
        return 1 - self._active_steps / self._all_steps if self._all_steps else 0.0

    def on_step_end(self, state: FitState) -> None:
        """Count one step."""
        self.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("total", "steps", "_active_steps", "_all_steps")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


@contextmanager
def _counted_rows(
    model: nn.Module, weights: Mapping[str, nn.Parameter], rows: dict[str, int], training_only: bool
) -> Iterator[None]:
    """Add to ``rows`` what each weight is applied to inside the block."""

    def counter(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not training_only or (module.training and torch.is_grad_enabled()):
                # A transposed convolution meets its weight at positions of the input, all others of the
                # output.
                met = inputs[0] if getattr(module, "transposed", False) else output
                rows[name] += met.numel() // weights[name].shape[0]

        return count

    with ExitStack() as stack:
        for name, weight in weights.items():
            for module in users(model, weight):
                stack.callback(module.register_forward_hook(counter(name)).remove)
        yield


@torch.no_grad()
def layer_rows(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """What each maskable weight is applied to in one forward pass: vectors, or positions of a convolution."""
    weights = maskable_weights(model)
    rows = dict.fromkeys(weights, 0)
    training = model.training
    with _counted_rows(model, weights, rows, training_only=False):
        model.eval()(*inputs)
    model.train(training)
    return rows


def forward_flops(model: nn.Module, rows: Mapping[str, int], masks: MaskSet | None = None) -> int:
    """Operations of one forward pass in which each weight is applied to ``rows``."""
    active = {name: weight.numel() for name, weight in maskable_weights(model).items()}
    if masks is not None:
        active |= masks.counts()
    return sum(2 * rows[name] * active[name] for name in rows)


def training_flops(dense: int, sparse: int, steps: int, growth_steps: int = 0) -> int:
    """Operations of ``steps`` optimizer steps: ``3 f_S (T - U) + U (2 f_S + f_D)``.

    Args:
        dense: ``f_D``, of a forward pass of one batch with all weights.
        sparse: ``f_S``, with the active ones.
        growth_steps: ``U``, steps that need the gradient of all weights.
    """
    return 3 * sparse * (steps - growth_steps) + growth_steps * (2 * sparse + dense)


def rigl_average_flops(dense: float, sparse: float, update_every: int) -> float:
    """Operations of a step as the RigL paper averages them, with an update as a step of its own.

    ``(3 f_S dT + 2 f_S + f_D) / (dT + 1)``; for comparison with published numbers, :func:`training_flops` is
    exact.
    """
    return (3 * sparse * update_every + 2 * sparse + dense) / (update_every + 1)
