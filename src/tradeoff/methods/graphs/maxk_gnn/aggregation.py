"""Sums over neighbors of compressed features, by whichever kernels are faster for this graph, d and k.

Aggregating k of d features is cheaper the smaller k / d is; from some k on the dense kernel wins, and that
point differs between forward and backward, between graphs and between processors. ``auto`` measures both on a
sample of the graph's rows, once for each (graph, d, k, direction, number of threads). Where all features are
kept there is nothing to measure: the values are the dense matrix.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from tradeoff.engines.kernels import CBSR, Graph, cbsr_sddmm, cbsr_spmm, maxk, spmm

Kernel = Literal["cbsr", "dense"]
Aggregation = Literal["auto", "cbsr", "dense"]
Direction = Literal["forward", "backward"]
AGGREGATIONS: tuple[Aggregation, ...] = ("auto", "cbsr", "dense")

CALIBRATION_SECONDS = 0.05
"""What the calibration of one direction takes about."""
SAMPLED_ENTRIES = 1 << 17
"""Entries of the rows that a calibration multiplies; larger graphs are extrapolated."""
_BLOCK = 64
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 100


@dataclass(frozen=True)
class Choice:
    """The kernel that one direction uses, and the estimated seconds of each for the whole graph."""

    kernel: Kernel
    cbsr_seconds: float
    dense_seconds: float


def aggregate(graph: Graph, features: CBSR, aggregation: Aggregation = "auto") -> Float[Tensor, "n d"]:
    """``A H`` of compressed features, differentiable in their values; the weights of A are constants.

    Args:
        aggregation: ``cbsr``: the sparse-feature kernels in both directions; ``dense``: the dense ones;
            ``auto``: dense if all features are kept, else for each direction the faster one, see
            :func:`choose`. On GPUs ``auto`` does not measure, and takes ``cbsr``.

    Raises:
        OperandError: the features do not fit the graph.
    """
    kernels = _kernels(graph, features, aggregation)
    operands = (features.values, features.index, features.count, features.num_columns, graph, *kernels)
    result: Tensor = _Aggregate.apply(*operands)  # type: ignore[no-untyped-call]
    return result


def _kernels(graph: Graph, features: CBSR, aggregation: Aggregation) -> tuple[Kernel, Kernel]:
    """Of the forward and of the backward pass."""
    if aggregation != "auto":
        return aggregation, aggregation
    if features.k == features.num_columns:
        return "dense", "dense"
    if graph.device.type != "cpu":
        return "cbsr", "cbsr"
    shape = features.num_columns, features.k
    return choose(graph, *shape, "forward").kernel, choose(graph, *shape, "backward").kernel


class _Aggregate(torch.autograd.Function):
    """Forward and backward by kernels that are chosen apart; keeps the columns, not the values."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        index: Tensor,
        count: Tensor | None,
        num_columns: int,
        graph: Graph,
        forward: Kernel,
        backward: Kernel,
    ) -> Tensor:
        ctx.save_for_backward(index, count)
        ctx.num_columns, ctx.graph, ctx.backward_kernel = num_columns, graph, backward
        return _forward(graph, CBSR.unchecked(values, index, num_columns, count), forward)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        index, count = ctx.saved_tensors
        columns = CBSR.unchecked(grad.new_empty(index.shape), index, ctx.num_columns, count)
        for_values = _backward(ctx.graph, grad.contiguous(), columns, ctx.backward_kernel)
        return for_values, None, None, None, None, None, None


def _forward(graph: Graph, features: CBSR, kernel: Kernel) -> Tensor:
    """Row-wise product (section 4.1)."""
    if kernel == "cbsr":
        return cbsr_spmm(graph, features)
    return spmm(graph, features.values if _is_dense(features) else features.to_dense())


def _backward(graph: Graph, grad: Tensor, columns: CBSR, kernel: Kernel) -> Tensor:
    """Sampled outer product (section 4.2): dV[j,t] = sum_i a_ij G[i, index[j,t]], 0 beyond a row's count."""
    if kernel == "cbsr":
        return cbsr_sddmm(graph, grad, columns)
    product = spmm(graph.transpose(), grad)
    if _is_dense(columns):
        return product
    sampled = product.gather(1, columns.index.long())
    if columns.count is not None:
        beyond = torch.arange(columns.k, device=grad.device) >= columns.count[:, None]
        sampled.masked_fill_(beyond, 0)
    return sampled


def _is_dense(features: CBSR) -> bool:
    """Whether the values are the dense matrix: columns ascend, so that d of them are all, in their order."""
    return features.k == features.num_columns and features.count is None


_choices: WeakKeyDictionary[Any, dict[tuple[int, int, Direction, int], Choice]] = WeakKeyDictionary()


