"""Losses that several methods share."""

import copy

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def distillation(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float = 4.0
) -> Float[Tensor, ""]:
    """Return ``T^2 KL(softmax(teacher / T) || softmax(student / T))``, averaged over the batch.

    The factor ``T^2`` keeps the gradient's size independent of the temperature (Hinton et al., 2015). No
    gradient reaches the teacher.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    target = functional.log_softmax(teacher.detach() / temperature, dim=1)
    estimate = functional.log_softmax(student / temperature, dim=1)
    divergence = functional.kl_div(estimate, target, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def over_budget(used: Tensor, budget: float) -> Tensor:
    """Return ``max(0, used - budget)``: no loss, and no gradient, once the budget is met."""
    return functional.relu(used - budget)


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode without gradients, to distill from."""
    return copy.deepcopy(model).eval().requires_grad_(False)
