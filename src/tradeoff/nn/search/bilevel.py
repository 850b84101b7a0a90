"""The step on architecture parameters: on held-out data, between the steps on weights (DARTS, ICLR 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, distributed, nn

from tradeoff.nn.fit import Callback, FitState, Indexable

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Loss of a network on a batch of inputs and labels."""

PERTURBATION = 0.01
"""Length of the step of the finite difference in weights."""


class ArchitectureConfig(pydantic.BaseModel):
    """How architecture parameters are trained.

    Attributes:
        learning_rate, weight_decay, betas: of Adam. Searches of few steps need 10 to 100 times the rate.
        order: 2 looks one step of the weights ahead (four more passes), 1 takes the weights as they are.
        batch_size: images of a step.
        start: step of the weights before which the parameters rest.
        temperature: of the softmax at the end; it falls geometrically from ``initial_temperature``.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = pydantic.Field(default=3e-4, gt=0)
    weight_decay: float = pydantic.Field(default=1e-3, ge=0)
    betas: tuple[float, float] = (0.5, 0.999)
    order: Literal[1, 2] = 1
    batch_size: int = pydantic.Field(default=64, ge=1)
    start: int = pydantic.Field(default=0, ge=0)
    temperature: float = pydantic.Field(default=1.0, gt=0)
    initial_temperature: float | None = pydantic.Field(default=None, gt=0)

    def temperature_at(self, progress: float) -> float:
        """The temperature after a part of the steps."""
        first = self.initial_temperature or self.temperature
        return float(first * (self.temperature / first) ** progress)


@contextmanager
def asking(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let parameters get gradients while the block runs."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def first_order(
    network: nn.Module, alphas: Sequence[nn.Parameter], objective: Objective, batch: tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """Gradient of the objective on held-out data at the present weights."""
    with asking(alphas):
        return torch.autograd.grad(objective(network, *batch), list(alphas))


def second_order(
    network: nn.Module,
    alphas: Sequence[nn.Parameter],
    objective: Objective,
    training_objective: Objective,
    batch: tuple[Tensor, Tensor],
    training_batch: tuple[Tensor, Tensor],
    step_size: float,
) -> tuple[Tensor, ...]:
    """Gradient of the objective on held-out data at the weights after one step of their training.

    ``grad_a L_val(w', a) - xi (grad_a L_trn(w+, a) - grad_a L_trn(w-, a)) / (2 eps)`` with
    ``w' = w - xi grad_w L_trn``, ``w+- = w +- eps grad_w' L_val`` and ``eps = 0.01 / |grad_w' L_val|``.

    Args:
        objective: of the held-out batch, the latency included.
        training_objective: of the weights.
        step_size: xi, the learning rate of the weights.
    """
    weights = [p for p in network.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in weights]
    step = torch.autograd.grad(training_objective(network, *training_batch), weights, allow_unused=True)
    try:
        _move(weights, kept, step, -step_size)
        with asking(alphas):
            found = torch.autograd.grad(
                objective(network, *batch), [*alphas, *weights], allow_unused=True, materialize_grads=True
            )
        direct, ahead = found[: len(alphas)], found[len(alphas) :]
        norm = torch.sqrt(torch.stack([g.square().sum() for g in ahead]).sum())
        if not norm > 0:
            return direct
        distance = float(PERTURBATION / norm)
        sides = []
        for sign in (1, -1):
            _move(weights, kept, ahead, sign * distance)
            sides.append(first_order(network, alphas, training_objective, training_batch))
    finally:
        _move(weights, kept, [None] * len(weights), 0.0)
    return tuple(
        d - step_size * (plus - minus) / (2 * distance) for d, plus, minus in zip(direct, *sides, strict=True)
    )


@torch.no_grad()
def _move(
    weights: Sequence[nn.Parameter], start: Sequence[Tensor], along: Sequence[Tensor | None], by: float
) -> None:
    for weight, origin, direction in zip(weights, start, along, strict=True):
        weight.copy_(origin if direction is None else origin + by * direction)


class ArchitectureStep(Callback):
    """Trains the architecture parameters of a network before each step of :func:`tradeoff.nn.fit.fit`.

    Its batches depend on the seed and the step alone, so an interrupted search goes on as if it had not been.

    Args:
        alphas: the parameters, which want no gradient otherwise.
        held_out: split on which they are trained; the weights never see it.
        train: split of the weights, for the second order.
        objective: loss on held-out data, the latency included.
        training_objective: loss of the weights.
        config: see :class:`ArchitectureConfig`.
        set_temperature: told the softmax's temperature before each step.
    """

    def __init__(
        self,
        alphas: Sequence[nn.Parameter],
        held_out: Indexable,
        train: Indexable,
        objective: Objective,
        training_objective: Objective,
        config: ArchitectureConfig,
        set_temperature: Callable[[float], None] = lambda temperature: None,
    ) -> None:
        self.alphas = list(alphas)
        self.held_out, self.train = held_out, train
        self.objective, self.training_objective = objective, training_objective
        self.config = config
        self.set_temperature = set_temperature
        self.optimizer = torch.optim.Adam(
            self.alphas, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )

    def on_step_begin(self, state: FitState) -> None:
        self.set_temperature(self.config.temperature_at(state.step / max(1, state.total_steps)))
        if state.step < self.config.start:
            return
        generator = torch.Generator().manual_seed(state.config.seed * 1_000_003 + state.step)
        batch = self._draw(self.held_out, generator, state.device)
        if self.config.order == 1:
            gradients = first_order(state.model, self.alphas, self.objective, batch)
        else:
            gradients = second_order(
                state.model,
                self.alphas,
                self.objective,
                self.training_objective,
                batch,
                self._draw(self.train, generator, state.device),
                float(state.optimizer.param_groups[0]["lr"]),
            )
        for alpha, gradient in zip(self.alphas, gradients, strict=True):
            alpha.grad = _over_all_processes(gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _draw(
        self, split: Indexable, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        positions = torch.randint(len(split), (min(self.config.batch_size, len(split)),), generator=generator)
        inputs, targets = split[positions]
        return inputs.to(device), targets.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The moments of Adam, which are few numbers."""
        return {
            str(index): {key: value.tolist() for key, value in moments.items()}
            for index, moments in self.optimizer.state_dict()["state"].items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        moments = {
            int(index): {key: torch.tensor(value) for key, value in each.items()}
            for index, each in state.items()
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _over_all_processes(gradient: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(gradient)
        gradient = gradient / distributed.get_world_size()
    return gradient
