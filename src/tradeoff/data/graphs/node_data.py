"""What every node-classification set is once loaded."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from tradeoff.core.errors import DataError, MissingExtra
from tradeoff.nn.graphs import Adjacency

if TYPE_CHECKING:
    from torch_geometric.data import Data


@dataclass(frozen=True)
class NodeData:
    """One graph with features and labels of its nodes.

    Attributes:
        name: the name it was loaded by.
        graph: the adjacency matrix as NumPy arrays.
        x: float32 features ``(nodes, features)``.
        y: int64 classes ``(nodes,)``; float32 zeros and ones ``(nodes, classes)`` where ``multi_label``.
        train, validation, test: which nodes belong to each part; disjoint, and need not cover all.
        num_classes: of the labels, or columns of them.
        multi_label: whether a node may have several classes.
        class_names: where the source has them.
        origin: what exactly was read: a date and checksum, or a folder.
        group: nodes with equal numbers come from one source and were kept in one part of the split; None
            where each node stands for itself.
    """

    name: str
    graph: Adjacency
    x: Float32[Tensor, "nodes features"]
    y: Tensor
    train: Bool[Tensor, " nodes"]
    validation: Bool[Tensor, " nodes"]
    test: Bool[Tensor, " nodes"]
    num_classes: int
    multi_label: bool = False
    class_names: tuple[str, ...] = ()
    origin: str = ""
    group: Int64[Tensor, " nodes"] | None = None

    def __post_init__(self) -> None:
        nodes = self.graph.num_nodes
        parts = (self.train, self.validation, self.test)
        if any(len(per_node) != nodes for per_node in (self.x, self.y, *parts)):
            raise DataError(
                f"{self.name}: features, labels and splits must have one row for each of {nodes:,} nodes"
            )
        if any(part.dtype != torch.bool for part in parts) or torch.stack(parts).sum(0).gt(1).any():
            raise DataError(f"{self.name}: a node is in two parts of the split")
        if self.multi_label:
            if self.y.shape != (nodes, self.num_classes) or not self.y.is_floating_point():
                raise DataError(
                    f"{self.name}: multi-label targets must be float32 (nodes, {self.num_classes})"
                )
            return
        labeled = self.y[self.train | self.validation | self.test]
        if self.y.dtype != torch.int64 or (
            len(labeled) and not 0 <= labeled.min() <= labeled.max() < self.num_classes
        ):
            raise DataError(f"{self.name}: labels must be integers from 0 to {self.num_classes - 1}")

    @property
    def num_nodes(self) -> int:
        """How many nodes there are."""
        return self.graph.num_nodes

    @property
    def num_features(self) -> int:
        """How many features a node has."""
        return self.x.shape[1]

    @cached_property
    def edge_index(self) -> Int64[Tensor, "2 nnz"]:
        """Sources and targets, as PyTorch Geometric orders them; each direction of an edge is one column."""
        return torch.from_numpy(self.graph.edge_index)

    @property
    def homophily(self) -> float:
        """The part of the edges that join nodes of one class (single-label sets)."""
        y = self.y.numpy()
        return float(np.mean(y[self.graph.rows] == y[self.graph.indices])) if self.graph.nnz else 0.0

    def to_pyg(self) -> "Data":
        """As PyTorch Geometric's ``Data``, with ``train_mask``, ``val_mask`` and ``test_mask``.

        Raises:
            MissingExtra: PyTorch Geometric is not installed.
        """
        try:
            from torch_geometric.data import Data
        except ImportError as error:
            raise MissingExtra("torch_geometric", "graphs") from error
        data = Data(x=self.x, edge_index=self.edge_index, y=self.y)
        data.train_mask, data.val_mask, data.test_mask = self.train, self.validation, self.test
        if self.graph.values is not None:
            data.edge_weight = torch.from_numpy(self.graph.values)
        return data


def masks(
    num_nodes: int, train: np.ndarray, validation: np.ndarray, test: np.ndarray
) -> tuple[Bool[Tensor, " nodes"], Bool[Tensor, " nodes"], Bool[Tensor, " nodes"]]:
    """A mask for each array of node numbers.

    Raises:
        DataError: a number is none of a node.
    """

    def mask_of(part: np.ndarray) -> Bool[Tensor, " nodes"]:
        if part.ndim != 1 or part.dtype.kind not in "iu":
            raise DataError("a split must be a vector of node numbers")
        if len(part) and not 0 <= int(part.min()) <= int(part.max()) < num_nodes:
            raise DataError(f"a split names a node that is not among the {num_nodes:,} of the graph")
        mask = torch.zeros(num_nodes, dtype=torch.bool)
        mask[torch.from_numpy(part.astype(np.int64))] = True
        return mask

    return mask_of(train), mask_of(validation), mask_of(test)
