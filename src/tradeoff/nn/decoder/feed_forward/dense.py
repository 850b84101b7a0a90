"""Feed-forward layers that every token passes."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn.decoder.layers import Linear, UsesKernels


class SwiGLU(UsesKernels):
    """``W_down (silu(W_gate x) * W_up x)`` (Shazeer, 2020)."""

    def __init__(self, dim: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.gate = Linear(dim, hidden, bias)
        self.up = Linear(dim, hidden, bias)
        self.down = Linear(hidden, dim, bias)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Apply to the last dimension."""
        out: Tensor = self.down(self.kernels.swiglu(self.gate(x), self.up(x)))
        return out


class GELU(nn.Module):
    """``W_down gelu(W_up x)``."""

    def __init__(self, dim: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.up = Linear(dim, hidden, bias)
        self.down = Linear(hidden, dim, bias)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Apply to the last dimension."""
        out: Tensor = self.down(functional.gelu(self.up(x)))
        return out
