"""Router gates of the size that a dense layer would have: 1 for each active expert, not 1/k."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import TransferError


def normalized_gates(
    gates: Float[Tensor, "... slots"],
    active: float | None = None,
    form: Literal["mean", "rms"] = "mean",
) -> Float[Tensor, "... slots"]:
    """Scale the gates of one token's experts so that their mean over the active ones is 1.

    With all experts active and equal gates the mixture is then the dense layer of their joint width,
    whatever the number of experts.

    Args:
        gates: not negative; zero for experts (or slots) that are not active. Their scale does not matter:
            they may be softmax probabilities, renormalized or not, or sigmoids.
        active: number of experts that count, k; the number of gates that are not zero when not given. Where
            it varies from token to token, as with top-p, its mean over tokens: the sum of the gates is then
            the same for all.
        form: ``mean`` gives gates whose sum is k; ``rms`` gates whose sum of squares is k, which keeps the
            variance of the sum of independent experts where gates are unequal. Both are 1 for equal gates.

    Raises:
        TransferError: a gate is negative, or a token has none.
    """
    if not bool((gates >= 0).all()):
        raise TransferError(f"a gate is {float(gates.min()):.3g}; gates are not negative")
    size = gates.sum(-1, keepdim=True) if form == "mean" else gates.norm(dim=-1, keepdim=True)
    if bool((size == 0).any()):
        raise TransferError("all gates of a token are zero: it passes no expert")
    count = (gates > 0).sum(-1, keepdim=True) if active is None else torch.as_tensor(active)
    return gates / size * (count if form == "mean" else count.sqrt() if active is None else active**0.5)
