"""What is trained in the study: a byte-level language model, and a diffusion transformer on digits."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Protocol

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.data import images, text
from tradeoff.nn.decoder import Decoder, DecoderConfig, MoE, MoEConfig
from tradeoff.nn.dit import Diffusion, DiT, DiTConfig


class Examples(Protocol):
    """A data set that gives several positions at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: Any, /) -> tuple[Tensor, Tensor]: ...


class Shared(pydantic.BaseModel):
    """What both tasks vary.

    Attributes:
        steps: of training.
        batch: examples of a step.
        dim, layers, heads: of the model.
        active_width: hidden units that a token passes on average: experts are as much narrower as more of
            them are active.
        learning_rate: the highest; it rises over a tenth of the steps and falls to a tenth of itself.
        weight_decay: of matrices.
        balance, entropy: factors of the auxiliary losses.
        held_out: examples on which the loss is measured.
        warmup: steps that a controller has to reach its target.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=200, ge=1)
    batch: int = Field(default=8, ge=1)
    dim: int = Field(default=64, ge=4)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    active_width: int = Field(default=192, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    balance: float = Field(default=1e-2, ge=0)
    entropy: float = Field(default=1e-3, ge=0)
    held_out: int = Field(default=256, ge=1)
    warmup: int = Field(default=100, ge=0)

    def model(self, mixture: MoEConfig | None, seed: int) -> "Model":
        """A model with its initial weights."""
        raise NotImplementedError

    def training(self) -> Examples:
        """Examples to train on."""
        raise NotImplementedError

    def other_training(self) -> Examples:
        """Examples of another kind, for a switch in mid-training."""
        raise NotImplementedError

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The objective, without auxiliary losses; what is random in it draws from torch's generator."""
        raise NotImplementedError

    def held_out_batches(self) -> "list[tuple[Tensor, Tensor]]":
        """Held-out examples, the same for every model."""
        raise NotImplementedError

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the kinds of held-out batches whose active experts are reported apart."""
        return ()

    @property
    def tokens(self) -> int:
        """Of a step."""
        raise NotImplementedError


class Model(Protocol):
    """A model with or without mixtures of experts."""

    @property
    def moe_layers(self) -> list[MoE]: ...

    def aux_loss(self) -> Tensor: ...


class TextTask(Shared):
    """A byte-level decoder.

    Attributes:
        corpus: of :func:`tradeoff.data.text.load`.
        other: the corpus of the switch.
        length: bytes of a sequence.
    """

    task: Literal["text"] = "text"
    corpus: str = "foldoc"
    other: str = "python"
    length: int = Field(default=64, ge=2)

    def model(self, mixture: MoEConfig | None, seed: int) -> Decoder:
        """See :class:`Shared`."""
        config = DecoderConfig(
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            hidden=self.active_width,
            max_len=self.length,
            ffn="swiglu" if mixture is None else mixture,
            init_std=self.dim**-0.5,
        )
        return Decoder(config, torch.Generator().manual_seed(seed))

    def training(self) -> Examples:
        """See :class:`Shared`."""
        return _windows(self.corpus, "train", self.length)

    def other_training(self) -> Examples:
        """See :class:`Shared`."""
        return _windows(self.other, "train", self.length)

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of the next byte, in nats."""
        return functional.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())

    def held_out_batches(self) -> list[tuple[Tensor, Tensor]]:
        """Sequences that are spread evenly over the validation part."""
        windows = _windows(self.corpus, "validation", self.length)
        positions = torch.linspace(0, len(windows) - 1, min(self.held_out, len(windows))).long()
        return [windows[part] for part in torch.split(positions, 64)]

    @property
    def tokens(self) -> int:
        """See :class:`Shared`."""
        return self.batch * self.length


class DigitsTask(Shared):
    """A diffusion transformer on scikit-learn's 8x8 digits, patches of 2x2 pixels as tokens.

    Attributes:
        patch: side of a patch.
        noise_steps: of the diffusion.
    """

    task: Literal["digits"] = "digits"
    batch: int = Field(default=32, ge=1)
    patch: int = Field(default=2, ge=1)
    noise_steps: int = Field(default=1000, ge=4)

    def model(self, mixture: MoEConfig | None, seed: int) -> DiT:
        """See :class:`Shared`."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return DiT(
                DiTConfig(
                    patch=self.patch,
                    dim=self.dim,
                    layers=self.layers,
                    heads=self.heads,
                    hidden=self.active_width,
                    ffn=mixture,
                )
            )

    def training(self) -> Examples:
        """See :class:`Shared`."""
        return _digits().train

    def other_training(self) -> Examples:
        """The same digits in negative."""
        return _Negative(_digits().train)

    @cached_property
    def diffusion(self) -> Diffusion:
        """The process that adds noise."""
        return Diffusion(self.noise_steps)

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of the predicted noise, at random steps, or at those that ``targets`` has."""
        labels = targets if targets.ndim == 1 else targets[:, 0]
        steps = torch.randint(self.noise_steps, labels.shape, device=labels.device)
        if targets.ndim == 2:
            steps = targets[:, 1]
        noise = torch.randn(inputs.shape, device=inputs.device)
        return functional.mse_loss(model(self.diffusion.noisy(inputs, steps, noise), steps, labels), noise)

    def held_out_batches(self) -> list[tuple[Tensor, Tensor]]:
        """One batch for each quarter of the steps, the cleanest first; targets are label and step."""
        split = _digits().test
        count = min(self.held_out, len(split))
        inputs, labels = split[torch.arange(count)]
        quarters = torch.linspace(0, self.noise_steps - 1, 4 * count).long()
        return [(inputs, torch.stack([labels, steps], 1)) for steps in torch.split(quarters, count)]

    @property
    def groups(self) -> tuple[str, ...]:
        """Quarters of the noise."""
        return ("cleanest", "clean", "noisy", "noisiest")

    @property
    def tokens(self) -> int:
        """See :class:`Shared`."""
        return self.batch * (8 // self.patch) ** 2


Task = Annotated[TextTask | DigitsTask, Field(discriminator="task")]


class _Negative:
    """Images with signs turned."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, positions: Any) -> tuple[Tensor, Tensor]:
        inputs, labels = self.examples[positions]
        return -inputs, labels


class Switchable:
    """Data that can be replaced by other data during a training.

    Args:
        sources: the first is read until :meth:`switch`, the second from then on.
    """

    def __init__(self, sources: Sequence[Examples]) -> None:
        self.sources = list(sources)

    def switch(self) -> None:
        """Go over to the next source."""
        del self.sources[0]

    def __len__(self) -> int:
        return min(map(len, self.sources))

    def __getitem__(self, positions: Any) -> tuple[Tensor, Tensor]:
        return self.sources[0][positions]


@lru_cache(maxsize=8)
def _windows(corpus: str, split: str, length: int) -> text.Windows:
    return text.load(corpus, split).windows(length)


@lru_cache(maxsize=1)
def _digits() -> images.ImageData:
    return images.load("digits")
