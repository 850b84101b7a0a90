"""The study: LoT beside other regularizers, at equal updates and at equal operations."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
import torch
from pydantic import Field

from tradeoff.core import Card, Context, Method, Metric, Outcome, Recipe, Trial, counted, measured
from tradeoff.nn.fit import FitConfig

from .claims import CLAIMS
from .experiment import Curve, LoTSettings, PeerSettings, Variant, run_variant
from .imitation import imitate
from .ppo import PPO, LoTPPO, PolicyLoTSettings, PPOSettings
from .tasks import Task, check_arch, image_task, text_task

Steps = Annotated[int, Field(ge=1, strict=True)]
Rows = dict[Variant, list[Steps]]
LABELS = ("true-labels", "random-labels")
POLICIES = ("plain", "lot")


class _Trained(pydantic.BaseModel):
    """What texts and images have in common.

    Attributes:
        rows: variant -> updates of the network that is kept, a row each; one training gives all of them
            where the learning rate is constant. An empty list means those of ``training``.
        training: of every variant.
        lot: settings of LoT.
        peers: settings of the other regularizers.
        dropout: of every variant, if it has not more of its own.
        every: steps between two evaluations, which ``rows`` are multiples of.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    rows: Rows
    training: FitConfig
    lot: LoTSettings = LoTSettings()
    peers: PeerSettings = PeerSettings()
    dropout: float = Field(default=0.0, ge=0, lt=1)
    every: Steps

    @pydantic.model_validator(mode="after")
    def _evaluated(self) -> Self:
        if self.training.steps is None:
            raise ValueError("training is given in steps")
        for variant in self.rows:
            for steps in self.steps(variant):
                if steps % self.every:
                    raise ValueError(f"{steps} steps of {variant} are no multiple of every={self.every}")
        return self

    @property
    def name(self) -> str:
        """In tables."""
        raise NotImplementedError

    def task(self, seed: int) -> Task:
        """Data and network of a seed."""
        raise NotImplementedError

    def steps(self, variant: Variant) -> list[int]:
        """Rows of a variant."""
        return list(self.rows[variant]) or [self.training.steps or 1]


class TextSettings(_Trained):
    """A text that is short enough to be learned by heart; see :func:`text_task`."""

    corpus: str
    train_bytes: Steps = 20_000
    held_out_bytes: Steps = 24_000
    length: Steps = 32
    dim: Steps = 48
    layers: Steps = 2
    heads: Steps = 4
    init_std: float = Field(default=0.05, gt=0)
    tokenizer: str = "bytes"

    @property
    def name(self) -> str:
        """In tables."""
        return self.corpus

    def task(self, seed: int) -> Task:
        """Data and network; the same for all seeds."""
        names = ("train_bytes", "held_out_bytes", "length", "dim", "layers", "heads", "init_std", "tokenizer")
        return text_task(self.corpus, **{name: getattr(self, name) for name in names})


class ImageSettings(_Trained):
    """Images, some of which have random labels; see :func:`image_task`."""

    data: str
    examples: Steps | None = None
    noise: float = Field(default=0.0, ge=0, lt=1)
    arch: Annotated[str, pydantic.AfterValidator(check_arch)] = "mlp"

    @property
    def name(self) -> str:
        """In tables."""
        return f"{self.data}, {self.noise:.0%} noise" if self.noise else self.data

    def task(self, seed: int) -> Task:
        """Data and network; the seed draws examples and wrong labels."""
        return image_task(self.data, examples=self.examples, noise=self.noise, arch=self.arch, seed=seed)


class ImitationSettings(pydantic.BaseModel):
    """The hypothesis by itself; see :func:`imitate`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    arch: Annotated[str, pydantic.AfterValidator(check_arch)] = "mlp"
    teacher: FitConfig
    student: FitConfig
    temperature: float = Field(default=1.5, gt=0)


class PolicySettings(pydantic.BaseModel):
    """Policies; see :class:`PPO` and :class:`LoTPPO`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    environment: str = "CartPole-v1"
    steps: Steps = 30_000
    ppo: PPOSettings = PPOSettings()
    lot: PolicyLoTSettings = PolicyLoTSettings()


class LoTRecipe(Recipe):
    """What the study varies."""

    texts: list[TextSettings] = Field([], description="corpora, their networks and the rows on them")
    images: list[ImageSettings] = Field([], description="image sets, their networks and the rows on them")
    imitation: ImitationSettings | None = Field(
        None, description="whether teachers of true and of random labels are imitated"
    )
    policies: list[PolicySettings] = Field([], description="environments in which policies are learned")
    threads: int | None = Field(None, ge=1, description="of training; the smallest networks need only one")

    @pydantic.model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [each.name for each in _trained(self)]
        names += [each.environment for each in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"two tasks have one name, so rows could not be told apart: {', '.join(names)}")
        if not names and self.imitation is None:
            raise ValueError("give texts, images, imitation or policies")
        return self


