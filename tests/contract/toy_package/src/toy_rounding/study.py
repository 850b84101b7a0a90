"""The study of rounding against cutting off."""

import json
import os
import time
from pathlib import Path

import numpy as np
from pydantic import Field

from toy_rounding.rounding import round_to_bits
from tradeoff.core import (
    Card,
    Claim,
    Context,
    Finding,
    Method,
    Outcome,
    Outcomes,
    Recipe,
    Trial,
    Verdict,
    counted,
    measured,
)
from tradeoff.core.statistics import compare


class RoundingRecipe(Recipe):
    """What the study varies."""

    bits: list[int] = Field(min_length=1, description="bits for each number")
    numbers: int = Field(default=200, ge=2, le=10**6, description="how many numbers are stored")
    pause: float = Field(default=0.0, ge=0, description="seconds that a trial waits")
    fail_at: int | None = Field(default=None, description="bits at which the trial raises an error")
    crash_at: int | None = Field(default=None, description="bits at which the process dies")


def _rounding_is_better(outcomes: Outcomes) -> Finding:
    bits = min(outcome.trial.setting["bits"] for outcome in outcomes)
    ours, baseline = outcomes.where("rounding", bits=bits), outcomes.where("cutting", bits=bits)
    return compare(ours.values("accuracy"), baseline.values("accuracy"))


def _exact(outcomes: Outcomes) -> Finding:
    worst = min(outcomes.where("rounding").values("accuracy"))
    return Finding(verdict=Verdict.HOLDS if worst == 1 else Verdict.FAILS, numbers={"worst accuracy": worst})


def _free(outcomes: Outcomes) -> Finding:
    return Finding(verdict=Verdict.UNDECIDED, numbers={"reason": "<script>alert(1)</script>"})


class ToyRounding(Method[RoundingRecipe]):
    """Fewer bits for random numbers."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = RoundingRecipe
    claims = (
        Claim("rounding is more accurate than cutting off", "abstract", _rounding_is_better),
        Claim("rounding is exact", "section 2", _exact),
        Claim("rounding costs nothing", "title", _free),
    )

    def trials(self, recipe: RoundingRecipe) -> list[Trial]:
        """Both variants at each number of bits."""
        return [
            Trial(variant=variant, setting={"bits": bits}, seed=seed)
            for variant in ("rounding", "cutting")
            for bits in recipe.bits
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: RoundingRecipe, context: Context) -> Outcome:
        """Store random numbers and see how many are near what they were."""
        started = time.perf_counter()
        bits = int(trial.setting["bits"])
        if bits == recipe.fail_at:
            raise ValueError(f"{bits} bits are not supported")
        if bits == recipe.crash_at:
            os._exit(7)
        if "TOY_TRACE" in os.environ:
            with Path(os.environ["TOY_TRACE"]).open("a", encoding="utf-8") as trace:
                trace.write(f"{trial.key}\n")
        shared = context.cache({"toy": "numbers", "count": recipe.numbers}, _remember(recipe.numbers))
        assert json.loads((shared / "count.json").read_text()) == recipe.numbers
        values = context.generator.random(recipe.numbers)
        shift = 0.0 if trial.variant == "rounding" else 0.5 / (2**bits - 1)
        stored = round_to_bits(np.clip(values - shift, 0, 1), bits)
        with context.progress(10, "waiting") as bar:
            for _ in range(10):
                time.sleep(recipe.pause / 10)
                bar.advance(1)
        print("a method may print")
        np.save(context.work / "stored.npy", stored)
        return Outcome(
            trial=trial,
            metrics={
                "accuracy": measured(np.mean(np.abs(stored - values) < 0.05)),
                "model_bytes": counted(bits * recipe.numbers / 8),
                "training_seconds": measured(time.perf_counter() - started),
            },
            artifact=context.artifact(context.work / "stored.npy"),
        )


def _remember(count: int):
    def build(folder: Path) -> None:
        (folder / "count.json").write_text(json.dumps(count))

    return build
