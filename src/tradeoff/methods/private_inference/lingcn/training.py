"""The three phases: a teacher with all ReLUs, one whose activations go, one whose ReLUs become quadratics."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.data.splits import Split
from tradeoff.methods.private_inference.lingcn.activations import Start
from tradeoff.methods.private_inference.lingcn.gates import Rule
from tradeoff.methods.private_inference.lingcn.network import STGCN
from tradeoff.nn.fit import Callback, FitConfig, fit
from tradeoff.nn.losses import distillation

TEMPERATURE = 4.0


class Distillation(BaseModel):
    """What the student learns from: ``(1 - logits) CE + logits KD + features / 2`` times the attention maps.

    Attributes:
        logits: eta, the weight of the teacher's predictions against the labels'.
        features: phi, the weight of the distance of attention maps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    logits: float = Field(0.5, ge=0, le=1)
    features: float = Field(200.0, ge=0)


LINEARIZING = Distillation(logits=0.9, features=1000.0)
REPLACING = Distillation(logits=0.2, features=200.0)
"""The published weights."""


def attention(x: Tensor) -> Tensor:
    """The attention map of a layer (batch, time * joints): mean square over channels, of length 1."""
    return functional.normalize(x.pow(2).mean(1).flatten(1), dim=1)


def two_level_loss(
    student: tuple[Tensor, Sequence[Tensor]],
    teacher: tuple[Tensor, Sequence[Tensor]],
    targets: Tensor,
    weights: Distillation,
) -> Tensor:
    """Cross-entropy, the teacher's predictions at temperature 4, and its attention maps layer by layer."""
    logits, features = student
    loss = (1 - weights.logits) * functional.cross_entropy(logits, targets)
    if weights.logits:
        loss = loss + weights.logits * distillation(logits, teacher[0], TEMPERATURE)
    if weights.features:
        for ours, theirs in zip(features, teacher[1], strict=True):
            loss = loss + weights.features / 2 * (attention(ours) - attention(theirs)).pow(2).mean()
    return loss


def train_teacher(
    network: STGCN,
    train: Split,
    validation: Split,
    config: FitConfig,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
) -> STGCN:
    """Train the network with all its ReLUs, in place; returns it in evaluation mode."""
    fit(network, train, validation, config, callbacks=callbacks, checkpoint=checkpoint)
    return network.eval()


def linearize(
    teacher: STGCN,
    train: Split,
    validation: Split,
    config: FitConfig,
    *,
    mu: float,
    rule: Rule = "structural",
    weights: Distillation = LINEARIZING,
    gate_rate: float | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
) -> STGCN:
    """A copy of the teacher that has learned which activations it can do without.

    Args:
        mu: weight of the part of gates that are open; larger closes more.
        rule: ``structural``, or for comparison ``layer-wise`` and ``unstructured``.
        gate_rate: learning rate of the scores, constant; as for the weights if None.

    Warns:
        that no activation is left: the network is then linear.
    """
    student = _copy(teacher, rule)
    student.learn_gates()

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            known = teacher.with_features(inputs)
        return (
            two_level_loss(_features(model, inputs), known, targets, weights)
            + mu * _plain(model).open_gates()
        )

    scores = [layer.gates.scores for layer in student._layers()]
    rates = {"learning_rate": gate_rate, "schedule": "constant"} if gate_rate is not None else {}
    groups = [{"params": scores, "weight_decay": 0.0, **rates}]
    fit(
        student,
        train,
        validation,
        config,
        loss=loss,
        parameter_groups=groups,
        callbacks=callbacks,
        checkpoint=checkpoint,
    )
    student.freeze_gates()
    if student.effective_layers() == 0:
        warnings.warn("no activation is left: the network is linear; lower mu", stacklevel=2)
    return student.eval()


def polynomialize(
    linearized: STGCN,
    teacher: STGCN,
    train: Split,
    validation: Split,
    config: FitConfig,
    *,
    start: Start = "gaussian-fit",
    shared: bool = False,
    weights: Distillation = REPLACING,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
) -> STGCN:
    """A copy whose remaining ReLUs are quadratics, trained with the teacher's help.

    Args:
        linearized: of :func:`linearize`, or the teacher itself to replace all ReLUs.
        shared: one quadratic for all joints of a position, as in CryptoGCN.
    """
    student = _copy(linearized, None)
    student.replace_relus(start, shared=shared)

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            known = teacher.with_features(inputs)
        return two_level_loss(_features(model, inputs), known, targets, weights)

    fit(student, train, validation, config, loss=loss, callbacks=callbacks, checkpoint=checkpoint)
    return student.eval()


def _copy(network: STGCN, rule: Rule | None) -> STGCN:
    """A copy to train: without dropout, with another rule for its gates."""
    student = copy.deepcopy(network)
    for layer in student._layers():
        layer.dropout.p = 0.0
        if rule is not None:
            layer.gates.rule = rule
    return student.train()


def _features(model: nn.Module, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and features, through the wrapper that synchronizes gradients where there is one."""
    result: tuple[Tensor, list[Tensor]] = model(inputs, features=True)
    return result


def _plain(model: nn.Module) -> STGCN:
    inner = getattr(model, "module", model)
    assert isinstance(inner, STGCN)
    return inner
