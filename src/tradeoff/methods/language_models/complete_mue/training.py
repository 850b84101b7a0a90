"""One training of a target at one rate, and sweeps over rates in octaves."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.data import text
from tradeoff.nn.decoder import Decoder, DecoderConfig, MoEConfig
from tradeoff.nn.fit import Callback, FitConfig, FitState, TrainingDiverged, fit

from .anatomy import anatomy_of
from .baselines import per_expert_plan, standard_plan
from .errors import TransferError
from .groups import ParameterGroups, carry_out
from .layouts import Layout
from .plan import Base, Plan, make_plan
from .rules import Role, Tuned

Parametrization = Literal["complete-mue", "per-expert", "standard"]
"""The rules; the rules with each expert scaled as if it were alone; one rate for all."""


class Setup(pydantic.BaseModel):
    """The base, its data and its training; a target changes what its layout names and nothing else.

    Attributes:
        corpus: of :func:`tradeoff.data.text.load`, read as bytes.
        length: tokens of a sequence.
        batch: sequences of a step.
        held_out: sequences of the validation part on which the loss is measured.
        width, depth: of the base.
        head_width: of all heads; their number grows with the width.
        expansion: width of the feed-forward layer over that of the model.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    corpus: str = "foldoc"
    length: int = Field(default=32, ge=2)
    batch: int = Field(default=16, ge=1)
    steps: int = Field(default=100, ge=1)
    warmup_fraction: float = Field(default=0.15, gt=0, lt=1)
    held_out: int = Field(default=256, ge=1)
    width: int = Field(default=64, ge=1)
    depth: int = Field(default=2, ge=1)
    head_width: int = Field(default=16, ge=2)
    expansion: int = Field(default=4, ge=1)
    init_std: float = Field(default=0.125, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    alpha: float = Field(default=1.0, ge=0.5, le=1)

    def decoder(self, layout: Layout) -> DecoderConfig:
        """The configuration of a target.

        Raises:
            TransferError: its width is no multiple of that of a head, or of the active experts.
            InvalidConfig: more active experts than there are.
        """
        width = int(layout.number("width", self.width))
        hidden = self.expansion * width
        if width % self.head_width:
            raise TransferError(
                f"width {width} of layout {layout} is no multiple of a head's {self.head_width}"
            )
        sizes: dict[str, Any] = {"ffn": "gelu", "hidden": hidden}
        if layout.mixture is not None:
            total, active, shared = layout.mixture
            if hidden % (active + shared):
                raise TransferError(
                    f"{hidden} hidden units do not divide over the experts of layout {layout}"
                )
            width_of_one = hidden // (active + shared)
            sizes["ffn"] = MoEConfig(total, active, width_of_one, shared=shared, activation="gelu")
        return DecoderConfig(
            dim=width,
            layers=int(layout.number("depth", self.depth)),
            heads=width // self.head_width,
            tie_embeddings=False,  # the base's output matrix has a role, and a rate, of its own
            max_len=self.length,
            **sizes,
        )

    def tokens(self, layout: Layout) -> tuple[int, int]:
        """Tokens of a step and of the training of a target.

        Raises:
            TransferError: less than one sequence in a step.
        """
        batch = round(self.batch * layout.number("batch", 1)) * self.length
        if not batch:
            raise TransferError(f"layout {layout} has no sequence in a step: the base has {self.batch}")
        return batch, round(self.steps * self.batch * layout.number("tokens", 1)) * self.length

    def base(self, rate: float) -> Base:
        """The base, with a learning rate."""
        with torch.device("meta"):
            model = Decoder(self.decoder(Layout("base")))
        tuned = Tuned(
            learning_rate=rate,
            weight_decay=self.weight_decay,
            betas=self.betas,
            eps=self.eps,
            init_std=self.init_std,
            alpha=self.alpha,
        )
        return Base(model, tuned, *self.tokens(Layout("base")))

    def plan(self, model: nn.Module, layout: Layout, parametrization: Parametrization, rate: float) -> Plan:
        """The values of a target's tensors under a parametrization."""
        base, (batch, total) = self.base(rate), self.tokens(layout)
        match parametrization:
            case "complete-mue":
                return make_plan(model, base, batch_tokens=batch, total_tokens=total)
            case "per-expert":
                return per_expert_plan(model, base, batch, total)
            case "standard":
                return standard_plan(model, base)

    def build(
        self, layout: Layout, parametrization: Parametrization, rate: float, seed: int
    ) -> tuple[Decoder, ParameterGroups]:
        """A target with its initial weights and parameter groups."""
        model = Decoder(self.decoder(layout))
        plan = self.plan(model, layout, parametrization, rate)
        generator = torch.Generator().manual_seed(seed)
        return model, carry_out(plan, model, self.base(rate), generator=generator)


class Run(pydantic.BaseModel):
    """One training.

    Attributes:
        loss: on the held-out sequences, in nats a token; None where the training diverged.
        curve: the loss of each step.
        flops: of the training, 6 for each weight that a token passes and each token.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    loss: float | None
    curve: tuple[float, ...]
    flops: int

    @property
    def value(self) -> float:
        """The loss, infinite where the training diverged."""
        return math.inf if self.loss is None else self.loss

    def step_of(self, loss: float, window: int) -> int | None:
        """The first step at which the mean loss of the last ``window`` steps is not above ``loss``."""
        ends = range(window, len(self.curve) + 1)
        return next((end for end in ends if statistics.fmean(self.curve[end - window : end]) <= loss), None)


def train(
    setup: Setup,
    layout: Layout,
    parametrization: Parametrization,
    rate: float,
    seed: int,
    device: str = "cpu",
    callbacks: Iterable[Callback] = (),
) -> Run:
    """Train a target at ``rate`` (that of the base, which the rules carry over) and measure its loss."""
    model, groups = setup.build(layout, parametrization, rate, seed)
    model.to(device)
    batch, total = setup.tokens(layout)
    training, validation = windows(setup)
    config = FitConfig(
        steps=max(1, total // batch),
        batch_size=batch // setup.length,
        optimizer="adamw",
        learning_rate=rate,
        schedule="one_cycle",
        warmup_fraction=setup.warmup_fraction,
        seed=seed,
    )
    recorder = _Recorder()
    flops = 6 * active_weights(model) * config.steps * batch if config.steps else 0
    try:
        fit(
            model,
            training,
            None,
            config,
            loss=token_loss,
            parameter_groups=groups.for_fit(),
            callbacks=[recorder, *callbacks],
        )
        loss = held_out_loss(model, validation, setup.held_out)
    except TrainingDiverged:
        loss = math.inf
    return Run(loss=loss if math.isfinite(loss) else None, curve=tuple(recorder.losses), flops=flops)


def token_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of the next token, in nats."""
    return functional.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, sequences: text.Windows, count: int) -> float:
    """Mean loss on ``count`` sequences that are spread evenly over the text."""
    device = next(model.parameters()).device
    positions = torch.linspace(0, len(sequences) - 1, min(count, len(sequences))).long()
    model.eval()
    total: float = sum(
        float(token_loss(model, *(each.to(device) for each in sequences[part]))) * len(part)
        for part in torch.split(positions, 64)
    )
    return total / len(positions)