def choose(graph: Graph, num_columns: int, k: int, direction: Direction) -> Choice:
    """The faster kernel for aggregating k of ``num_columns`` features, measured at the first call."""
    known = _choices.setdefault(graph.structure, {})
    key = (num_columns, k, direction, torch.get_num_threads())
    if key not in known:
        known[key] = _calibrate(graph, num_columns, k, direction)
    return known[key]


def choices(graph: Graph) -> dict[tuple[int, int, Direction], Choice]:
    """What was chosen for this graph with the current number of threads: (d, k, direction) -> choice."""
    threads = torch.get_num_threads()
    return {key[:3]: choice for key, choice in _choices.get(graph.structure, {}).items() if key[3] == threads}


@torch.no_grad()
def _calibrate(graph: Graph, num_columns: int, k: int, direction: Direction) -> Choice:
    graph = graph.to(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(max(graph.shape), num_columns, generator=generator)
    features = maxk(dense[: graph.num_columns], k)
    index = features.index.long()
    calls: dict[Kernel, Callable[[Graph], Tensor]]
    if direction == "forward":
        parts = dict.fromkeys(("cbsr", "dense"), _sampled(graph))
        calls = {
            "cbsr": lambda part: cbsr_spmm(part, features),
            "dense": lambda part: spmm(part, dense[: part.num_columns]),
        }
        convert: Callable[[], Tensor] = features.to_dense
    else:
        # The dense backward pass multiplies by the transpose, so it samples rows of that one.
        parts = {"cbsr": _sampled(graph), "dense": _sampled(graph.transpose())}
        calls = {
            "cbsr": lambda part: cbsr_sddmm(part, dense[: part.num_rows], features),
            "dense": lambda part: spmm(part, dense[: part.num_columns]),
        }
        convert = partial(torch.gather, dense[: graph.num_columns], 1, index)
    sample = _seconds({name: partial(call, parts[name]) for name, call in calls.items()})
    # What does not grow with the sample, such as clearing the result, is not multiplied.
    fixed = _seconds({name: partial(call, _without_rows(parts[name])) for name, call in calls.items()}, 0)
    total = {
        name: fixed[name] + max(0.0, sample[name] - fixed[name]) * graph.nnz / max(1, parts[name].nnz)
        for name in calls
    }
    # The dense kernels also pay for the way from, or back to, the compressed form.
    total["dense"] += _seconds({"dense": convert}, 0)["dense"]
    kernel: Kernel = "cbsr" if total["cbsr"] <= total["dense"] else "dense"
    return Choice(kernel, total["cbsr"], total["dense"])


def _sampled(graph: Graph) -> Graph:
    """Evenly spaced blocks of rows with about :data:`SAMPLED_ENTRIES` entries; all rows of a small graph."""
    if graph.nnz <= SAMPLED_ENTRIES:
        return graph
    blocks = torch.arange(0, graph.num_rows, _BLOCK)
    step = max(1, round(graph.nnz / SAMPLED_ENTRIES))
    chosen = torch.zeros(graph.num_rows, dtype=torch.bool)
    for start in blocks[step // 2 :: step].tolist() or [0]:
        chosen[start : start + _BLOCK] = True
    degrees = graph.degrees()
    entries = torch.repeat_interleave(chosen, degrees)
    indptr = torch.zeros(int(chosen.sum()) + 1, dtype=torch.int64)
    torch.cumsum(degrees[chosen], 0, out=indptr[1:])
    values = None if graph.values is None else graph.values.detach()[entries]
    return Graph.from_csr(indptr, graph.indices[entries], values, graph.num_columns)


def _without_rows(graph: Graph) -> Graph:
    values = None if graph.values is None else graph.values[:0]
    return Graph.from_csr(graph.indptr[:1], graph.indices[:0], values, graph.num_columns)


def _seconds(
    candidates: Mapping[Kernel, Callable[[], object]], budget: float = CALIBRATION_SECONDS
) -> dict[Kernel, float]:
    """Least processor seconds per thread of each candidate; they take turns until the budget is spent.

    Processor time, not the clock on the wall: other programs must not decide which kernel runs.
    """
    threads = torch.get_num_threads()
    best = dict.fromkeys(candidates, math.inf)
    for call in candidates.values():
        call()  # warm-up: memory and caches
    started, rounds = time.process_time(), 0
    while rounds < _FEWEST_ROUNDS or (time.process_time() - started < budget and rounds < _MOST_ROUNDS):
        for name, call in candidates.items():
            before = time.process_time()
            call()
            best[name] = min(best[name], (time.process_time() - before) / threads)
        rounds += 1
    return best
