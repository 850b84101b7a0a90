"""What LoT is tried on: short texts that a network learns by heart, and few images with wrong labels."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from tradeoff.core.errors import DataError
from tradeoff.data import images, text
from tradeoff.nn.decoder import Decoder, DecoderConfig
from tradeoff.nn.fit import Indexable
from tradeoff.nn.models import ARCHITECTURES, build

Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """Data and networks.

    Attributes:
        train: for :func:`tradeoff.nn.fit.fit`.
        validation: inputs and targets by which a step may be chosen.
        test: inputs and targets for what is reported.
        make: a network from torch's random state, given its dropout.
        classifies: whether an input has one label, so that there is an accuracy.
    """

    train: Indexable
    validation: Examples
    test: Examples
    make: Callable[[float], nn.Module]
    classifies: bool


class MLP(nn.Module):
    """Two hidden layers of 128 units on the pixels; dropout behind each."""

    def __init__(self, inputs: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        hidden = [nn.Linear(inputs, 128), nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(
            nn.Flatten(), *hidden, nn.Linear(128, 128), nn.ReLU(), nn.Dropout(dropout)
        )
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        out: Tensor = self.fc(self.hidden(x))
        return out


def text_task(
    corpus: str,
    *,
    train_bytes: int,
    held_out_bytes: int,
    length: int,
    dim: int,
    layers: int,
    heads: int = 4,
    init_std: float = 0.05,
    tokenizer: str = "bytes",
) -> Task:
    """A decoder on the first bytes of a corpus, validated and tested on those that follow.

    Args:
        corpus: as for :func:`tradeoff.data.text.load`.
        train_bytes: tokens to train on; windows of them begin anywhere.
        held_out_bytes: tokens to validate on, and as many behind them to test on.
        length: tokens of a window.
        dim, layers, heads, init_std: of the decoder.
        tokenizer: as for ``load``.

    Raises:
        DataError: the corpus is too short.
    """
    tokens = text.load(corpus, tokenizer=tokenizer)
    needed = train_bytes + 2 * held_out_bytes
    if len(tokens) < needed:
        raise DataError(f"{corpus} has {len(tokens):,} tokens to train on; {needed:,} are asked for")

    def part(begin: int, end: int) -> text.Tokens:
        return replace(tokens, ids=tokens.ids[begin:end], num_bytes=end - begin)

    middle = train_bytes + held_out_bytes
    config = DecoderConfig(
        vocab=tokens.vocabulary, dim=dim, layers=layers, heads=heads, max_len=length, init_std=init_std
    )
    return Task(
        train=part(0, train_bytes).windows(length, stride=1),
        validation=part(train_bytes, middle).windows(length)[:],
        test=part(middle, needed).windows(length)[:],
        make=lambda dropout: Decoder(replace(config, dropout=dropout)),
        classifies=False,
    )


def image_task(data: str, *, examples: int | None, noise: float, arch: str, seed: int) -> Task:
    """A classifier of images, some of which have random labels.

    Args:
        data: as for :func:`tradeoff.data.images.load`.
        examples: training images, drawn by the seed; None for all of the split.
        noise: part of them whose label is drawn anew among all classes.
        arch: ``mlp``, or an architecture of :mod:`tradeoff.nn.models`.
        seed: of the draw.

    Raises:
        DataError: there are fewer training images.
    """
    loaded = images.load(data)
    count = len(loaded.train) if examples is None else examples
    if count > len(loaded.train):
        raise DataError(f"{data} has {len(loaded.train):,} training images; {count:,} are asked for")
    train: Indexable = loaded.train
    if examples is not None or noise:
        train = _drawn(loaded.train, count, noise, loaded.num_classes, seed)

    def make(dropout: float) -> nn.Module:
        if arch == "mlp":
            return MLP(int(np.prod(loaded.input_shape)), loaded.num_classes, dropout)
        network = build(arch, loaded.num_classes, loaded.input_shape)
        if dropout:
            network.fc = nn.Sequential(nn.Dropout(dropout), cast(nn.Module, network.fc))
        return network

    return Task(train, loaded.validation[:], loaded.test[:], make, classifies=True)


def check_arch(arch: str) -> str:
    """The name, if it is one that :func:`image_task` builds and can give dropout."""
    known = ["mlp", *(name for name in ARCHITECTURES if name != "vgg16")]
    if arch not in known:
        raise ValueError(f"arch {arch!r} is none of {', '.join(known)}")
    return arch


def _drawn(
    split: images.Split | Indexable, count: int, noise: float, classes: int, seed: int
) -> TensorDataset:
    random = np.random.default_rng(seed)
    positions = torch.from_numpy(random.permutation(len(split))[:count])
    x, y = split[positions]
    y = y.clone()
    wrong = torch.from_numpy(random.permutation(count)[: round(noise * count)])
    y[wrong] = torch.from_numpy(random.integers(0, classes, len(wrong)))
    return TensorDataset(x, y)


Predict = Callable[[Tensor], Float[Tensor, "rows classes"]]


@torch.no_grad()
def score(predict: Predict, examples: Examples, batch_size: int = 256) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy, of predicted log-probabilities, over all targets."""
    total, correct, rows = 0.0, 0, 0
    for x, y in zip(*(torch.split(part, batch_size) for part in examples), strict=True):
        predicted, targets = predict(x), y.flatten()
        total += float(functional.nll_loss(predicted, targets, reduction="sum"))
        correct += int((predicted.argmax(1) == targets).sum())
        rows += len(targets)
    return total / rows, correct / rows


def log_probabilities(*networks: nn.Module) -> Predict:
    """Predictions in evaluation mode; of several networks the mean of their probabilities."""

    def predict(x: Tensor) -> Tensor:
        logs = []
        for network in networks:
            training = network.training
            network.eval()
            logits = network(x.to(next(network.parameters()).device)).flatten(0, -2)
            logs.append(logits.float().log_softmax(1).cpu())
            network.train(training)
        return torch.stack(logs).logsumexp(0) - float(np.log(len(logs)))

    return predict
