"""The two tasks: what class a node is of, and which nodes will meet next."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import scipy.sparse
import scipy.stats
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tradeoff.core.errors import DataError
from tradeoff.data.graphs import (
    LinkPairs,
    LinkSplits,
    NodeData,
    TemporalEvents,
    load,
    load_events,
    split_links,
)
from tradeoff.data.graphs.node_data import masks
from tradeoff.nn.checkpoint import weights_digest
from tradeoff.nn.fit import evaluate
from tradeoff.nn.graphs import from_edges
from tradeoff.nn.graphs.arrays import load_npz

from .models import GCN, LinkFNN, NodeFNN, link_loss
from .training import Objective
from .walks import skip_gram, temporal_walks

VALIDATION = 0.2
"""Part of the training window, its last, that chooses the epoch."""


@dataclass(frozen=True)
class Task:
    """Data, network and scores.

    Attributes:
        build: makes a new network.
        objective: what is trained, and what the validation split chooses by.
        test: quantities that a network reaches on the test split.
    """

    train: TensorDataset
    validation: TensorDataset
    build: Callable[[], nn.Module]
    objective: Objective
    test: Callable[[nn.Module], dict[str, float]]

    @property
    def example(self) -> Tensor:
        """The inputs of one sample."""
        return self.train.tensors[0][:1]

    @property
    def digest(self) -> str:
        """A name of what is trained on and chosen by."""
        tensors = enumerate((*self.train.tensors, *self.validation.tensors))
        return weights_digest({str(number): tensor for number, tensor in tensors})


class NodeSource(pydantic.BaseModel):
    """Node classification.

    Attributes:
        data: a name of :func:`tradeoff.data.graphs.load`, or an ``.npz`` file; see :func:`read_nodes`.
        projection: numbers that a node's features are projected to; as many again are its neighbors' mean.
        network: ``fnn`` sees projected features, ``gcn`` the graph and all features as they are.
        hidden, dropout: of the network; a GCN has one hidden width.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    data: str = "debian"
    network: Literal["fnn", "gcn"] = "fnn"
    projection: int = Field(default=128, ge=1)
    hidden: tuple[int, ...] = Field(default=(256, 128), min_length=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def task(self) -> Task:
        """Load and prepare the data."""
        data = read_nodes(Path(self.data)) if self.data.endswith(".npz") else load(self.data)
        if self.network == "gcn":
            return gcn_task(data, self.hidden[0], self.dropout)
        return node_task(data, self.projection, self.hidden, self.dropout)


def read_nodes(path: Path) -> NodeData:
    """A graph of one's own from an ``.npz`` file.

    Its arrays: ``x`` ``(nodes, features)``, integers ``y`` ``(nodes,)``, ``edge_index`` ``(2, edges)``, and
    numbers of nodes ``train``, ``validation`` and ``test``.

    Raises:
        DataError: the file is absent or damaged, or its arrays do not fit together.
    """
    arrays = load_npz(path, ("x", "y", "edge_index", "train", "validation", "test"))
    x, y, edges = (arrays[name] for name in ("x", "y", "edge_index"))
    if (
        x.ndim != 2
        or y.shape != x.shape[:1]
        or y.dtype.kind not in "iu"
        or x.dtype.kind not in "fiu"
        or not len(y)
    ):
        raise DataError(f"{path}: x must be numbers (nodes, features), and y integers (nodes,)")
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype.kind not in "iu":
        raise DataError(f"{path}: edge_index must be integers (2, edges)")
    if edges.size and not 0 <= edges.min() <= edges.max() < len(x):
        raise DataError(f"{path}: edge_index names a node that x lacks")
    if y.min() < 0:
        raise DataError(f"{path}: classes in y count from 0")
    if y.max() >= len(y):
        raise DataError(
            f"{path}: y has class {y.max()}, of {len(y)} nodes; classes count from 0 without gaps"
        )
    with np.errstate(over="ignore"):
        features = x.astype(np.float32)
    bad = np.argwhere(~np.isfinite(features))
    if len(bad):
        node, feature = bad[0]
        raise DataError(
            f"{path}: x[{node}, {feature}] is {x[node, feature]}; features are finite numbers of 32 bits"
        )
    train, validation, test = masks(len(x), arrays["train"], arrays["validation"], arrays["test"])
    return NodeData(
        path.stem,
        from_edges(edges[1], edges[0], len(x), name=path.stem),
        torch.from_numpy(features),
        torch.from_numpy(y.astype(np.int64)),
        train,
        validation,
        test,
        num_classes=int(y.max()) + 1,
        origin=str(path),
    )


def node_task(data: NodeData, projection: int, hidden: tuple[int, ...], dropout: float) -> Task:
    """Classes of nodes by a network that sees :func:`node_features`.

    Raises:
        DataError: nodes have several classes each, or a split has none.
    """
    _check(data)
    x = node_features(data, projection)
    return _classes(data, x, lambda: NodeFNN(x.shape[1], data.num_classes, hidden, dropout), Objective())


def gcn_task(data: NodeData, hidden: int, dropout: float, weight_decay: float = 5e-4) -> Task:
    """Classes of nodes by a :class:`GCN`, of which the first layer alone has weight decay.

    Raises:
        DataError: nodes have several classes each, or a split has none.
    """
    _check(data)
    edges = torch.from_numpy(data.graph.edge_index)

    def groups(network: nn.Module) -> list[dict[str, Any]]:
        return [{"params": network.get_submodule("first").parameters(), "weight_decay": weight_decay}]

    def build() -> nn.Module:
        return GCN(data.x, edges, data.num_classes, hidden, dropout)

    return _classes(data, torch.arange(len(data.x)), build, Objective(parameter_groups=groups))


def _check(data: NodeData) -> None:
    if data.multi_label:
        raise DataError(f"{data.name}: nodes with several classes each are not supported here")
    for name in ("train", "validation", "test"):
        if not getattr(data, name).any():
            raise DataError(f"{data.name}: split {name} is empty")


def _classes(data: NodeData, x: Tensor, build: Callable[[], nn.Module], objective: Objective) -> Task:
    """A task whose test gives the accuracy."""
    train, validation, test = (
        TensorDataset(x[part], data.y[part]) for part in (data.train, data.validation, data.test)
    )
    return Task(train, validation, build, objective, lambda network: {"accuracy": evaluate(network, test)})


def node_features(data: NodeData, projection: int) -> Float[Tensor, "nodes features"]:
    """A node's features and its neighbors' mean, projected at random, standardized on the training nodes.

    Raises:
        DataError: features are so large that their sums are not finite.
    """
    graph = data.graph
    nodes, inputs = data.x.shape
    directions = np.random.default_rng(0).normal(size=(inputs, projection)) / projection**0.5
    own = data.x.numpy() @ directions.astype(np.float32)
    edges = np.ones(len(graph.indices), dtype=np.float32)
    neighbors = scipy.sparse.csr_array((edges, graph.indices, graph.indptr), shape=(nodes, nodes))
    degrees = np.maximum(np.diff(graph.indptr), 1).astype(np.float32)
    x = torch.from_numpy(np.hstack([own, (neighbors @ own) / degrees[:, None]]))
    seen = x[data.train]
    deviations = seen.std(0, correction=int(len(seen) > 1))  # one node has no deviation but 0
    standard: Tensor = (x - seen.mean(0)) / deviations.clamp_min(1e-6)
    if not bool(standard.isfinite().all()):
        raise DataError(f"{data.name}: features are too large to be added up in 32 bits")
    return standard


class LinkSource(pydantic.BaseModel):
    """Temporal link prediction.

    Attributes:
        data: a name of :func:`tradeoff.data.graphs.load_events`.
        walks, length, window, negatives, epochs, dimension: of :func:`temporal_walks` and :func:`skip_gram`.
        hidden: width of the network.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    data: str = "college-msg"
    walks: int = Field(default=10, ge=1)
    length: int = Field(default=6, ge=2)
    window: int = Field(default=5, ge=1)
    negatives: int = Field(default=5, ge=1)
    epochs: int = Field(default=5, ge=1)
    dimension: int = Field(default=8, ge=1)
    hidden: int = Field(default=128, ge=1)

    def splits(self) -> LinkSplits:
        """The history, the training window and the test window."""
        return split_links(load_events(self.data))

    def embed(self, history: TemporalEvents, seed: int, folder: Path) -> None:
        """Learn the embeddings of the nodes from the first part of the events, and store them."""
        settings = self.model_dump(exclude={"data", "hidden"})
        save_file({"embeddings": embed(history, seed, **settings)}, folder / "embeddings.safetensors")

    def task(self, splits: LinkSplits, folder: Path) -> Task:
        """Prepare the data with stored embeddings."""
        return link_task(splits, load_file(folder / "embeddings.safetensors")["embeddings"], self.hidden)


def embed(
    history: TemporalEvents, seed: int, *, walks: int = 10, length: int = 6, **skip_gram_settings: Any
) -> Float[Tensor, "nodes dimension"]:
    """Embeddings of nodes from walks over events."""
    nodes, _ = temporal_walks(
        history.source,
        history.target,
        history.time,
        per_node=walks,
        length=length,
        generator=np.random.default_rng(seed),
    )
    return skip_gram(nodes, history.num_nodes, seed=seed, **skip_gram_settings)


def link_task(splits: LinkSplits, embeddings: Float[Tensor, "nodes dimension"], hidden: int) -> Task:
    """Which pairs will meet, from the embeddings of both; the last fifth of the training window validates."""
    scale = embeddings[torch.from_numpy(splits.history.nodes)].std().clamp_min(1e-6)
    x, y = _pairs(splits.train, embeddings / scale)
    late = torch.from_numpy(splits.train.time > np.quantile(splits.train.time, 1 - VALIDATION))
    inputs, labels = _pairs(splits.test, embeddings / scale)
    new = ~torch.from_numpy(splits.test.repeated)

    def test(network: nn.Module) -> dict[str, float]:
        scores = _logits(network, inputs)
        return {
            "auc": float(roc_auc_score(labels, scores)),
            "auc_error": auc_error(labels.numpy(), scores.numpy()),
            "auc_new": float(roc_auc_score(labels[new], scores[new])),
        }

    return Task(
        TensorDataset(x[~late], y[~late]),
        TensorDataset(x[late], y[late]),
        build=lambda: LinkFNN(x.shape[1], hidden),
        objective=Objective(link_loss, auc),
        test=test,
    )


def auc(network: nn.Module, split: TensorDataset) -> float:
    """Area under the receiver operating characteristic of a network's logits."""
    inputs, labels = split.tensors
    return float(roc_auc_score(labels, _logits(network, inputs)))


def auc_error(labels: Int64[np.ndarray, " pairs"], scores: Float[np.ndarray, " pairs"]) -> float:
    """Standard error of the area under the curve over samples of so many pairs (DeLong et al., 1988).

    The area is the mean, over the pairs of one class, of the part of the other class that a pair is on the
    right side of; the variances of these parts within the two classes, each over its size, add up.
    """
    linked, apart = scores[labels == 1], scores[labels == 0]
    ranks = scipy.stats.rankdata(np.concatenate([linked, apart]))
    above = (ranks[: len(linked)] - scipy.stats.rankdata(linked)) / len(apart)
    below = 1 - (ranks[len(linked) :] - scipy.stats.rankdata(apart)) / len(linked)
    return float((above.var(ddof=1) / len(linked) + below.var(ddof=1) / len(apart)) ** 0.5)


@torch.no_grad()
def _logits(network: nn.Module, inputs: Tensor) -> Tensor:
    training, device = network.training, next(network.parameters()).device
    logits: Tensor = network.eval()(inputs.to(device)).cpu()
    network.train(training)
    return logits


def _pairs(pairs: LinkPairs, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    ends = embeddings[torch.from_numpy(pairs.source)], embeddings[torch.from_numpy(pairs.target)]
    return torch.cat(ends, 1), torch.from_numpy(pairs.label)
