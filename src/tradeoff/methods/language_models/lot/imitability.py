"""How far one network's predictions are from another's: the regularizer of LoT."""

import math
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tradeoff.nn.losses import distillation

from .errors import InvalidSetting

Metric = Literal["kl", "symmetric_kl"]


def imitability(
    trained: Float[Tensor, "*rows classes"],
    reference: Float[Tensor, "*rows classes"],
    temperature: float = 1.5,
    metric: Metric = "kl",
) -> Float[Tensor, ""]:
    """Return ``T^2 KL(softmax(reference / T) || softmax(trained / T))``, averaged over the rows.

    The gradient reaches ``trained`` alone, and with respect to it is
    ``T (softmax(trained / T) - softmax(reference / T)) / rows``. The teacher's penalty is
    ``imitability(teacher, student)``, the student's loss ``imitability(student, teacher)``: each network
    moves towards the other, which stands still (Jin et al., NeurIPS 2024).

    Args:
        trained: logits of the network that learns, classes last.
        reference: logits of the other one, of the same shape; they are detached.
        temperature: T.
        metric: ``symmetric_kl`` adds the divergence in the other direction, by which ``trained`` alone
            learns, too.

    Raises:
        InvalidSetting: the temperature is not positive, the shapes differ or there is no such metric.
    """
    if metric not in get_args(Metric):
        raise InvalidSetting(f"metric is {metric!r}; it is one of {', '.join(get_args(Metric))}")
    if trained.shape != reference.shape:
        raise InvalidSetting(f"logits have shapes {tuple(trained.shape)} and {tuple(reference.shape)}")
    if not 0 < temperature < math.inf:
        raise InvalidSetting(f"temperature is {temperature}; it must be positive")
    trained, reference = _rows(trained), _rows(reference)
    loss = distillation(trained, reference, temperature)
    if metric == "symmetric_kl":
        fixed = functional.log_softmax(reference.detach() / temperature, dim=1)
        moving = functional.log_softmax(trained / temperature, dim=1)
        backward = functional.kl_div(fixed, moving, reduction="batchmean", log_target=True)
        loss = loss + backward * temperature**2
    return loss


def _rows(logits: Tensor) -> Tensor:
    """As ``(rows, classes)``, so that a mean is one over rows, in float32 at least."""
    flat = logits.flatten(0, -2)
    return flat.float() if flat.element_size() < 4 else flat
