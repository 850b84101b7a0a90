"""Linear layers, norms and rotary positions."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tradeoff.nn.decoder.config import DecoderConfig, RopeScaling
from tradeoff.nn.decoder.kernels import TORCH, Kernels, RotaryStyle


class UsesKernels(nn.Module):
    """A layer that computes by the decoder's kernels."""

    kernels: Kernels = TORCH


class Linear(UsesKernels, nn.Linear):
    """A linear layer whose product is the decoder's kernel."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        nn.Linear.__init__(self, inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        """Normal with deviation 0.02, biases zero; a decoder draws all of its weights again."""
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x W^T + b``."""
        return self.kernels.linear(x, self.weight, self.bias)


class RMSNorm(UsesKernels):
    """``x / sqrt(mean x^2 + eps) * gain``, in float32 at least (Zhang, Sennrich, 2019).

    Args:
        shape: of the gain; the last dimension alone is normalized.
        eps: added to the mean square.
        gain: whether there is a learned gain.
        scale: a constant factor.
    """

    def __init__(self, shape: tuple[int, ...], eps: float, gain: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape)) if gain else None
        self.eps = eps
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        return self.kernels.rms_norm(x, self.weight, self.eps, self.scale)


def make_norm(config: DecoderConfig) -> nn.Module:
    """The norm of the residual stream that a configuration asks for."""
    if config.norm == "rms":
        return RMSNorm((config.dim,), config.norm_eps, config.norm_gain)
    return nn.LayerNorm(config.dim, config.norm_eps, elementwise_affine=config.norm_gain)


class Rotation:
    """Rotary position embedding of given positions, ready to be applied in every layer.

    Pair i of d/2 turns by position / base^(2i/d): element i with i + d/2 (``half``), or 2i with 2i + 1
    (``interleaved``) (Su et al., "RoFormer", 2021).
    """

    def __init__(self, cos: Tensor, sin: Tensor, style: RotaryStyle, kernels: Kernels = TORCH) -> None:
        self.cos, self.sin, self.style, self.kernels = cos, sin, style, kernels

    def __call__(self, x: Float[Tensor, "batch *heads new width"]) -> Float[Tensor, "batch *heads new width"]:
        """Turn the last dimension."""
        return self.kernels.rotate(x, self.cos, self.sin, self.style)


class Rotary:
    """Frequencies of a model's rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        self.width = config.rotary_width
        self.base = config.rope_base
        self.style = config.rope_style
        self.scaling = config.rope_scaling
        self._frequencies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, positions: Tensor, dtype: torch.dtype, kernels: Kernels = TORCH) -> Rotation:
        """The rotation at positions ``(rows, new)``; angles in float32, in float64 for a float64 model."""
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        angles = positions[..., None].to(exact) * self.frequencies(positions.device, exact)
        return Rotation(angles.cos().to(dtype), angles.sin().to(dtype), self.style, kernels)

    def frequencies(self, device: torch.device, dtype: torch.dtype) -> Float[Tensor, " pairs"]:
        """Radians per position of every pair."""
        key = (device, dtype)
        if key not in self._frequencies:
            exponents = torch.arange(0, self.width, 2, device=device).to(dtype) / self.width
            self._frequencies[key] = _scaled(1.0 / self.base**exponents, self.scaling)
        return self._frequencies[key]


def _scaled(frequencies: Tensor, scaling: RopeScaling | None) -> Tensor:
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_len * frequencies / (2 * torch.pi)
    keep = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / scaling.factor)
