"""Training toward a sparse constraint by splitting: ADMM, and surrogate Lagrangian relaxation (SLR).

Both minimize ``f(W)`` over weights of which layer ``l`` keeps at most ``counts[l]``. A duplicate ``Z`` is
sparse, and

    f(W) + sum_l rho/2 ||W_l - Z_l + U_l||^2

is trained, with ``U`` moved once an epoch. ADMM: Zhang et al., ECCV 2018. SLR: Gurevin et al., IJCAI 2021, as
used for graph networks by Peng et al., ICCD 2022.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tradeoff.nn.fit import Callback, FitState, Loss

from .errors import MaskError
from .mask_set import MaskSet, as_buffers

Tensors = dict[str, Tensor]


class ADMM(Callback):
    """``Z = P(W + U)``, ``U += W - Z`` after each epoch, where ``P`` keeps the largest magnitudes.

    Pass :meth:`loss` of your loss, and the object itself as a callback, to :func:`tradeoff.nn.fit.fit`,
    inside ``with admm.in_state_dict()`` if it writes checkpoints. A layer that keeps all its weights is not
    constrained.

    Args:
        model: with the weights.
        counts: weights to keep, by name.
        rho: of the penalty; about the curvature of ``f`` along the weights.

    Raises:
        MaskError: ``rho`` is not positive, or a count does not fit its weight.
    """

    def __init__(self, model: nn.Module, counts: Mapping[str, int], rho: float) -> None:
        if not rho > 0:
            raise MaskError(f"rho must be positive, not {rho}")
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, count in counts.items():
            if name not in parameters or not 0 < count <= parameters[name].numel():
                raise MaskError(f"cannot keep {count} weights of {name}")
        self.model, self.rho = model, rho
        self.counts = {n: count for n, count in counts.items() if count < parameters[n].numel()}
        self.weights = {name: parameters[name] for name in self.counts}
        self.z: Tensors = self._projected(self.weights)
        self.u: Tensors = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self._sum, self._batches = 0.0, 0

    def loss(self, base: Loss) -> Loss:
        """``base`` plus the penalty; its own value is noted for :meth:`update`."""

        def penalized(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
            value = base(model, inputs, targets)
            self._sum += float(value.detach())
            self._batches += 1
            return value + self.penalty() if self.weights else value

        return penalized

    def penalty(self) -> Tensor:
        """The second term of the module's objective."""
        terms = [(weight - self.z[n] + self.u[n]).square().sum() for n, weight in self.weights.items()]
        return self.rho / 2 * torch.stack(terms).sum()

    @torch.no_grad()
    def update(self, loss: float) -> None:
        """Move ``Z`` and ``U`` after an epoch.

        Args:
            loss: mean of ``f`` over the epoch.
        """
        _copy(self.z, self._projected({n: w + self.u[n] for n, w in self.weights.items()}))
        for name, weight in self.weights.items():
            self.u[name] += weight - self.z[name]

    @property
    def residual(self) -> float:
        """``||W - Z||`` over all constrained layers."""
        return _distance(self.weights, self.z)

    def on_epoch_end(self, state: FitState) -> None:
        """Update, and note the residual in the history."""
        self.update(self._sum / max(self._batches, 1))
        self._sum, self._batches = 0.0, 0
        state.logs["residual"] = self.residual

    def tensors(self) -> dict[str, Tensors]:
        """What must be stored to go on later, beside :meth:`state_dict`: kind -> name -> tensor."""
        return {"z": self.z, "u": self.u}

    @contextmanager
    def in_state_dict(self) -> Iterator[None]:
        """Let the tensors be part of ``model.state_dict()`` inside the block."""
        with ExitStack() as stack:
            for kind, tensors in self.tensors().items():
                stack.enter_context(as_buffers(self.model, kind, tensors))
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum, "batches": self._batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sum, self._batches = state["sum"], state["batches"]

    @torch.no_grad()
    def _projected(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """``P``: the largest magnitudes of each layer, zeros elsewhere."""
        if not tensors:
            return {}
        masks = MaskSet.project(tensors, self.counts)
        return {name: tensor.detach().masked_fill(~masks[name], 0) for name, tensor in tensors.items()}


class SLR(ADMM):
    """Surrogate Lagrangian relaxation: multipliers ``rho U`` move by a step size that needs no tuning to
    converge.

    They move only while the surrogate ``lag(W, Z) = f + rho/2 ||W - Z + U||^2`` falls: once after the epoch
    moved ``W``, and once after ``Z`` was projected anew. With ``c`` the number of moves so far plus one,

        p = 1 - 1 / c^r        alpha = 1 - 1 / (M c^p)
        sigma <- alpha sigma ||W_prev - Z_prev|| / ||W - Z||        rho U += sigma (W - Z)

    where ``W_prev`` and ``Z_prev`` are copies made at the last move.

    Args:
        model, counts, rho: as of :class:`ADMM`.
        sigma: the first step size.
        m, r: of its decay.

    Raises:
        MaskError: a number is not positive, or a count does not fit its weight.
    """

    def __init__(
        self,
        model: nn.Module,
        counts: Mapping[str, int],
        rho: float,
        *,
        sigma: float,
        m: float = 200.0,
        r: float = 0.1,
    ) -> None:
        super().__init__(model, counts, rho)
        if not (sigma > 0 and m > 0 and r > 0):
            raise MaskError(f"sigma, m and r must be positive, not {sigma}, {m}, {r}")
        self.sigma, self.m, self.r = sigma, m, r
        self.moves = 0
        self.w_previous: Tensors = {n: w.detach().clone() for n, w in self.weights.items()}
        self.z_previous: Tensors = {n: z.clone() for n, z in self.z.items()}
        self.loss_previous = 0.0

    @torch.no_grad()
    def update(self, loss: float) -> None:
        """Move ``Z``, the multipliers and the step size after an epoch.

        Args:
            loss: mean of ``f`` over the epoch.
        """
        now = self._surrogate(self.weights, self.z_previous, loss)
        if not self.moves or now < self._surrogate(self.w_previous, self.z_previous, self.loss_previous):
            # Toward the duplicates of the last move, which the test used; then the newest are remembered.
            self._move(self.z_previous, loss)
        _copy(self.z, self._projected({n: w + self.u[n] for n, w in self.weights.items()}))
        now = self._surrogate(self.weights, self.z, loss)
        if not self.moves or now < self._surrogate(self.weights, self.z_previous, loss):
            self._move(self.z, loss)

    def _move(self, z: Tensors, loss: float) -> None:
        c = self.moves + 1
        p = 1 - 1 / c**self.r
        alpha = 1 - 1 / (self.m * c**p)
        self.moves += 1
        before, after = _distance(self.w_previous, self.z_previous), _distance(self.weights, z)
        if before > 0 and after > 0:
            self.sigma *= alpha * before / after
        for name, weight in self.weights.items():
            self.u[name] += self.sigma / self.rho * (weight - z[name])
        _copy(self.w_previous, self.weights)
        _copy(self.z_previous, self.z)
        self.loss_previous = loss

    def _surrogate(self, w: Mapping[str, Tensor], z: Tensors, loss: float) -> float:
        squares = [(w[name] - z[name] + self.u[name]).double().square().sum() for name in self.weights]
        return loss + self.rho / 2 * math.fsum(map(float, squares))

    def tensors(self) -> dict[str, Tensors]:
        """What must be stored to go on later, beside :meth:`state_dict`: kind -> name -> tensor."""
        return super().tensors() | {"w_previous": self.w_previous, "z_previous": self.z_previous}

    def state_dict(self) -> dict[str, Any]:
        names = ("sigma", "moves", "loss_previous")
        return super().state_dict() | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.sigma, self.moves, self.loss_previous = (state[n] for n in ("sigma", "moves", "loss_previous"))


def _copy(targets: Tensors, sources: Mapping[str, Tensor]) -> None:
    """Overwrite ``targets`` in place, so that buffers of the model stay the same tensors."""
    for name, target in targets.items():
        target.copy_(sources[name])


def _distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    squares = [(first[name].detach() - second[name]).double().square().sum() for name in first]
    return math.sqrt(math.fsum(map(float, squares)))
