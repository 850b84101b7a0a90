"""The study: traffic and time of a rank, real ranks, and quality at equal parameters."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import pydantic
import torch
from pydantic import Field

from tradeoff.core import Card, Context, Method, Metric, Outcome, Recipe, Trial, counted, measured
from tradeoff.core.errors import TradeoffError
from tradeoff.nn.decoder import DecoderConfig
from tradeoff.nn.decoder.config import AttentionName

from .claims import CLAIMS
from .decode import Candidate, attention_shape, time_decoding
from .ranks import run_ranks
from .traffic import rank_traffic
from .training import Setup, train
from .variants import VARIANTS, convert, parameter_count, published, with_attention

VOCABULARY = 256
"""Of the models that ranks share; divides by 8."""


class DecodeSettings(pydantic.BaseModel):
    """Which caches are read.

    Attributes:
        contexts: tokens in the cache.
        rows: variant -> ranks; 1 is data parallelism.
        heads, head_dim, kv_rank: of the model whose attention is varied.
        rounds: timed calls of each.
        dtype: of cache and queries.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    contexts: list[int] = Field(min_length=1)
    rows: dict[AttentionName, list[int]]
    heads: int = Field(default=16, ge=1)
    head_dim: int = Field(default=128, ge=4)
    kv_rank: int = Field(default=512, ge=4)
    rounds: int = Field(default=9, ge=1)
    dtype: str = Field(default="float32", pattern="^(float32|bfloat16|float16)$")

    @pydantic.model_validator(mode="after")
    def _can_be_shared(self) -> Self:
        shape = attention_shape(self.heads, self.head_dim, self.kv_rank)
        for each in self.candidates:
            try:
                rank_traffic(with_attention(shape, each.variant), each.ranks)
            except TradeoffError as error:
                raise ValueError(f"{each.name}: {error}") from error
        return self

    @property
    def candidates(self) -> list[Candidate]:
        """Rows of the table."""
        return [Candidate(variant, ranks) for variant, degrees in self.rows.items() for ranks in degrees]


class RankSettings(pydantic.BaseModel):
    """Which models are shared among processes.

    Attributes:
        degrees: numbers of processes.
        dim, layers, heads: of the models.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    degrees: list[int] = Field(min_length=1)
    variants: list[AttentionName] = Field(min_length=1)
    dim: int = Field(default=64, ge=8)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=8, ge=1)

    def config(self, variant: str) -> DecoderConfig:
        """The model of a variant."""
        plain = DecoderConfig(
            vocab=VOCABULARY,
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            hidden=8 * self.dim // 3 // 8 * 8,
        )
        return convert(plain, variant)


class MLRARecipe(Recipe):
    """What the study varies."""

    traffic: list[int] = Field([1, 2, 4, 8], description="ranks for which the cache of a token is counted")
    decode: DecodeSettings | None = Field(None, description="caches that one rank's attention reads, timed")
    ranks: RankSettings | None = Field(None, description="models that processes share, held against one")
    quality: Setup | None = Field(None, description="training at equal parameters")
    variants: list[AttentionName] = Field(
        list(VARIANTS), description="of attention, in the parts traffic and quality"
    )
    threads: int | None = Field(1, ge=1, description="of training; models this small need only one")

    @pydantic.model_validator(mode="after")
    def _can_be_built(self) -> Self:
        for ranks in self.traffic:
            rank_traffic(published("mlra4"), ranks)
        for variant in self.variants if self.quality else ():
            self.quality.decoder_of(variant, VOCABULARY)  # type: ignore[union-attr]
        for settings in (self.ranks,) if self.ranks else ():
            for variant in settings.variants:
                for ranks in settings.degrees:
                    rank_traffic(settings.config(variant), ranks)
        return self


class MLRA(Method[MLRARecipe]):
    """Multi-head low-rank attention."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = MLRARecipe
    claims = CLAIMS
    timed = True

    def trials(self, recipe: MLRARecipe) -> list[Trial]:
        """Counts and comparisons with one process once, all else for every seed."""
        once: list[tuple[str, dict[str, Any]]] = [
            (variant, {"part": "traffic", "ranks": ranks})
            for variant in recipe.variants
            for ranks in recipe.traffic
        ]
        if recipe.ranks is not None:
            once += [
                (variant, {"part": "ranks", "ranks": ranks})
                for ranks in recipe.ranks.degrees
                for variant in recipe.ranks.variants
            ]
        cells: list[tuple[str, dict[str, Any]]] = []
        if recipe.decode is not None:
            cells += [
                (each.variant, {"part": "decode", "ranks": each.ranks, "context": context})
                for context in recipe.decode.contexts
                for each in recipe.decode.candidates
            ]
        if recipe.quality is not None:
            cells += [(variant, {"part": "quality"}) for variant in recipe.variants]
        return [Trial(variant=variant, setting=setting, seed=0) for variant, setting in once] + [
            Trial(variant=variant, setting=setting, seed=seed)
            for variant, setting in cells
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: MLRARecipe, context: Context) -> Outcome:
        """Count, time, share or train."""
        part: Any = {"traffic": _traffic, "decode": _decode, "ranks": _ranks, "quality": _quality}
        return Outcome(trial=trial, metrics=part[trial.setting["part"]](trial, recipe, context))


