"""Full-batch training of node classifiers, with the epoch's time taken apart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.engines.kernels import Graph
from tradeoff.nn.fit import Callback, FitConfig, FitState, History, fit
from tradeoff.nn.keep_best import KeepBest
from tradeoff.nn.optimization import Schedule

from .breakdown import Breakdown, profiled
from .errors import LabelError
from .model import sparse_if_worth
from .scores import Scoring, score

__all__ = ["NodeSplits", "Splits", "TrainResult", "fit_full_batch", "predict", "train"]


class Splits(Protocol):
    """Which nodes are for what: each is a mask or a list of nodes."""

    @property
    def train(self) -> Tensor: ...
    @property
    def validation(self) -> Tensor: ...
    @property
    def test(self) -> Tensor: ...


@dataclass(frozen=True)
class NodeSplits:
    """Masks, or lists, of the nodes for training, validation and testing."""

    train: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    Attributes:
        test_acc: test score of the epoch with the best validation score: accuracy, or what ``scoring`` says.
        validation_acc: that validation score.
        best_epoch: that epoch, from 1.
        epoch_seconds: median over the epochs by the clock on the wall, evaluation left out.
        breakdown: of one epoch in its middle.
        history: one entry an epoch: loss, seconds, and the scores where they were measured.
    """

    test_acc: float
    validation_acc: float
    best_epoch: int
    epoch_seconds: float
    breakdown: Breakdown
    history: History