def active_weights(model: nn.Module) -> int:
    """Weights of the matrices that a token passes: embeddings none, experts by their share."""
    anatomy = anatomy_of(model)
    share = anatomy.experts.share if anatomy.experts else 1.0
    count = 0.0
    for name, parameter in model.named_parameters():
        role = anatomy.role(name)
        if role is not None and role.is_matrix and role is not Role.EMBEDDING:
            routed = role in (Role.EXPERT_IN, Role.EXPERT_OUT)
            count += parameter.numel() * (share if routed else 1.0)
    return round(count)


def windows(setup: Setup) -> tuple[text.Windows, text.Windows]:
    """Training and validation sequences."""
    return _windows(setup.corpus, setup.length)


@lru_cache(maxsize=4)
def _windows(corpus: str, length: int) -> tuple[text.Windows, text.Windows]:
    return text.load(corpus).windows(length), text.load(corpus, "validation").windows(length)


class _Recorder(Callback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step_end(self, state: FitState) -> None:
        self.losses.append(state.loss)


@dataclass(frozen=True)
class Sweep:
    """Trainings of one target at several rates.

    Attributes:
        runs: by the base-2 logarithm of the rate.
    """

    runs: Mapping[int, Run]

    @property
    def best(self) -> int:
        """The exponent with the lowest loss; the lower one where two are equal.

        Raises:
            TransferError: every training diverged.
        """
        exponent = min(sorted(self.runs), key=lambda e: self.runs[e].value)
        if self.runs[exponent].loss is None:
            raise TransferError(f"all trainings at 2^{min(self.runs)} to 2^{max(self.runs)} diverged")
        return exponent

    @property
    def optimum(self) -> float:
        """Exponent where the parabola through the best loss and its neighbors is lowest; else the best."""
        at = self.best
        around = [self.runs[e].value if e in self.runs else math.inf for e in (at - 1, at, at + 1)]
        if not all(map(math.isfinite, around)):
            return float(at)
        left, middle, right = around
        bend = left - 2 * middle + right
        return at + (left - right) / (2 * bend) if bend > 0 else float(at)

    def regret(self, exponent: int) -> float:
        """Loss at a rate above the best one, as a part of it; infinite where that training diverged."""
        return self.runs[exponent].value / self.runs[self.best].value - 1

    @property
    def flops(self) -> int:
        """Of all its trainings."""
        return sum(run.flops for run in self.runs.values())


def sweep(evaluate: Callable[[int], Run], start: int, margin: int = 1, furthest: int = 6) -> Sweep:
    """Try rates outwards from ``2 ** start``, an octave at a time, until the best has worse ones on both
    sides.

    Args:
        margin: trainings on each side of the best at least.
        furthest: octaves from the start at most.
    """
    runs = {start: evaluate(start)}
    while True:
        best = Sweep(runs).best if any(run.loss is not None for run in runs.values()) else min(runs)
        missing = [
            exponent
            for exponent in range(best - margin, best + margin + 1)
            if exponent not in runs and abs(exponent - start) <= furthest
        ]
        if not missing:
            return Sweep(runs)
        nearest = min(missing, key=lambda exponent: (abs(exponent - best), exponent))
        runs[nearest] = evaluate(nearest)
