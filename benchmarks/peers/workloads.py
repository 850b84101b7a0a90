"""What every system computes: the same arrays, written to one file a workload."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

Arrays = dict[str, np.ndarray]

GROWTH = {"relu": 1.0, "square": 1.0, "matmul": 3.0, "conv": 1.0, "small_cnn": 1.0}
"""Exponent of the arithmetic's growth with a workload's size."""


@dataclass(frozen=True)
class Workload:
    """A computation of one size: elements of a ReLU or square, the side of a matrix, a batch."""

    name: str
    size: int

    @property
    def title(self) -> str:
        return {
            "relu": f"ReLU, {self.size:,} elements",
            "square": f"square, {self.size:,} elements",
            "matmul": f"matrix product {self.size} x {self.size}",
            "conv": "convolution 16x16x16 to 32, 3x3",
            "small_cnn": f"small CNN, batch {self.size}",
        }[self.name]

    def arrays(self) -> Arrays:
        """Input ``x``, weights and the plaintext result ``expected``, float32, images as NCHW."""
        generator = np.random.default_rng(self.size)
        if self.name in ("relu", "square"):
            x = generator.normal(size=self.size)
            arrays = {"x": x, "expected": np.maximum(x, 0) if self.name == "relu" else x * x}
        elif self.name == "matmul":
            x, w = generator.normal(size=(2, self.size, self.size))
            arrays = {"x": x, "w": w, "expected": x @ w}
        elif self.name == "conv":
            x = generator.normal(size=(self.size, 16, 16, 16))
            w = generator.normal(size=(32, 16, 3, 3)) / 12
            expected = nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), padding=1)
            arrays = {"x": x, "w": w, "expected": expected.numpy()}
        else:
            arrays = self._small_cnn()
        return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}

    def _small_cnn(self) -> Arrays:
        """Digits through a network with fresh weights: what costs depends on shapes only."""
        torch.manual_seed(0)
        model = small_cnn()
        images = torch.from_numpy(load_digits().images[: self.size, None] / 16).float()
        names = ("w1", "b1", "w2", "b2", "w3", "b3")
        arrays = {
            name: parameter.detach().numpy()
            for name, parameter in zip(names, model.parameters(), strict=True)
        }
        return {"x": images.numpy(), "expected": model(images).detach().numpy()} | arrays

    def save(self, folder: Path) -> Path:
        path = folder / f"{self.name}-{self.size}.npz"
        np.savez(path, **self.arrays())
        return path


def small_cnn() -> nn.Sequential:
    """Two 3x3 convolutions (16, 32 channels), each with ReLU and average pooling, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def workloads(quick: bool) -> Iterator[Workload]:
    """All workloads, smallest size first within a kind."""
    sizes = {
        "relu": (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000),
        "square": (100_000,),
        "matmul": (64, 256) if quick else (64, 128, 256, 512, 1024),
        "conv": (1,),
        "small_cnn": (32,),
    }
    for name, each in sizes.items():
        for size in each:
            yield Workload(name, size)
