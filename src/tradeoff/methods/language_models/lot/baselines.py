"""Other regularizers, as losses and callbacks of :func:`tradeoff.nn.fit.fit`, for comparison."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn.fit import Callback, FitState, Loss
from tradeoff.nn.losses import distillation


def rows_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits ``(..., classes)``, mean over all targets ``(...,)``."""
    flat = logits.flatten(0, -2)
    return functional.cross_entropy(flat, targets.flatten(), label_smoothing=label_smoothing)


def task_loss(label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy, with part of the probability spread over all classes (Szegedy et al., CVPR 2016)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return rows_cross_entropy(model(x), y, label_smoothing)

    return loss


def r_drop(weight: float = 1.0) -> Loss:
    """Two passes with different dropout that must agree (Wu et al., "R-Drop", NeurIPS 2021).

    ``CE + weight / 2 (KL(p || q) + KL(q || p))``, with gradients through both. The network needs dropout.
    """

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(torch.cat((x, x)))
        p, q = (half.flatten(0, -2).log_softmax(1) for half in logits.chunk(2))
        both = functional.kl_div(p, q, reduction="batchmean", log_target=True)
        both = both + functional.kl_div(q, p, reduction="batchmean", log_target=True)
        return rows_cross_entropy(logits, torch.cat((y, y))) + weight / 2 * both

    return loss


def mixup(alpha: float = 0.2) -> Loss:
    """Convex combinations of pairs of images and of their labels (Zhang et al., "mixup", ICLR 2018)."""
    beta = torch.distributions.Beta(alpha, alpha)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        share, other = float(beta.sample()), torch.randperm(len(x), device=x.device)
        logits = model(share * x + (1 - share) * x[other])
        return share * rows_cross_entropy(logits, y) + (1 - share) * rows_cross_entropy(logits, y[other])

    return loss


def distilled(teacher: nn.Module, temperature: float = 1.5) -> Loss:
    """Cross-entropy and imitation of a finished network, as in born-again networks (Furlanello et al., ICML
    2018)."""
    teacher.eval()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x)
        with torch.no_grad():
            target = teacher(x)
        imitation = distillation(logits.flatten(0, -2), target.flatten(0, -2), temperature)
        return rows_cross_entropy(logits, y) + imitation

    return loss


class SAM(Callback):
    """Steps by the gradient at the worst point nearby (Foret et al., "Sharpness-Aware Minimization", ICLR
    2021): ``g(w + rho g(w) / |g(w)|)``. Pass :meth:`loss` to ``fit`` as well."""

    def __init__(self, rho: float = 0.05) -> None:
        self.rho = rho
        self._loss = task_loss()
        self._batch: tuple[Any, Tensor, Tensor] | None = None

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        self._batch = (model, x, y)
        return self._loss(model, x, y)

    def on_gradients(self, state: FitState) -> None:
        assert self._batch is not None
        parameters = [p for p in state.model.parameters() if p.grad is not None]
        gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        norm = torch.stack([g.norm() for g in gradients]).norm()
        with torch.no_grad():
            before = [p.clone() for p in parameters]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=float(self.rho / (norm + 1e-12)))
        state.optimizer.zero_grad()
        self._loss(*self._batch).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
