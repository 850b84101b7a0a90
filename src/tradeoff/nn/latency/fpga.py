"""Latency of two-party operators on a pair of FPGAs: the formulas of PolyMPCNet / PASNet and RRNet.

A comparison follows the oblivious-transfer flow of the papers: a 32-bit value is 16 digits of 2 bits, each
with a list of 4 entries, in four messages (a mask; the blinded choices; the encrypted comparison matrix; the
result). All else is multiplication with shares of triples: what a party sends is what it opens. Numbers are
32-bit words, batch normalization is folded, and messages of the two parties are charged one after the other,
as on a half-duplex link, though they cross: do not compare with an engine's rounds without saying so.

PolyMPCNet: Peng et al., arXiv 2209.09424 (PASNet, DAC 2023). RRNet: Peng et al., arXiv 2302.02292.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from tradeoff.nn import plan as op
from tradeoff.nn.latency.model import MissingLatency, NetworkLatency, OperatorLatency

WORD = 32
DIGITS, ENTRIES = 16, 4
"""Digits of a word, and entries of the list of each."""

Resource = Literal["words", "bits", "link"]


@dataclass(frozen=True)
class Stage:
    """A part of an operator that keeps one resource busy.

    Attributes:
        resource: ``words`` (array of word operations), ``bits`` (comparison unit) or ``link``.
        work: word operations, bit operations or bits of a message.
    """

    resource: Resource
    work: float


def comparison(elements: int) -> list[Stage]:
    """The four steps of a comparison of ``elements`` values: 5,185 bit operations and 2,561 bits for each."""
    mask, matrix = DIGITS + 1, ENTRIES * DIGITS
    return [
        Stage("link", WORD),
        Stage("bits", WORD * mask * elements),
        Stage("link", WORD * DIGITS * elements),
        Stage("bits", WORD * (mask + matrix) * elements),
        Stage("link", WORD * matrix * elements),
        Stage("bits", (WORD * matrix + 1) * elements),
        Stage("link", elements),
    ]


def stages(operator: op.Operator, shapes: Mapping[str, op.operators.Shape]) -> list[Stage] | None:
    """What an operator does for one image, in order; None if the model does not know it.

    Args:
        shapes: of the results of all operators of the plan.
    """
    source = prod(shapes[operator.inputs[0]]) if operator.inputs else 0
    match operator:
        case op.Input() | op.Flatten() | op.Concatenate():
            return []
        case op.Convolution():
            # K^2 FO^2 IC OC of a square convolution; a group sees its own part of the input channels.
            products = operator.weight[0].size * prod(operator.shape)
            return [*_openings(source), Stage("words", 3 * products)]
        case op.Linear():
            return [*_openings(source), Stage("words", 3 * operator.weight.size)]
        case op.Affine():
            return [*_openings(source), Stage("words", 3 * source)]
        case op.ReLU():
            return comparison(source)
        case op.Polynomial() if operator.degree == 2:
            return [Stage("words", 2 * source), *_openings(source)]
        case op.MaskedReLU() if operator.degree <= 2:
            return _masked(operator, source)
        case op.MaxPool():
            return [*comparison(source), *([Stage("link", 0)] * 3)]
        case op.AveragePool() | op.SumPool():
            return [Stage("words", 2 * source)]
        case op.Add():
            return [Stage("words", source)]
    return None


def _openings(elements: int) -> list[Stage]:
    """Both parties send a masked word for each element."""
    return [Stage("link", WORD * elements)] * 2


def _masked(operator: op.MaskedReLU, elements: int) -> list[Stage]:
    kept = int(operator.mask.sum())
    found = comparison(kept) if kept else []
    if operator.coefficients is not None and kept < elements:
        found += [Stage("words", 2 * (elements - kept)), *_openings(elements - kept)]
    return found


@dataclass(frozen=True)
class FPGALatency:
    """Latency of a network on a pair of boards.

    Args:
        word_rate: word operations a second of a board, ``PP * freq`` of convolutions, products and pooling.
            The default was calibrated: with it the model gives the two published latencies (63 ms for an
            all-polynomial ResNet-18 on ImageNet, 228 ms for ResNet-50) within 5 %.
        bit_rate: bit operations a second of the comparison unit; 128 bits at 200 MHz.
        bandwidth: of the network, bit/s.
        base_latency: of each message, seconds (T_bc).
        batch: images; sizes grow with it, base latencies do not.
        name: for tables.

    Raises:
        ValueError: a rate is not positive, the base latency is negative or the batch is empty.

    Example:
        >>> FPGALatency().seconds(comparison(802_816)) > 0.25
        True
    """

    word_rate: float = 195e9
    bit_rate: float = 25.6e9
    bandwidth: float = 8e9
    base_latency: float = 0.0
    batch: int = 1
    name: str = "fpga"

    def __post_init__(self) -> None:
        for field in ("word_rate", "bit_rate", "bandwidth"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, not {getattr(self, field)}")
        if not self.base_latency >= 0:
            raise ValueError(f"base_latency must not be negative, got {self.base_latency}")
        if self.batch < 1:
            raise ValueError(f"a batch has at least one image, not {self.batch}")

    def rate(self, resource: Resource) -> float:
        """Work a second of one of the resources."""
        return {"words": self.word_rate, "bits": self.bit_rate, "link": self.bandwidth}[resource]

    def seconds(self, work: list[Stage]) -> float:
        """Of stages one after the other."""
        return sum(
            stage.work * self.batch / self.rate(stage.resource)
            + self.base_latency * (stage.resource == "link")
            for stage in work
        )

    def operator(self, operator: op.Operator, shapes: Mapping[str, op.operators.Shape]) -> list[Stage]:
        """The stages of an operator.

        Raises:
            MissingLatency: the model has none for it.
        """
        found = stages(operator, shapes)
        if found is None:
            raise MissingLatency(self.name, operator.name, type(operator).__name__)
        return found

    def network(self, plan: op.Plan) -> NetworkLatency:
        """The latency of a network, operator by operator.

        Raises:
            MissingLatency: the model does not know an operator.
        """
        shapes = {operator.name: operator.shape for operator in plan}
        return NetworkLatency(
            self.name, tuple(self._row(operator, self.operator(operator, shapes)) for operator in plan)
        )

    def _row(self, operator: op.Operator, work: list[Stage]) -> OperatorLatency:
        sent = [stage.work * self.batch for stage in work if stage.resource == "link"]
        return OperatorLatency(
            operator.name,
            type(operator).__name__,
            compute=sum(
                stage.work * self.batch / self.rate(stage.resource)
                for stage in work
                if stage.resource != "link"
            ),
            transfer=sum(sent) / self.bandwidth,
            waiting=len(sent) * self.base_latency,
            rounds=len(sent),
            bytes=sum(sent) / 8,
        )
