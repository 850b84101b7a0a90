"""The experts of a layer, and three ways to run each on its tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn.decoder.feed_forward.routers import Routing
from tradeoff.nn.decoder.layers import UsesKernels
from tradeoff.nn.decoder.moe_config import Dispatch


class Experts(UsesKernels):
    """Feed-forward networks of one shape, weights stacked.

    Attributes:
        gate: ``(experts, hidden, dim)``, of SwiGLU experts; None for GELU.
        up: ``(experts, hidden, dim)``.
        down: ``(experts, dim, hidden)``.
    """

    def __init__(self, experts: int, dim: int, hidden: int, gated: bool) -> None:
        super().__init__()

        def matrices(outputs: int, inputs: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(experts, outputs, inputs) * 0.02)

        self.gate = matrices(hidden, dim) if gated else None
        self.up = matrices(hidden, dim)
        self.down = matrices(dim, hidden)

    def run(self, expert: int, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """One expert on some rows."""
        linear = self.kernels.linear
        up = linear(x, self.up[expert], None)
        if self.gate is None:
            return linear(functional.gelu(up), self.down[expert], None)
        gated = self.kernels.swiglu(linear(x, self.gate[expert], None), up)
        return linear(gated, self.down[expert], None)

    def forward(
        self, x: Float[Tensor, "tokens dim"], routing: Routing, dispatch: Dispatch
    ) -> Float[Tensor, "tokens dim"]:
        """The gated sum of every token's experts."""
        return {"loop": self._loop, "dense": self._dense, "grouped": self._grouped}[dispatch](x, routing)

    def _loop(self, x: Tensor, routing: Routing) -> Tensor:
        out = torch.zeros_like(x)
        for expert in range(len(self.up)):
            tokens, slots = ((routing.indices == expert) & routing.mask).nonzero(as_tuple=True)
            gates = routing.weights[tokens, slots, None].to(x.dtype)
            out = out.index_add(0, tokens, gates * self.run(expert, x[tokens]))
        return out

    def _dense(self, x: Tensor, routing: Routing) -> Tensor:
        hidden = x @ self.up.mT
        hidden = (
            functional.gelu(hidden) if self.gate is None else self.kernels.swiglu(x @ self.gate.mT, hidden)
        )
        return torch.einsum("te,etd->td", routing.gates().to(x.dtype), hidden @ self.down.mT)

    def _grouped(self, x: Tensor, routing: Routing) -> Tensor:
        tokens, slots = routing.mask.nonzero(as_tuple=True)
        experts = routing.indices[tokens, slots]
        order = experts.argsort(stable=True)
        tokens, slots = tokens[order], slots[order]
        counts = experts.bincount(minlength=len(self.up))
        rows = self._run_sorted(x[tokens], counts)
        return torch.zeros_like(x).index_add(
            0, tokens, routing.weights[tokens, slots, None].to(x.dtype) * rows
        )

    def _run_sorted(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Rows that are sorted by expert through their experts, by torch's grouped product on a GPU."""
        if rows.device.type == "cuda" and rows.dtype in (torch.bfloat16, torch.float16):
            ends = counts.cumsum(0).to(torch.int32)

            def product(x: Tensor, weights: Tensor) -> Tensor:
                return torch._grouped_mm(x, weights.mT, offs=ends)

            up = product(rows, self.up)
            if self.gate is None:
                return product(functional.gelu(up), self.down)
            return product(self.kernels.swiglu(product(rows, self.gate), up), self.down)
        sizes = counts.tolist()
        parts = enumerate(torch.split(rows, sizes))
        return torch.cat([self.run(expert, part) for expert, part in parts if len(part)])
