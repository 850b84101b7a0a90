"""A quadratic of its own for every joint, and what stands at an activation position."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Start = Literal["paper", "gaussian-fit"]
CLIP = 2.0
"""Largest magnitude of the quadratic weight, before the factor."""


class NodePolynomial(nn.Module):
    """``c w2 x^2 + w1 x + b`` with weights for each joint (the last dimension).

    Args:
        start: ``paper`` is c = 0.01, w2 = 0.005, w1 = 1 and b = 0, never trained: close to the identity.
            ``gaussian-fit`` is the least-squares quadratic of ReLU for normal inputs of deviation 1:
            0.2 x^2 + 0.5 x + 0.2, b trained; it needs far fewer steps.
        shared: the same weights for all joints, as in CryptoGCN.
    """

    def __init__(self, joints: int, start: Start = "gaussian-fit", *, shared: bool = False) -> None:
        super().__init__()
        fitted = start == "gaussian-fit"
        count = 1 if shared else joints
        self.joints = joints
        self.factor = 0.2 if fitted else 0.01
        self.w2 = nn.Parameter(torch.full((count,), 1.0 if fitted else 0.005))
        self.w1 = nn.Parameter(torch.full((count,), 0.5 if fitted else 1.0))
        self.b = nn.Parameter(torch.full((count,), 0.2 if fitted else 0.0), requires_grad=fitted)

    def forward(self, x: Float[Tensor, "batch channels time joints"]) -> Tensor:
        w2 = self.factor * self.w2.clamp(-CLIP, CLIP)
        exact = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # squares overflow 16 bits
        return (w2 * exact + self.w1) * exact + self.b

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Quadratic, linear and constant weights, (joints,) each."""
        rows = self.factor * self.w2.clamp(-CLIP, CLIP), self.w1, self.b
        quadratic, linear, constant = (row.detach().expand(self.joints) for row in rows)
        return quadratic, linear, constant


class GatedActivation(nn.Module):
    """ReLU, or a quadratic in its place, where a joint's gate is open; else nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.polynomial: NodePolynomial | None = None

    def forward(
        self, x: Float[Tensor, "batch channels time joints"], gate: Float[Tensor, " joints"]
    ) -> Tensor:
        active = x.relu() if self.polynomial is None else self.polynomial(x)
        mixed: Tensor = torch.lerp(x, active.to(x.dtype), gate.expand_as(x))
        return mixed
