"""The study: Medusa next to plain decoding and to what transformers offers, on prompts of three kinds."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydantic
import torch
from pydantic import Field

from tradeoff.core import Card, Context, Method, Metric, Outcome, Recipe, Trial, counted, measured
from tradeoff.nn.fit import FitConfig

from .backbone import Backbone, load_backbone
from .bytes_experiment import BytesSettings, run_bytes
from .claims import CLAIMS
from .experiment import Settings, check_texts, run_comparison
from .peers import Peer
from .prompts import KINDS

WHOLE = 1.0
BYTES_VARIANTS = ("backbone", "medusa-1", "medusa-2", "self-distilled medusa-2", "sampling", "typical")


class MedusaRecipe(Recipe):
    """What the study varies."""

    backbone: str = Field("smollm2", description="smollm2, random, or a Llama-family checkpoint")
    corpus: str = Field("foldoc", description="whose paragraphs prose begins from")
    prompts: int = Field(200, ge=1, description="of each kind, whose continuations the heads learn from")
    new_tokens: int = Field(96, ge=4, description="of a continuation at most")
    held_out_prompts: int = Field(16, ge=1, description="of each kind, by which the tree is chosen")
    held_out_tokens: int = Field(64, ge=4, description="of a continuation of these")
    num_heads: int = Field(3, ge=1, description="heads")
    draft_vocab: int | None = Field(4096, ge=1, description="tokens that heads can guess; null for all")
    training: FitConfig = Field(description="of the heads")
    parts: list[float] = Field(
        [WHOLE], description="of the continuations that heads are trained on, each a row"
    )
    max_nodes: int = Field(32, ge=1, description="of a tree")
    nodes: int | None = Field(None, description="of the tree; null for the number that is predicted fastest")
    checked_prompts: int = Field(
        67, ge=0, description="of each kind, whose text must be that of the plain loop"
    )
    checked_tokens: int = Field(24, ge=2, description="of these texts")
    timed_prompts: int = Field(3, ge=1, description="of each kind, decoded by every variant in turn")
    timed_tokens: int = Field(32, ge=2, description="of these texts")
    untrained: bool = Field(True, description="whether heads as they start are a row")
    peers: list[Peer] = Field([], description="decoders of transformers that are rows")
    exit_layer: int = Field(8, ge=1, description="layers of the assistant in assisted decoding")
    joint: BytesSettings | None = Field(
        None, description="whether training with the backbone and typical acceptance are tried on bytes"
    )
    threads: int | None = Field(1, ge=1, description="of everything that is timed")

    @pydantic.model_validator(mode="after")
    def _parts(self) -> "MedusaRecipe":
        if not self.parts or sorted(set(self.parts)) != self.parts or self.parts[0] <= 0:
            raise ValueError(f"parts are increasing numbers above 0, not {self.parts}")
        if self.parts[-1] != WHOLE:
            raise ValueError(f"the last part is {WHOLE}, not {self.parts[-1]}")
        if self.checked_prompts == self.timed_prompts:
            raise ValueError("checked_prompts and timed_prompts differ, so that rows can be told apart")
        return self


class MedusaStudy(Method[MedusaRecipe]):
    """Several heads that guess ahead, and one pass that verifies."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = MedusaRecipe
    claims = CLAIMS
    timed = True

    def trials(self, recipe: MedusaRecipe) -> list[Trial]:
        """Each way to decode on each kind of prompts; the long check of equality with one seed alone."""
        fixed = ["plain", "prompt-lookup", *(["untrained"] if recipe.untrained else []), *recipe.peers]
        cells: list[tuple[str, dict[str, Any], int]] = []
        for kind in KINDS:
            few, many = recipe.timed_prompts, recipe.checked_prompts
            rows = [(name, 0.0) for name in fixed] + [("medusa", part) for part in recipe.parts]
            cells += [
                (name, {"kind": kind, "part": part, "prompts": few}, recipe.seeds) for name, part in rows
            ]
            if many:
                cells.append(("medusa", {"kind": kind, "part": WHOLE, "prompts": many}, 1))
        if recipe.joint is not None:
            few = recipe.joint.prompts
            setting = {"kind": "bytes", "part": WHOLE, "prompts": few}
            cells += [(name, setting, recipe.seeds) for name in BYTES_VARIANTS]
        return [
            Trial(variant=variant, setting=setting, seed=seed)
            for variant, setting, seeds in cells
            for seed in range(seeds)
        ]

    def run(self, trial: Trial, recipe: MedusaRecipe, context: Context) -> Outcome:
        """Read the row from what the comparison of its seed gave, which runs once for all rows."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        kind = str(trial.setting["kind"])
        few = trial.setting["prompts"] == recipe.timed_prompts
        what = "bytes" if kind == "bytes" else "comparison" if few else "check"
        rows = _cached(what, recipe, context, trial.seed)
        row = rows[f"{trial.variant}|{kind}|{trial.setting['part']}"]
        return Outcome(trial=trial, metrics={name: _metric(name, value) for name, value in row.items()})


def _metric(name: str, value: float) -> Metric:
    return counted(value) if name in ("parameters", "model_bytes") else measured(value)


def _cached(what: str, recipe: MedusaRecipe, context: Context, seed: int) -> dict[str, dict[str, float]]:
    """Rows of one part of the study with one seed: ``variant|kind|part`` -> quantity -> value."""

    def build(folder: Path) -> None:
        if what == "bytes":
            assert recipe.joint is not None
            rows = run_bytes(recipe.joint, seed, context)
        else:
            backbone = _backbone(recipe.backbone, context.device)
            run = check_texts if what == "check" else run_comparison
            rows = run(backbone, _settings(recipe), seed, context)
        (folder / "rows.json").write_text(json.dumps(rows))

    described = recipe.model_dump(mode="json", exclude={"seeds", "minutes"})
    folder = context.cache({"medusa": what, "recipe": described, "seed": seed}, build)
    found: dict[str, dict[str, float]] = json.loads((folder / "rows.json").read_text())
    return found


@lru_cache(maxsize=1)
def _backbone(source: str, device: str) -> Backbone:
    """Read once for all trials of a process."""
    return load_backbone(source, device)


def _settings(recipe: MedusaRecipe) -> Settings:
    names = set(Settings.__dataclass_fields__)
    return Settings(**{name: getattr(recipe, name) for name in names})