class LoTStudy(Method[LoTRecipe]):
    """Learning from teaching."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = LoTRecipe
    claims = CLAIMS
    timed = True

    def trials(self, recipe: LoTRecipe) -> list[Trial]:
        """Each variant of each task after each number of updates."""
        cells: list[tuple[str, dict[str, Any]]] = []
        for each in _trained(recipe):
            for variant in each.rows:
                cells += [(variant, {"task": each.name, "steps": s}) for s in each.steps(variant)]
        if recipe.imitation is not None:
            steps = (0, recipe.imitation.student.steps or recipe.imitation.student.epochs or 0)
            cells += [(name, {"task": "imitation", "steps": s}) for name in LABELS for s in steps]
        for policy in recipe.policies:
            setting = {"task": policy.environment, "steps": policy.steps}
            cells += [(variant, setting) for variant in POLICIES]
        return [
            Trial(variant=variant, setting=setting, seed=seed)
            for variant, setting in cells
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: LoTRecipe, context: Context) -> Outcome:
        """Train the variant, or read what its training for another row has given."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        task = trial.setting["task"]
        if task == "imitation":
            return Outcome(trial=trial, metrics=_imitation(trial, recipe, context))
        policy = next((each for each in recipe.policies if each.environment == task), None)
        if policy is not None:
            return Outcome(trial=trial, metrics=_policy(trial, policy, context))
        settings = next(each for each in _trained(recipe) if each.name == task)
        return Outcome(trial=trial, metrics=_training(trial, settings, context))


def _trained(recipe: LoTRecipe) -> list[_Trained]:
    return [*recipe.texts, *recipe.images]


def _training(trial: Trial, settings: _Trained, context: Context) -> dict[str, Metric]:
    curve = _curve(trial, settings, context)
    is_text = isinstance(settings, TextSettings)
    chosen, end = curve.at(int(trial.setting["steps"] or 0), "best" if is_text else "last")
    metrics = {
        "loss": measured(chosen.test_loss),
        "validation_loss": measured(chosen.validation_loss),
        "training_flops": counted(end.flops),
        "training_seconds": measured(end.seconds),
        "peak_memory": measured(curve.peak_memory),
    }
    if not is_text:
        metrics["accuracy"] = measured(chosen.test_accuracy)
    if end.student_kl is not None:
        metrics["student_kl"] = measured(end.student_kl)
    return metrics


def _curve(trial: Trial, settings: _Trained, context: Context) -> Curve:
    """The training that the row belongs to, run once for all its rows."""
    variant: Any = trial.variant
    rows = settings.steps(variant)
    constant = settings.training.schedule == "constant"
    steps = max(rows) if constant else int(trial.setting["steps"] or 0)
    config = settings.training.model_copy(update={"steps": steps, "seed": trial.seed})

    def train(folder: Path) -> None:
        with context.progress(steps, f"training on {settings.name}") as bar:
            curve, _ = run_variant(
                variant,
                settings.task(trial.seed),
                config,
                lot=settings.lot,
                peers=settings.peers,
                dropout=settings.dropout,
                every=settings.every,
                seed=trial.seed,
                device=context.device,
                folder=context.work / "checkpoints",
                advance=bar.advance,
            )
        curve.write(folder / "curve.json")

    described = settings.model_dump(mode="json", exclude={"rows", "training"})
    training = config.model_dump(mode="json")
    key = {"lot": variant, "settings": described, "training": training, "seed": trial.seed}
    return Curve.read(context.cache(key, train) / "curve.json")


def _imitation(trial: Trial, recipe: LoTRecipe, context: Context) -> dict[str, Metric]:
    settings = recipe.imitation
    assert settings is not None
    teacher, student = (
        config.model_copy(update={"seed": trial.seed}) for config in (settings.teacher, settings.student)
    )

    def train(folder: Path) -> None:
        task = image_task(settings.data, examples=None, noise=0.0, arch=settings.arch, seed=trial.seed)
        with context.progress(None, f"imitating a teacher of {trial.variant}"):
            imitated = imitate(
                task,
                teacher,
                student,
                random_labels=trial.variant == "random-labels",
                temperature=settings.temperature,
                seed=trial.seed,
                device=context.device,
                folder=context.work / "checkpoints",
            )
        (folder / "imitated.json").write_text(json.dumps(asdict(imitated)))

    key = {"imitation": settings.model_dump(mode="json"), "labels": trial.variant, "seed": trial.seed}
    imitated = json.loads((context.cache(key, train) / "imitated.json").read_text())
    return {"student_kl": measured(imitated["after" if trial.setting["steps"] else "before"])}


def _policy(trial: Trial, settings: PolicySettings, context: Context) -> dict[str, Metric]:
    arguments = (settings.environment, settings.ppo, trial.seed)
    method = PPO(*arguments) if trial.variant == "plain" else LoTPPO(*arguments, lot=settings.lot)
    with context.progress(None, f"playing {settings.steps:,} steps of {settings.environment}"):
        result = method.train(settings.steps)
    metrics = {
        "episode_return": measured(result.mean_return()),
        "training_seconds": measured(result.seconds),
    }
    if result.student_kl:
        metrics["student_kl"] = measured(result.student_kl[-1])
    return metrics
