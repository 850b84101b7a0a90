"""The study: learning rates swept on a base and on targets, under the rules and without them."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import pydantic
import torch
from pydantic import Field

from tradeoff.core import Card, Context, Method, Outcome, Recipe, Trial, counted, measured
from tradeoff.core.files import write_json
from tradeoff.nn.decoder import Decoder

from .claims import CLAIMS
from .errors import TransferError
from .layouts import Layout
from .training import Parametrization, Run, Setup, Sweep, sweep, train

OURS: Parametrization = "complete-mue"
TUNED = "tuned-at-target"
"""The rules with a learning rate that was swept on the target itself: what a transfer is measured by."""
BASE = "base"
VOCABULARY = 256


class CompleteMuERecipe(Recipe):
    """What the study varies."""

    setup: Setup = Field(Setup(), description="the base, its data and its training")
    variants: dict[Parametrization, list[str]] = Field(
        description="targets of each parametrization, such as w256, d8, b4, t2, e8k2, e8k1s1 or w128-e8k2"
    )
    transferred: list[str] = Field(
        [], description="further targets of the rules, trained once, at the rate of the base, and not swept"
    )
    start: int = Field(-6, ge=-40, le=10, description="base-2 logarithm of the first rate tried on the base")
    margin: int = Field(1, ge=1, le=10, description="octaves swept on each side of a best rate, at least")
    furthest: int = Field(6, ge=1, le=20, description="octaves swept from the first rate, at most")
    window: int = Field(20, ge=1, description="steps whose mean loss says when a loss is reached")
    threads: int | None = Field(1, ge=1, description="of training; models this small need only one")

    @pydantic.model_validator(mode="after")
    def _can_be_built(self) -> Self:
        swept = [text for texts in self.variants.values() for text in texts]
        for text in [BASE, *swept, *self.transferred]:
            try:
                layout = Layout(text)
                self.setup.decoder(layout)
                batch, total = self.setup.tokens(layout)
            except (TransferError, ValueError) as error:
                raise ValueError(f"layout {text!r}: {error}") from error
            if not 0 < batch <= total:
                raise ValueError(f"layout {text!r}: a step of {batch} tokens in a training of {total}")
        twice = set(self.transferred) & set(self.variants.get(OURS, []))
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: either swept or transferred alone")
        return self


class CompleteMuE(Method[CompleteMuERecipe]):
    """Transfer of hyper-parameters across dense and sparse transformers."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = CompleteMuERecipe
    claims = CLAIMS

    def trials(self, recipe: CompleteMuERecipe) -> list[Trial]:
        """The base; each parametrization on its targets; the rules tuned on each of theirs."""
        cells: list[tuple[str, str]] = [(OURS, BASE)]
        cells += [(variant, text) for variant, texts in recipe.variants.items() for text in texts]
        cells += [(OURS, text) for text in recipe.transferred]
        cells += [(TUNED, text) for text in recipe.variants.get(OURS, [])]
        return [
            Trial(variant=variant, setting={"layout": text}, seed=seed)
            for variant, text in dict.fromkeys(cells)
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: CompleteMuERecipe, context: Context) -> Outcome:
        """Sweep the target's rate around the base's best, and compare its loss there with its own best."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        layout = Layout(str(trial.setting["layout"]))
        rules: Any = OURS if trial.variant == TUNED else trial.variant
        with context.progress(None, "sweeping the learning rate") as bar:
            runs = partial(_cached, recipe.setup, trial.seed, context, bar.advance)
            base = sweep(runs(Layout(BASE), OURS), recipe.start, recipe.margin, recipe.furthest)
            mine = runs(layout, rules)
            if layout.text in recipe.transferred and trial.variant == OURS:
                swept = Sweep({base.best: mine(base.best)})
            else:
                swept = sweep(mine, base.best, recipe.margin, recipe.furthest)
            chosen = swept.best if trial.variant == TUNED else base.best
            run = swept.runs[chosen]
            dense = runs(layout.dense, OURS)(base.best) if layout.mixture else None
        model = Decoder(recipe.setup.decoder(layout))
        metrics = {
            "loss": measured(_finite(run)),
            "tuning_flops": counted((swept if trial.variant == TUNED else base).flops),
            "training_flops": counted(run.flops),
            "parameters": counted(sum(p.numel() for p in model.parameters())),
        }
        if len(swept.runs) > 1:
            metrics["best_rate"] = measured(swept.optimum)
            if trial.variant != TUNED:
                metrics["rate_drift"] = measured(abs(swept.optimum - base.optimum))
                metrics["regret"] = measured(_finite(run) / swept.runs[swept.best].value - 1)
        if dense is not None and trial.variant != TUNED:
            metrics["step_ratio"] = measured(_step_ratio(run, dense, recipe.window))
        folder = context.work / "sweep"
        folder.mkdir(parents=True, exist_ok=True)
        losses = {str(exponent): each.loss for exponent, each in sorted(swept.runs.items())}
        write_json(folder / "sweep.json", {"base_rate": base.best, "losses": losses})
        return Outcome(trial=trial, metrics=metrics, artifact=context.artifact(folder))


def _cached(
    setup: Setup, seed: int, context: Context, advance: Callable[[], None], layout: Layout, rules: Any
) -> Callable[[int], Run]:
    """Trainings of a target by the exponent of their rate, each run once for all trials that need it."""

    def evaluate(exponent: int) -> Run:
        key = {
            "setup": setup.model_dump(mode="json"),
            "layout": layout.text,
            "rules": rules,
            "exponent": exponent,
            "seed": seed,
            "threads": torch.get_num_threads(),
        }

        def build(folder: Path) -> None:
            run = train(setup, layout, rules, 2.0**exponent, seed, context.device)
            (folder / "run.json").write_text(run.model_dump_json())

        path = context.cache(key, build) / "run.json"
        advance()
        return Run(**json.loads(path.read_text()))

    return evaluate


def _finite(run: Run) -> float:
    """The loss; that of a uniform guess for a training that diverged or did worse."""
    return min(run.value, math.log(VOCABULARY))


def _step_ratio(run: Run, other: Run, window: int) -> float:
    """Steps until the other's last mean loss over its steps; past the end where it is never reached."""
    window = min(window, len(other.curve), len(run.curve))
    goal = sum(other.curve[-window:]) / window
    return (run.step_of(goal, window) or len(run.curve) + 1) / len(other.curve)