def _traffic(trial: Trial, recipe: MLRARecipe, context: Context) -> dict[str, Metric]:
    """The paper's model; a cache of two bytes a number."""
    config = published(trial.variant)
    own = rank_traffic(config, _number(trial, "ranks"))
    return {
        "kv_bytes_per_token": counted(2 * own.numbers * config.layers),
        "parameters": counted(parameter_count(config)),
    }


def _decode(trial: Trial, recipe: MLRARecipe, context: Context) -> dict[str, Metric]:
    settings, length = recipe.decode, _number(trial, "context")
    assert settings is not None

    def build(folder: Path) -> None:
        with context.progress(None, f"reading caches of {length:,} tokens"):
            times = time_decoding(
                settings.candidates,
                length,
                shape=attention_shape(settings.heads, settings.head_dim, settings.kv_rank),
                rounds=settings.rounds,
                device=context.device,
                dtype=getattr(torch, settings.dtype),
                seed=trial.seed,
            )
        document = {
            each.name: {"seconds": time.seconds, "bytes": time.bytes, "limit": time.limit}
            for each, time in times.items()
        }
        (folder / "times.json").write_text(json.dumps(document))

    key = {"decode": settings.model_dump(mode="json"), "context": length, "seed": trial.seed}
    key["device"] = context.device
    times = json.loads((context.cache(key, build) / "times.json").read_text())
    mine = times[Candidate(trial.variant, _number(trial, "ranks")).name]
    return {
        "kv_bytes_per_token": counted(mine["bytes"] // length),
        "decode_seconds": measured(mine["seconds"]),
        "cache_bandwidth": measured(mine["bytes"] / mine["seconds"] / 1e9),
        "read_bandwidth": measured(mine["limit"] / 1e9),
    }


def _ranks(trial: Trial, recipe: MLRARecipe, context: Context) -> dict[str, Metric]:
    settings, ranks = recipe.ranks, _number(trial, "ranks")
    assert settings is not None

    def build(folder: Path) -> None:
        with context.progress(None, f"sharing models among {ranks} processes"):
            configs = {str(variant): settings.config(variant) for variant in settings.variants}
            reports = run_ranks(configs, ranks, seed=trial.seed)
        document = {name: asdict(report) for name, report in reports.items()}
        (folder / "ranks.json").write_text(json.dumps(document))

    key = {"ranks": settings.model_dump(mode="json"), "of": ranks, "seed": trial.seed}
    mine = json.loads((context.cache(key, build) / "ranks.json").read_text())[trial.variant]
    return {
        "kv_bytes_per_token": counted(mine["cache_bytes"] * settings.layers),
        "allreduce_bytes": counted(mine["attention_bytes"]),
        "output_error": measured(mine["output_error"]),
        "gradient_error": measured(mine["gradient_error"]),
    }


def _quality(trial: Trial, recipe: MLRARecipe, context: Context) -> dict[str, Metric]:
    setup = recipe.quality
    assert setup is not None
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    with context.progress(setup.steps, "training") as bar:
        model, run = train(setup, trial.variant, trial.seed, context.device, bar.advance)
    own = rank_traffic(model.config, 4)
    return {
        "loss": measured(run.loss),
        "parameters": counted(run.parameters),
        "kv_bytes_per_token": counted(4 * own.numbers * model.config.layers),
        "training_seconds": measured(run.seconds),
        "peak_memory": measured(run.peak_memory),
    }


def _number(trial: Trial, name: str) -> int:
    return int(trial.setting[name] or 0)
