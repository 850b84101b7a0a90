"""DGL's CPU products A X, weighted and not, beside the torch of this process."""

import sys
import types
from typing import Any

from torch import Tensor


def load_dgl() -> Any:
    """DGL 2.1.0; its module ``graphbolt``, built for one old torch, is replaced by an empty one."""
    sys.modules.setdefault("dgl.graphbolt", types.ModuleType("dgl.graphbolt"))
    import dgl

    return dgl


class DglProduct:
    """Sums over neighbors by DGL's message passing: ``u_mul_e_sum`` with weights, ``copy_u_sum`` without."""

    def __init__(self, indptr: Tensor, indices: Tensor, values: Tensor | None) -> None:
        dgl = load_dgl()
        # In DGL's sparse form rows are sources and edges point to columns: A^T by its columns is A by rows.
        self._graph = dgl.graph(("csc", (indptr, indices.long(), [])), num_nodes=indptr.numel() - 1)
        self._graph = self._graph.formats(["csc"])
        self._graph.create_formats_()
        self._weights = None if values is None else values[:, None]
        self._operators = dgl.ops

    def __call__(self, x: Tensor) -> Tensor:
        if self._weights is None:
            result: Tensor = self._operators.copy_u_sum(self._graph, x)
        else:
            result = self._operators.u_mul_e_sum(self._graph, x, self._weights)
        return result
