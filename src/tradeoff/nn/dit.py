"""A small diffusion transformer (Peebles, Xie, "Scalable Diffusion Models with Transformers", 2023).

>>> import torch
>>> from tradeoff.nn.dit import Diffusion, DiT, DiTConfig
>>> model, diffusion = DiT(DiTConfig(size=8, dim=32, layers=2)), Diffusion()
>>> images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
>>> steps, noise = torch.tensor([0, 10, 500, 999]), torch.randn(4, 1, 8, 8)
>>> model(diffusion.noisy(images, steps, noise), steps, labels).shape      # the noise, as the model sees it
torch.Size([4, 1, 8, 8])
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn.decoder import GELU, MoE, MoEConfig


@dataclass(frozen=True)
class DiTConfig:
    """What a diffusion transformer consists of.

    Attributes:
        size: of the square images, a multiple of ``patch``.
        channels: of the images.
        patch: side of the squares that are its tokens.
        dim: width, a multiple of ``heads`` and of 4.
        layers: blocks.
        heads: of attention.
        hidden: width of the feed-forward layer; None for 4 times the model's.
        ffn: dense, or a mixture of experts.
        classes: of the images.

    Raises:
        ValueError: sizes do not fit together.
    """

    size: int = 8
    channels: int = 1
    patch: int = 2
    dim: int = 64
    layers: int = 4
    heads: int = 4
    hidden: int | None = None
    ffn: MoEConfig | None = None
    classes: int = 10

    def __post_init__(self) -> None:
        if self.size % self.patch or self.dim % self.heads or self.dim % 4:
            raise ValueError(
                f"images of {self.size} in patches of {self.patch}, width {self.dim} in {self.heads} heads: "
                "the size must be a multiple of the patch, the width of the heads and of 4"
            )


class Attention(nn.Module):
    """Every token attends to every other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Attention of all heads."""
        parts = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


class DiTBlock(nn.Module):
    """Attention and feed-forward layer, shifted, scaled and gated by the condition; at first the identity."""

    def __init__(self, config: DiTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim, elementwise_affine=False)
        self.attention = Attention(config.dim, config.heads)
        self.ffn_norm = nn.LayerNorm(config.dim, elementwise_affine=False)
        hidden = config.hidden or 4 * config.dim
        self.ffn = (
            GELU(config.dim, hidden, bias=True) if config.ffn is None else MoE(config.dim, config.ffn, layer)
        )
        self.modulation = _zero(nn.Linear(config.dim, 6 * config.dim))

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], condition: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """One block."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(functional.silu(condition))[
            :, None
        ].chunk(6, -1)
        x = x + gate * self.attention(self.attention_norm(x) * (1 + scale) + shift)
        out: Tensor = x + ffn_gate * self.ffn(self.ffn_norm(x) * (1 + ffn_scale) + ffn_shift)
        return out


class DiT(nn.Module):
    """Predicts the noise in images, given how noisy they are and what they show."""

    positions: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels * config.patch**2
        self.embedding = nn.Linear(width, config.dim)
        self.register_buffer(
            "positions", _grid_positions(config.size // config.patch, config.dim), persistent=False
        )
        self.time = nn.Sequential(
            nn.Linear(config.dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.labels = nn.Embedding(config.classes, config.dim)
        nn.init.normal_(self.labels.weight, std=0.02)
        self.blocks = nn.ModuleList(DiTBlock(config, layer) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.dim, elementwise_affine=False)
        self.modulation = _zero(nn.Linear(config.dim, 2 * config.dim))
        self.output = _zero(nn.Linear(config.dim, width))

    def forward(
        self,
        images: Float[Tensor, "batch channels size size"],
        steps: Int[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channels size size"]:
        """The noise that is in the images.

        Args:
            images: with noise.
            steps: of the diffusion at which they are, 0 for nearly clean ones.
            labels: their classes.
        """
        patch = self.config.patch
        tokens = functional.unfold(images, patch, stride=patch).mT
        x = self.embedding(tokens) + self.positions
        condition = self.time(_waves(steps.to(x.dtype), self.config.dim)) + self.labels(labels)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(functional.silu(condition))[:, None].chunk(2, -1)
        out = self.output(self.norm(x) * (1 + scale) + shift)
        return functional.fold(out.mT, self.config.size, patch, stride=patch)

    @property
    def moe_layers(self) -> list[MoE]:
        """The mixture-of-experts layers, in order."""
        return [module for module in self.modules() if isinstance(module, MoE)]

    def aux_loss(self) -> Float[Tensor, ""]:
        """Auxiliary losses of the last forward pass in training, added over the layers and then forgotten."""
        total = torch.zeros((), device=self.embedding.weight.device)
        for layer in self.moe_layers:
            if layer.aux is not None:
                total = total + layer.aux
                layer.aux = None
        return total


class Diffusion:
    """The process that turns images into noise (Ho et al., "Denoising Diffusion Probabilistic Models", 2020).

    Args:
        steps: of the process; the variance that each adds rises linearly from 1e-4 to 0.02 over 1,000.

    Attributes:
        signal: variance of the image that is left at each step.
    """

    def __init__(self, steps: int = 1000) -> None:
        self.steps = steps
        self.signal = (1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)).cumprod(0).float()

    def noisy(
        self, images: Float[Tensor, "batch channels size size"], steps: Int[Tensor, " batch"], noise: Tensor
    ) -> Float[Tensor, "batch channels size size"]:
        """Images at given steps of the process."""
        signal = self.signal.to(images.device)[steps].view(-1, 1, 1, 1)
        return signal.sqrt() * images + (1 - signal).sqrt() * noise


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _waves(positions: Float[Tensor, "*rows"], width: int) -> Float[Tensor, "*rows width"]:
    """Cosines and sines of positions at geometrically falling frequencies (Vaswani et al., 2017)."""
    rates = torch.arange(width // 2, device=positions.device, dtype=positions.dtype) / (width // 2)
    angles = positions[..., None] * torch.exp(-math.log(10_000) * rates)
    return torch.cat([angles.cos(), angles.sin()], -1)


def _grid_positions(side: int, width: int) -> Float[Tensor, "tokens width"]:
    """Waves of row and column of each token."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([_waves(axis.flatten().float(), width // 2) for axis in (rows, columns)], -1)
