"""The study: LinGCN beside a CryptoGCN-style plan, with real inferences between two processes."""

import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
import torch
from pydantic import Field

from tradeoff.core import Card, Context, Method, Metric, Outcome, Recipe, Trial, counted, measured
from tradeoff.core.context import Progress
from tradeoff.data.skeletons import NAMES, SkeletonData, load
from tradeoff.nn.fit import Callback, FitConfig, FitState, evaluate
from tradeoff.nn.models import load_weights, save_weights

from .activations import Start
from .claims import CLAIMS
from .folding import fold
from .gates import Rule
from .inference import Prepared, infer_encrypted, prepare
from .network import BACKBONES, STGCN, Shape
from .training import LINEARIZING, REPLACING, Distillation, linearize, polynomialize, train_teacher

RELU = "relu"
"""The teacher, with all its ReLUs; it cannot be encrypted."""
Variant = Literal[
    "lingcn",
    "cryptogcn",
    "layer-wise",
    "unstructured",
    "unfused",
    "cross-entropy",
    "logits-only",
    "paper-start",
]


class NetworkSettings(pydantic.BaseModel):
    """The network's size."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    backbone: str | None = Field(
        default=None, description="a published one, in place of channels and strides"
    )
    channels: list[int] = [8, 8]
    strides: list[int] = [1, 1]
    taps: int = Field(default=9, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @pydantic.model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.backbone is not None and self.backbone not in BACKBONES:
            raise ValueError(f"backbone {self.backbone!r} is none of {', '.join(BACKBONES)}")
        self.shape(2, 3)
        return self

    def shape(self, classes: int, in_channels: int) -> Shape:
        """Of a network for a data set."""
        channels, strides = BACKBONES.get(self.backbone or "", (tuple(self.channels), tuple(self.strides)))
        return Shape(channels, strides, classes, self.taps, in_channels, self.dropout)


class EncryptionSettings(pydantic.BaseModel):
    """Which networks are really evaluated on ciphertexts, and with which precision."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    variants: list[Variant] = ["lingcn", "cryptogcn"]
    clips: int = Field(default=1, ge=1, description="sequences of one request")
    precision: float = Field(default=0.02, gt=0, le=1, description="noise allowed, part of the largest logit")
    max_log_n: int = Field(default=15, ge=12, le=15)


class LinGCNRecipe(Recipe):
    """What the study varies."""

    data: str = Field(description="skeletons: motions, motions-view, basic-motions or ntu")
    path: Path | None = Field(None, description="of the data's files, where they are not embedded")
    frames: int = Field(default=32, ge=2, description="of a sequence, where the data leave it open")
    windows: int = Field(default=2500, ge=10, description="training windows, where the data leave it open")
    network: NetworkSettings = Field(NetworkSettings(), description="its size")
    variants: dict[Variant, list[float]] = Field(
        description="weights mu of the open gates for each variant; 0 keeps all activations"
    )
    teacher: FitConfig = Field(description="training with all ReLUs")
    linearizing: FitConfig = Field(description="training while gates close")
    replacing: FitConfig = Field(description="training of the quadratics")
    gate_rate: float = Field(0.01, gt=0, description="constant learning rate of the gates' scores")
    linearizing_loss: Distillation = Field(LINEARIZING, description="what is learned while gates close")
    replacing_loss: Distillation = Field(REPLACING, description="what quadratics learn from")
    start: Start = Field("gaussian-fit", description="where quadratics start")
    encryption: EncryptionSettings = Field(EncryptionSettings(), description="real encrypted inferences")
    threads: int | None = Field(None, ge=1, description="of training")

    @pydantic.model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if self.data not in NAMES:
            raise ValueError(f"data {self.data!r} is none of {', '.join(NAMES)}")
        for name, weights in self.variants.items():
            if len(set(weights)) < len(weights) or min(weights, default=0.0) < 0:
                raise ValueError(f"variants.{name}: weights are at least 0, each once, not {weights}")
        return self


class LinGCN(Method[LinGCNRecipe]):
    """Structural linearization of graph networks for encrypted inference."""

    card = Card.load(Path(__file__).with_name("card.md"))
    Recipe = LinGCNRecipe
    claims = CLAIMS
    timed = True

    def trials(self, recipe: LinGCNRecipe) -> list[Trial]:
        """The teacher, and each variant at each weight."""
        cells: list[tuple[str, dict[str, Any]]] = [(RELU, {})]
        cells += [(name, {"mu": mu}) for name, weights in recipe.variants.items() for mu in weights]
        return [
            Trial(variant=name, setting=setting, seed=seed)
            for name, setting in cells
            for seed in range(recipe.seeds)
        ]

    def run(self, trial: Trial, recipe: LinGCNRecipe, context: Context) -> Outcome:
        """Train one variant from the seed's teacher, plan it, and evaluate it on ciphertexts."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        data = _load(recipe.data, recipe.frames, recipe.windows, recipe.path)
        teacher, seconds = _teacher(recipe, data, trial.seed, context)
        metrics: dict[str, Metric] = {}
        network = teacher
        if trial.variant != RELU:
            started = time.perf_counter()
            network, linearized_accuracy = _compress(teacher, trial, recipe, data, context)
            seconds = time.perf_counter() - started
            metrics["linearized_accuracy"] = measured(linearized_accuracy)
            metrics |= _encrypted(network, trial, recipe, data, context)
        metrics |= {
            "accuracy": measured(evaluate(network, data.test)),
            "activation_levels": counted(network.effective_layers()),
            "training_seconds": measured(seconds),
        }
        folder = context.work / "network"
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(network, folder / "model.safetensors")
        return Outcome(trial=trial, metrics=metrics, artifact=context.artifact(folder))


@lru_cache(maxsize=1)
def _load(name: str, frames: int, windows: int, path: Path | None) -> SkeletonData:
    return load(name, frames=frames, windows=windows, path=path)


def _teacher(recipe: LinGCNRecipe, data: SkeletonData, seed: int, context: Context) -> tuple[STGCN, float]:
    """The seed's network with all ReLUs, trained once for all variants, and how long that took."""
    config = recipe.teacher.model_copy(update={"seed": 3 * seed})
    torch.manual_seed(seed)
    shape = recipe.network.shape(data.num_classes, data.input_shape[0])
    network = STGCN(data.skeleton, shape).to(context.device)

    def train(folder: Path) -> None:
        started = time.perf_counter()
        with context.progress(None, "training the teacher") as bar:
            checkpoint = context.work / "teacher.safetensors"
            train_teacher(
                network, data.train, data.validation, config, callbacks=[_Advance(bar)], checkpoint=checkpoint
            )
        save_weights(network, folder / "model.safetensors")
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - started))

    key = {
        "teacher": recipe.network.model_dump(mode="json"),
        "data": [recipe.data, recipe.frames, recipe.windows],
        "fit": config.model_dump(mode="json"),
        "seed": seed,
    }
    folder = context.cache(key, train)
    load_weights(network, folder / "model.safetensors")
    seconds: float = json.loads((folder / "seconds.json").read_text())
    return network.eval(), seconds