def train(
    model: nn.Module,
    graph: Graph,
    x: Float[Tensor, "n features"],
    y: Shaped[Tensor, "n ..."],
    splits: Splits,
    *,
    epochs: int = 200,
    lr: float = 0.003,
    schedule: Schedule = "cosine",
    weight_decay: float = 0.0,
    scoring: Scoring = "accuracy",
    evaluate_every: int = 1,
    self_loops: bool = False,
    seed: int = 97,
    checkpoint: Path | None = None,
) -> TrainResult:
    """Train a network on all nodes at once with Adam, and keep the weights of the best validation score.

    Args:
        model: a :class:`MaxKGNN`, or any module with its ``normalized`` and ``forward``; trained in place.
        graph: the adjacency matrix A[target, source], as it is: the model scales it.
        x: features of the nodes.
        y: a class for each node (int64), or a 0/1 label for each of several classes (float, [n, classes]).
        splits: which nodes are for training, validation and testing.
        epochs: steps, each on all training nodes.
        lr, schedule: learning rate, as of :class:`tradeoff.nn.fit.FitConfig`. The published code has a
            constant one, of 0.01 on Reddit, at which deep networks with ReLU fail to learn on smaller graphs.
        scoring: ``accuracy`` for classes; ``micro_f1`` or ``roc_auc`` for several labels.
        evaluate_every: epochs between two evaluations; the last one is always evaluated.
        self_loops: join each node with itself first.
        seed: of dropout; the weights are the model's.
        checkpoint: file to go on from if it exists, and to write while training.

    Raises:
        LabelError: features, labels or splits do not fit the graph, or the scoring does not fit the labels.
        TrainingDiverged: the loss is infinite or NaN.
        NanActivation: a layer's features are NaN.

    Example::

        result = train(model, graph, x, y, splits, epochs=200)
        print(result.test_acc, result.epoch_seconds, result.breakdown.seconds)
    """
    if epochs < 1:
        raise ValueError(f"epochs is at least 1, not {epochs}")
    graph = cast(Any, model).normalized(graph, self_loops=self_loops)
    _check_operands(graph, x, y, splits, scoring)
    features = sparse_if_worth(x)
    config = FitConfig(
        epochs=epochs,
        batch_size=1,
        optimizer="adam",
        learning_rate=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        seed=seed,
    )
    best = KeepBest(_Scores(graph, features, y, splits, scoring, evaluate_every))
    middle = _ProfileOne(step=min(epochs - 1, max(1, epochs // 2)))
    history = fit_full_batch(model, graph, features, y, splits.train, config, [best, middle], checkpoint)
    best.restore(model)
    scores = history.epochs[best.epoch - 1]
    seconds = [s for step, s in enumerate(history.column("seconds")) if step != middle.step]
    return TrainResult(
        test_acc=scores["test_accuracy"],
        validation_acc=scores["validation_accuracy"],
        best_epoch=best.epoch,
        epoch_seconds=statistics.median(seconds or history.column("seconds")),
        breakdown=middle.breakdown,
        history=history,
    )


def fit_full_batch(
    model: nn.Module,
    graph: Graph,
    x: Tensor | Graph,
    y: Tensor,
    train_nodes: Tensor,
    config: FitConfig,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
) -> History:
    """:func:`tradeoff.nn.fit.fit` where the only batch is all training nodes.

    Args:
        graph: as the model's ``forward`` needs it.
        train_nodes: whose labels are in the loss.
    """

    def loss(network: nn.Module, nodes: Tensor, labels: Tensor) -> Tensor:
        return node_loss(network(graph, x)[nodes], labels)

    return fit(
        model,
        _OneBatch(train_nodes, y[train_nodes]),
        None,
        config,
        loss=loss,
        callbacks=callbacks,
        checkpoint=checkpoint,
    )


@torch.no_grad()
def predict(
    model: nn.Module, graph: Graph, x: Float[Tensor, "n features"] | Graph
) -> Float[Tensor, "n classes"]:
    """Logits in evaluation mode, without dropout, whatever mode the model is in and stays in.

    Args:
        graph: as the model's ``forward`` needs it.
    """
    training = model.training
    try:
        logits: Tensor = model.eval()(graph, x)
    finally:
        model.train(training)
    return logits


class _OneBatch:
    """A data set of one item: the training nodes and their labels."""

    def __init__(self, nodes: Tensor, labels: Tensor) -> None:
        self.nodes, self.labels = nodes, labels

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any, /) -> tuple[Tensor, Tensor]:
        return self.nodes, self.labels


@dataclass(frozen=True)
class _Scores:
    """Writes the scores of an epoch into its history, and gives the validation score."""

    graph: Graph
    x: Tensor | Graph
    y: Tensor
    splits: Splits
    scoring: Scoring
    every: int

    def __call__(self, state: FitState) -> float | None:
        if state.epoch % self.every and state.step < state.total_steps:
            return None
        logits = predict(state.model, self.graph, self.x)
        for name, nodes in (("validation", self.splits.validation), ("test", self.splits.test)):
            state.logs[f"{name}_accuracy"] = score(logits[nodes], self.y[nodes], self.scoring)
        return state.logs["validation_accuracy"]


class _ProfileOne(Callback):
    """Takes the time of one step apart."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.breakdown = Breakdown()
        self._running = ExitStack()

    def on_step_begin(self, state: FitState) -> None:
        if state.step == self.step:
            self.breakdown = self._running.enter_context(profiled(state.device))

    def on_step_end(self, state: FitState) -> None:
        self._running.close()

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.breakdown.seconds, "epoch": self.breakdown.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.breakdown = Breakdown(dict(state["seconds"]), state["epoch"])


def node_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of one class a node, or binary cross-entropy of several labels (float)."""
    if labels.is_floating_point():
        return functional.binary_cross_entropy_with_logits(logits, labels)
    return functional.cross_entropy(logits, labels)


def _check_operands(graph: Graph, x: Tensor, y: Tensor, splits: Splits, scoring: Scoring) -> None:
    nodes = graph.num_rows
    for name, tensor in (("x", x), ("y", y)):
        if tensor.shape[0] != nodes:
            raise LabelError(f"{name} has {tensor.shape[0]} rows, the graph has {nodes} nodes")
    several = y.is_floating_point()
    wanted: Literal["classes", "several labels"] = "classes" if scoring == "accuracy" else "several labels"
    if several == (scoring == "accuracy"):
        raise LabelError(f"scoring={scoring!r} is for {wanted}; y has shape {tuple(y.shape)} and {y.dtype}")
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        if part.dtype == torch.bool and part.shape != (nodes,):
            raise LabelError(f"split {name} is a mask of {tuple(part.shape)}, the graph has {nodes} nodes")
        if not y[part].numel():
            raise LabelError(f"split {name} is empty")
        if not several and int(y[part].min()) < 0:
            raise LabelError(f"split {name} has nodes without a class (label {int(y[part].min())})")
