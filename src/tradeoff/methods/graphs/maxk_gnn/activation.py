"""The MaxK nonlinearity: of the features of each node, the k largest pass."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from tradeoff.engines.kernels import CBSR, maxk


class MaxK(nn.Module):
    """``h_c = z_c`` if ``z_c`` is among the k largest signed values of its row, else 0 (MaxK-GNN, section 3).

    Of equal values the one with the lowest column passes first. Kept values may be negative; with ``k`` equal
    to the number of columns it is the identity. The gradient passes at kept positions only.

    Args:
        k: values kept in each row.

    Example:
        >>> import torch
        >>> MaxK(2)(torch.tensor([[3.0, -1.0, 2.0, 0.5]]))
        tensor([[3., 0., 2., 0.]])
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k is a whole number of at least 1, not {k!r}")
        self.k = k

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The masked matrix, dense: for any code that expects a tensor."""
        return self.compressed(x).to_dense()

    def compressed(self, x: Float[Tensor, "n d"]) -> CBSR:
        """The kept values and their columns, as the sparse kernels take them."""
        return maxk(x, self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"