class _Advance(Callback):
    """Moves a progress bar with the steps of a training."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar

    def on_step_end(self, state: FitState) -> None:
        self.bar.advance()


def _compress(
    teacher: STGCN, trial: Trial, recipe: LinGCNRecipe, data: SkeletonData, context: Context
) -> tuple[STGCN, float]:
    """One variant of the seed's teacher, and its accuracy before quadratics replace what ReLUs are left."""
    mu = float(trial.setting["mu"] or 0.0)
    rules: dict[str, Rule] = {
        "layer-wise": "layer-wise",
        "unstructured": "unstructured",
        "cryptogcn": "layer-wise",
    }
    rule = rules.get(trial.variant, "structural")
    seed = 3 * trial.seed
    linearizing = recipe.linearizing.model_copy(update={"seed": seed + 1})
    replacing = recipe.replacing.model_copy(update={"seed": seed + 2})
    linearized = teacher
    with context.progress(None, "training with fewer activations") as bar:
        if mu:
            torch.manual_seed(seed + 1)
            linearized = linearize(
                teacher,
                data.train,
                data.validation,
                linearizing,
                mu=mu,
                rule=rule,
                weights=recipe.linearizing_loss,
                gate_rate=recipe.gate_rate,
                callbacks=[_Advance(bar)],
                checkpoint=context.work / "linearized.safetensors",
            )
        losses = {
            "cross-entropy": Distillation(logits=0.0, features=0.0),
            "logits-only": Distillation(logits=recipe.replacing_loss.logits, features=0.0),
        }
        network = polynomialize(
            linearized,
            teacher,
            data.train,
            data.validation,
            replacing,
            start="paper" if trial.variant == "paper-start" else recipe.start,
            shared=trial.variant == "cryptogcn",
            weights=losses.get(trial.variant, recipe.replacing_loss),
            callbacks=[_Advance(bar)],
            checkpoint=context.work / "network.safetensors",
        )
    return network, evaluate(linearized, data.test)


def _encrypted(
    network: STGCN, trial: Trial, recipe: LinGCNRecipe, data: SkeletonData, context: Context
) -> dict[str, Metric]:
    """What an inference costs: counted from the plan, and measured where the recipe says so."""
    settings = recipe.encryption
    folded = fold(network.cpu(), data.input_shape[1], structural=trial.variant != "unstructured")
    typical = data.train[torch.arange(min(32, len(data.train)))][0][..., 0].double().numpy()
    prepared = prepare(
        folded,
        typical,
        batch=settings.clips,
        fused=trial.variant not in ("cryptogcn", "unfused"),
        precision=settings.precision,
        max_log_n=settings.max_log_n,
    )
    metrics = _counts(prepared)
    if trial.variant not in settings.variants:
        return metrics
    clips = data.test[torch.arange(settings.clips)][0][..., 0].double().numpy()
    with context.progress(None, "an encrypted inference"):
        run = infer_encrypted(prepared, clips)
    return metrics | {
        "latency": measured(run.report.wait_seconds),
        "evaluation_seconds": measured(run.report.evaluate_seconds),
        "encoding_seconds": measured(run.report.meter.encode_seconds),
        "key_seconds": measured(run.setup.keygen_seconds + run.setup.upload_seconds),
        "key_bytes": measured(run.setup.key_bytes),
        "ciphertext_bytes": measured(run.report.sent + run.report.received),
        "peak_memory": measured(run.peak_memory),
        "logit_error_max": measured(run.error),
        "label_agreement": measured(run.agreement),
    }


def _counts(prepared: Prepared) -> dict[str, Metric]:
    parameters, meter = prepared.plan.parameters, prepared.meter
    return {
        "he_levels": counted(prepared.program.depth),
        "he_modulus_bits": counted(parameters.total_bits),
        "he_ring": counted(parameters.n),
        "he_scale_bits": counted(parameters.scale_bits),
        "he_rotations": counted(meter.total("rotate")),
        "he_plain_products": counted(meter.total("ct_pt")),
        "he_products": counted(meter.total("ct_ct")),
        "he_keys": counted(prepared.plan.key_count),
    }
