"""What the commands print and write."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from tradeoff.core.context import usable_device
from tradeoff.nn.decoder import DecoderConfig, InvalidConfig

from .checkpoint import save
from .decode import REFERENCE, Candidate, DecodeTime, attention_shape, parse_contexts, time_decoding
from .traffic import DEGREES, rank_traffic
from .training import Run, Setup, train
from .variants import document, known, parameter_count

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def description(old: DecoderConfig, new: DecoderConfig) -> dict[str, Any]:
    """A converted configuration, its size and its cache beside the old one's."""
    return {
        "config": document(new),
        "parameters": {"before": parameter_count(old), "after": parameter_count(new)},
        "cached_numbers_per_token_and_layer": {
            "before": cached_numbers(old),
            "after": cached_numbers(new),
        },
    }


def cached_numbers(config: DecoderConfig) -> dict[str, int]:
    """Ranks -> numbers of a token in a layer of a rank's cache, for those that the heads divide among."""
    found = {}
    for ranks in DEGREES:
        try:
            found[str(ranks)] = rank_traffic(config, ranks).numbers
        except InvalidConfig:
            continue
    return found


def run_bench(
    variants: Sequence[str],
    degrees: Sequence[int],
    contexts: Sequence[str],
    heads: int,
    head_dim: int,
    kv_rank: int,
    rounds: int,
    dtype: str,
    device: str,
) -> dict[int, dict[Candidate, DecodeTime]]:
    """Context -> candidates and their times.

    Raises:
        InvalidConfig: a dtype or a text that is no number of tokens, or a variant that does not divide.
        UnknownName: no such variant.
    """
    if dtype not in DTYPES:
        raise InvalidConfig(f"dtype is {dtype!r}; it is one of {', '.join(DTYPES)}")
    candidates = [Candidate(known(name), ranks) for name in variants for ranks in degrees]
    lengths = parse_contexts(contexts)
    shape, where = attention_shape(heads, head_dim, kv_rank), usable_device(device)
    return {
        length: time_decoding(
            candidates, length, shape=shape, rounds=rounds, device=where, dtype=DTYPES[dtype]
        )
        for length in lengths
    }


def bench_table(found: Mapping[int, Mapping[Candidate, DecodeTime]]) -> Table:
    """Times of all contexts."""
    limits = [time.limit for times in found.values() for time in times.values()]
    table = Table(
        title="one token's attention, one layer of one rank",
        caption=f"one thread adds up a large tensor at {statistics.median(limits) / 1e9:.1f} GB/s"
        if limits
        else None,
    )
    for heading in (
        "context",
        "variant",
        "ranks",
        "B/token",
        "ms",
        f"{REFERENCE} / it",
        "data-parallel / it",
    ):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    table.add_column("GB/s", justify="right")
    for length, times in found.items():
        for each, time in times.items():
            table.add_row(
                f"{length:,}",
                each.variant,
                str(each.ranks),
                f"{time.bytes // length:,}",
                f"{time.seconds * 1e3:.2f}",
                f"{time.ratio[0]:.2f} ({time.ratio[1]:.2f} to {time.ratio[2]:.2f})",
                f"{time.data_parallel_ratio[0]:.2f}",
                f"{time.bandwidth / 1e9:.1f}",
            )
    return table


def bench_document(found: Mapping[int, Mapping[Candidate, DecodeTime]]) -> dict[str, Any]:
    """The same as JSON values."""
    return {"rows": [asdict(time) for times in found.values() for time in times.values()]}


@dataclass(frozen=True)
class TrainRow:
    """Trainings of one variant.

    Attributes:
        runs: one for each seed.
        cached: numbers of a token in all layers on 1, 2, 4 and 8 ranks.
    """

    variant: str
    runs: list[Run]
    cached: dict[str, int]

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(run.loss for run in self.runs)


def train_variants(
    setup: Setup,
    variants: Sequence[str],
    seeds: int,
    device: str,
    out: Path | None,
    say: Callable[[str], None],
) -> list[TrainRow]:
    """Train each variant with each seed; with ``out``, keep weights and configuration of the first.

    Raises:
        UnknownName: no such variant.
        InvalidConfig: a variant does not fit the sizes, or nothing can be written to ``out``.
    """
    for name in variants:  # before the first is trained
        setup.decoder(known(name))
    if out is not None:
        _make_folder(out)
    rows = []
    for name in variants:
        runs = []
        for seed in range(seeds):
            model, run = train(setup, name, seed, device)
            say(f"{name}, seed {seed}: {run.loss:.4f} nats a token after {run.seconds:.0f} s")
            runs.append(run)
            if out is not None and seed == 0:
                save(model, out / name)
        layers = model.config.layers
        cached = {ranks: layers * count for ranks, count in cached_numbers(model.config).items()}
        rows.append(TrainRow(name, runs, cached))
    return rows


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(f"cannot write to {folder}: {error.strerror}") from None


def train_table(rows: Sequence[TrainRow]) -> Table:
    """Loss and cache of the variants."""
    table = Table(title="equal parameters, equal text")
    for heading in (
        "variant",
        "parameters",
        "loss",
        "perplexity",
        "numbers cached per token on 1 / 2 / 4",
        "s",
    ):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in rows:
        losses = [run.loss for run in row.runs]
        error = f" ± {statistics.stdev(losses) / len(losses) ** 0.5:.4f}" if len(losses) > 1 else ""
        table.add_row(
            row.variant,
            f"{row.runs[0].parameters:,}",
            f"{row.loss:.4f}{error}",
            f"{math.exp(row.loss):.3f}",
            " / ".join(str(row.cached.get(ranks, "-")) for ranks in ("1", "2", "4")),
            f"{statistics.fmean(run.seconds for run in row.runs):.0f}",
        )
    return table


def train_document(setup: Setup, rows: Sequence[TrainRow]) -> dict[str, Any]:
    """The same as JSON values."""
    return {"setup": setup.model_dump(mode="json"), "rows": [asdict(row) for row in rows]}
