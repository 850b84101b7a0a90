"""Networks with MaxK beside the dense one, trained and timed: what the command prints."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tradeoff.core.files import write_json as write_document
from tradeoff.engines.kernels import Graph
from tradeoff.nn.models import save_weights

from .breakdown import amdahl_limit
from .errors import ModelError
from .model import Kind, MaxKGNN
from .nodes import load_nodes
from .systems import build
from .timing import EpochTime, time_epochs
from .traffic import traffic
from .training import Splits, train


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        score: mean test score over the seeds, None for peers, which are timed only; deviation: its s.d.
        epoch_seconds: processor seconds.
        speed_up: over the dense network, where there is one.
        breakdown: seconds of the epoch by part.
        traffic_ratio: modelled ratio of the bytes that aggregation moves, dense to this.
        aggregation_ratio: measured ratio of its seconds.
    """

    network: str
    score: float | None
    deviation: float
    epoch_seconds: float
    speed_up: float | None
    breakdown: dict[str, float]
    traffic_ratio: float | None
    aggregation_ratio: float | None


@dataclass(frozen=True)
class Report:
    """All networks on one graph.

    Attributes:
        aggregation_share: of the sums over neighbors in the dense network's epoch; None without one.
        share: of all parts of it that MaxK makes shorter: sums, nodes' own products, dropout.
        limit: Amdahl's, of that share.
    """

    data: str
    nodes: int
    entries: int
    aggregation_share: float | None
    share: float | None
    limit: float | None
    rows: list[Row]


def compare_networks(
    name: str,
    *,
    kind: Kind,
    hidden: int,
    layers: int,
    ks: Sequence[int],
    baseline: bool,
    epochs: int,
    lr: float,
    dropout: float,
    seeds: int,
    self_loops: bool,
    peers: Sequence[str],
    device: str,
    out: Path | None,
    progress: Callable[[str], object],
) -> Report:
    """Train a dense network (if ``baseline``) and one for each k, and time their epochs by turns.

    Raises:
        ModelError: no network is asked for, a k does not fit, or peers of another kind than ``sage``.
        DataError: the data set is unknown or not here.
    """
    if not ks and not baseline:
        raise ModelError("there is no network to train: give k, or the baseline")
    if unknown := set(peers) - {"torch", "pyg"}:
        raise ModelError(f"peers are torch and pyg, not {', '.join(sorted(unknown))}")
    if peers and kind != "sage":
        raise ModelError(f"peers are there for sage, not for {kind}")
    data, graph = load_nodes(name)
    graph, x, y = graph.to(device), data.x.to(device), data.y.to(device)
    sizes = (data.num_features, hidden, layers, data.num_classes)
    rows: dict[str, int | None] = ({"relu": None} if baseline else {}) | {f"maxk {k}": k for k in ks}
    networks: dict[str, nn.Module] = {}
    scores: dict[str, list[float]] = {row: [] for row in rows}
    for row, k in rows.items():
        for seed in range(seeds):
            torch.manual_seed(seed)
            network = MaxKGNN(kind, *sizes, k, dropout=dropout).to(device)
            scores[row].append(_trained(network, graph, x, y, data, epochs, lr, seed, self_loops))
            progress(f"{row}, seed {seed}: {scores[row][-1]:.4f}")
            networks.setdefault(row, network)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            save_weights(networks[row], out / f"{row.replace(' ', '')}.safetensors")
    networks |= {peer: build(peer, *sizes, None, dropout=dropout).to(device) for peer in peers}
    progress("timing epochs side by side")
    times = time_epochs(networks, graph, x, y, data.train, self_loops=self_loops)
    dense = times.get("relu")
    share = (dense.aggregation + dense.own_product + dense.activation) / dense.seconds if dense else None
    return Report(
        data=name,
        nodes=graph.num_rows,
        entries=graph.nnz,
        aggregation_share=dense.aggregation / dense.seconds if dense else None,
        share=share,
        limit=None if share is None else amdahl_limit(share),
        rows=[
            _row(row, rows.get(row), scores.get(row), time, dense, graph, hidden)
            for row, time in times.items()
        ],
    )


def _trained(
    network: MaxKGNN,
    graph: Graph,
    x: Tensor,
    y: Tensor,
    splits: Splits,
    epochs: int,
    lr: float,
    seed: int,
    self_loops: bool,
) -> float:
    scoring = "micro_f1" if y.is_floating_point() else "accuracy"
    settings = {"epochs": epochs, "lr": lr, "seed": seed, "self_loops": self_loops}
    return train(network, graph, x, y, splits, scoring=scoring, **settings).test_acc  # type: ignore[arg-type]


def _row(
    name: str,
    k: int | None,
    scores: list[float] | None,
    time: EpochTime,
    dense: EpochTime | None,
    graph: Graph,
    hidden: int,
) -> Row:
    return Row(
        network=name,
        score=None if scores is None else statistics.fmean(scores),
        deviation=statistics.stdev(scores) if scores and len(scores) > 1 else 0.0,
        epoch_seconds=time.seconds,
        speed_up=None if dense is None else dense.seconds / time.seconds,
        breakdown=time.breakdown.seconds,
        traffic_ratio=None if k is None else traffic(graph.num_rows, graph.nnz, hidden, k).ratio,
        aggregation_ratio=None if k is None or dense is None else dense.aggregation / time.aggregation,
    )


def write_json(report: Report, path: Path) -> None:
    """Write the report as one JSON document."""
    write_document(path, dataclasses.asdict(report))
