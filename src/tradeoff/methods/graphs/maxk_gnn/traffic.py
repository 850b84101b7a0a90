"""How many bytes aggregation asks of memory: a model, beside which measured times are printed."""

from dataclasses import dataclass

_EDGE = 8
"""Bytes of an entry of the graph: its column and its weight."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of one aggregation, forward and backward, and what the model predicts from them.

    Attributes:
        forward, backward: with k of d features.
        dense: with all d, in either direction.
    """

    forward: int
    backward: int
    dense: int

    @property
    def ratio(self) -> float:
        """How many times fewer bytes both directions move together than the dense ones."""
        return 2 * self.dense / (self.forward + self.backward)


def traffic(num_nodes: int, nnz: int, hidden: int, k: int) -> Traffic:
    """Bytes by the sizes of float32 values and uint8 (above 256 columns int16) indices.

    Forward each entry reads k values and their columns, and the result is written; backward the gradient is
    read once and each entry reads and writes k sums and reads k columns.
    """
    stored = 4 + (1 if hidden <= 256 else 2)
    return Traffic(
        forward=nnz * (stored * k + _EDGE) + num_nodes * 4 * hidden,
        backward=num_nodes * 4 * hidden + nnz * ((4 + stored) * k + _EDGE),
        dense=nnz * (4 * hidden + _EDGE) + num_nodes * 4 * hidden,
    )
