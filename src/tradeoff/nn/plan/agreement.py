"""How close an encrypted run is to the plaintext network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tradeoff.nn.plan.operators import Plan


@dataclass(frozen=True)
class Agreement:
    """How close encrypted results are to the plaintext network's.

    Attributes:
        largest, mean: absolute difference of logits.
        labels: fraction of images with the same label.
        decided: the same among images whose two largest logits differ by more than ``gap``.
        undecided: how many images are closer than that.
    """

    largest: float
    mean: float
    labels: float
    decided: float
    undecided: int
    gap: float


class HasPlan(Protocol):
    """A compiled program."""

    @property
    def plan(self) -> Plan: ...


def agreement(
    network: Plan | HasPlan, x: NDArray[Any], outputs: NDArray[Any], *, gap: float = 2.0**-8
) -> Agreement:
    """Compare logits of an encrypted run with the float64 plaintext network.

    Args:
        network: the plan or program, with weights.
        x: inputs (images, *input_shape).
        outputs: what the encrypted run gave, (images, classes).
        gap: images whose two largest logits are closer than this may flip by rounding.
    """
    plan = network if isinstance(network, Plan) else network.plan
    expected = plan.evaluate(x)
    outputs = np.asarray(outputs, np.float64)
    if outputs.shape != expected.shape or expected.ndim != 2:
        raise ValueError(f"logits have shape {expected.shape}, not {outputs.shape}")
    difference = np.abs(outputs - expected)
    same = outputs.argmax(axis=1) == expected.argmax(axis=1)
    top = np.sort(expected, axis=1)
    decided = top[:, -1] - top[:, -2] > gap if expected.shape[1] > 1 else np.ones(len(expected), bool)
    return Agreement(
        float(difference.max()),
        float(difference.mean()),
        float(same.mean()),
        float(same[decided].mean()) if decided.any() else 1.0,
        int((~decided).sum()),
        gap,
    )
