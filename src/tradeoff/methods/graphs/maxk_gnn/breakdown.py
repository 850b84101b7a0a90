"""Where the time of a training epoch goes, and what that allows at most (Amdahl's law)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.profiler_legacy import profile

PARTS = (
    "select",
    "dropout",
    "spmm_fwd",
    "spmm_bwd",
    "own_gemm",
    "gemm",
    "norm",
    "optimizer",
    "other",
)
"""Of an epoch: selection of the k largest; dropout and ReLU; aggregation forward and backward; products of
nodes' own activations with weights (``sage``); all other products with weights; layer normalization; the
optimizer's step; every other operator."""

_BACKWARD = "autograd::engine::evaluate_function"
_RULES: tuple[tuple[str, str], ...] = (
    ("Optimizer.", "optimizer"),
    ("_CompressedLinear", "own_gemm"),
    ("_SparseLinear", "gemm"),
    ("_Aggregate", "spmm"),
    ("_TorchAggregate", "spmm"),
    ("tradeoff_kernels::maxk_select", "select"),
    ("tradeoff_kernels::cbsr_spmm", "spmm"),
    ("tradeoff_kernels::cbsr_sddmm", "spmm"),
    ("tradeoff_kernels::spmm", "spmm"),
    ("aten::_sparse_mm", "spmm"),
    ("aten::sparse_mm", "spmm"),
    ("aten::topk", "select"),
    ("aten::sort", "select"),
    ("tradeoff_kernels::cbsr_dense", "own_gemm"),
    # Of all linear layers only those of nodes' own activations have no bias.
    ("aten::addmm", "gemm"),
    ("aten::mm", "own_gemm"),
    ("aten::layer_norm", "norm"),
    ("aten::dropout", "dropout"),
    ("aten::relu", "dropout"),
    ("_Dropout", "dropout"),
    (f"{_BACKWARD}: GeneratedBackwardFor_tradeoff_kernels_maxk_select", "select"),
    (f"{_BACKWARD}: GeneratedBackwardFor_tradeoff_kernels_cbsr_dense", "own_gemm"),
    (f"{_BACKWARD}: SparseAddmmBackward0", "spmm"),
    (f"{_BACKWARD}: AddmmBackward0", "gemm"),
    (f"{_BACKWARD}: MmBackward0", "own_gemm"),
    (f"{_BACKWARD}: NativeLayerNormBackward0", "norm"),
    (f"{_BACKWARD}: ReluBackward0", "dropout"),
)
"""Prefixes of operators, and their part; the outermost operator that one names decides for all within."""


@dataclass
class Breakdown:
    """Seconds of one epoch by :data:`PARTS`.

    Attributes:
        seconds: of each part, measured operator by operator.
        epoch: of the same epoch by the clock on the wall, measured apart.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    epoch: float = 0.0

    @property
    def aggregation(self) -> float:
        """Seconds of the sums over neighbors, forward and backward."""
        return self.seconds["spmm_fwd"] + self.seconds["spmm_bwd"]

    @property
    def activation(self) -> float:
        """Seconds of the nonlinearity and dropout."""
        return self.seconds["select"] + self.seconds["dropout"]

    @property
    def covered(self) -> float:
        """The part of the epoch that the operators' seconds explain."""
        return sum(self.seconds.values()) / self.epoch if self.epoch else 0.0


def amdahl_limit(share: float) -> float:
    """The speed-up if what takes ``share`` of the time took none: 1 / (1 - p).

    Raises:
        ValueError: the share is not from 0 to below 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"a share is from 0 to below 1, not {share}")
    return 1 / (1 - share)


@contextmanager
def profiled(device: torch.device | str = "cpu") -> Iterator[Breakdown]:
    """Fill a breakdown with what runs within the block on a device, taken as one epoch."""
    breakdown, gpu = Breakdown(), torch.device(device).type == "cuda"
    # The older of torch's profilers: it has what is needed, and writes nothing to the terminal.
    with profile(use_cuda=gpu) as trace:  # type: ignore[no-untyped-call]
        started = _now(gpu)
        yield breakdown
        breakdown.epoch = _now(gpu) - started
    unit = "device_time_total" if gpu else "cpu_time_total"
    for event in trace.function_events or ():
        if event.cpu_parent is None:
            _attribute(event, unit, False, breakdown.seconds)


def _now(gpu: bool) -> float:
    """The clock on the wall, as the profiler reads it, once a GPU has done what it was given."""
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def _attribute(event: Any, unit: str, backward: bool, seconds: dict[str, float]) -> None:
    """Add an operator's time, and that of the operators within it, to the parts."""
    backward = backward or event.name.startswith(_BACKWARD)
    part = next((part for prefix, part in _RULES if event.name.startswith(prefix)), None)
    if part is None:
        seconds["other"] += getattr(event, f"self_{unit}") * 1e-6
        for inner in event.cpu_children:
            _attribute(inner, unit, backward, seconds)
    else:
        if part == "spmm":
            part = "spmm_bwd" if backward else "spmm_fwd"
        seconds[part] += getattr(event, unit) * 1e-6
