"""Trained networks with the data that they are scored on, by name: what engines run when they are tried."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tradeoff.core.context import cached_folder
from tradeoff.core.errors import DataError
from tradeoff.data import checkpoints, images
from tradeoff.data.downloads import cache_folder
from tradeoff.data.text import sections
from tradeoff.nn.encoders import TextClassifier
from tradeoff.nn.fit import FitConfig, Indexable, fit
from tradeoff.nn.models import build, load_weights, save_weights

TEXT_TASK = "debian-sections"
TOKENS = 24
"""Of a text; one-line descriptions have 12 on average."""
FINETUNING = FitConfig(epochs=3, batch_size=32, optimizer="adamw", learning_rate=2e-4)
TRAINING = FitConfig(epochs=4, batch_size=64, optimizer="adam", learning_rate=1e-3)


@dataclass(frozen=True)
class Workload:
    """A trained classifier and its task.

    Attributes:
        model: in evaluation mode.
        train: what it was trained on, and what ranges of activations may be taken from.
        test: to score it on.
        layers: regular expression of the names of the layers that do the work; empty for all.
    """

    model: nn.Module
    train: Indexable
    test: Indexable
    layers: str = ""


def load_workload(model: str, task: str, weights: Path | None = None, seed: int = 0) -> Workload:
    """A classifier for a task: from its weights, else trained here once and kept in the user's cache.

    Args:
        model: ``minilm`` or the folder of another BERT encoder for ``debian-sections``, an architecture of
            :data:`tradeoff.nn.models.ARCHITECTURES` for images.
        task: ``debian-sections``, or a data set of :mod:`tradeoff.data.images`.
        weights: of the whole classifier (safetensors).
        seed: of the training.

    Raises:
        DataError: model, task or weights are not here, or do not fit together.
    """
    return _texts(model, weights, seed) if task == TEXT_TASK else _images(model, task, weights, seed)


def _texts(model: str, weights: Path | None, seed: int) -> Workload:
    folder = checkpoints.minilm() if model == "minilm" else Path(model)
    if not folder.is_dir():
        raise DataError(f"{TEXT_TASK} takes minilm or the folder of a BERT encoder, not {model!r}")
    parts = sections.load()
    train, test = (parts[part].tokens(folder / "tokenizer.json", TOKENS) for part in ("train", "test"))
    torch.manual_seed(seed)
    network = TextClassifier.from_pretrained(folder, len(sections.SECTIONS))
    network.freeze_embeddings()
    names = {"model": str(folder), "task": TEXT_TASK, "texts": parts["train"].digest}
    _train(network, train, FINETUNING, weights, seed, names)
    return Workload(network.eval(), train, test, layers=r"encoder\.layer")


def _images(model: str, task: str, weights: Path | None, seed: int) -> Workload:
    data = images.load(task)
    torch.manual_seed(seed)
    network = build(model, data.num_classes, data.input_shape)
    _train(network, data.train, TRAINING, weights, seed, {"model": model, "task": task})
    return Workload(network.eval(), data.train, data.test)


def _train(
    network: nn.Module,
    train: Indexable,
    config: FitConfig,
    weights: Path | None,
    seed: int,
    names: dict[str, Any],
) -> None:
    """Bring a network to its trained weights."""
    if weights is None:
        config = config.model_copy(update={"seed": seed})
        key = {**names, "fit": config.model_dump(mode="json"), "examples": len(train)}
        folder = cached_folder(cache_folder("trained"), key, _trainer(network, train, config))
        weights = folder / "model.safetensors"
    load_weights(network, weights)


def _trainer(network: nn.Module, train: Indexable, config: FitConfig) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        fit(network, train, None, config)
        save_weights(network, folder / "model.safetensors")

    return run
