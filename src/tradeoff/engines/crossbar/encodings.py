"""How an integer weight is written into the cells of its slices.

A cell of k bits holds a digit of 0 to L - 1, L = 2^k. A weight takes S slices, one cell each, or one pair of
cells each where weights are differences. What the columns of the slices add up to is put together again by
their place values; :func:`decode` is the same sum over the digits of one weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Int8, Int64
from torch import Tensor

from tradeoff.engines.crossbar.errors import InvalidConfig

EncodingName = Literal["offset", "twos_complement", "differential"]
ENCODINGS: tuple[EncodingName, ...] = ("offset", "twos_complement", "differential")

PairMapping = Callable[[Tensor, int], Tensor]
"""Signed digits d of -(L-1) to L-1, and L, to the digit of the positive cell; the negative one holds that
less d. Both must be digits."""


def two_column(digit: Tensor, levels: int) -> Tensor:
    """The usual pair: a positive digit in one cell, a negative one in the other, zero in both elsewhere."""
    return digit.clamp(min=0)


class Encoding:
    """Digits of integer weights and their place values.

    Args:
        name: ``offset`` (ISAAC, ISCA 2016, section V): U = Q + 2^(b-1) in base L, and 2^(b-1) times the sum
            of the inputs taken off the product. ``twos_complement``: the bits of Q, the top one negative.
            ``differential``: the digits of \\|Q\\| with Q's sign, each a difference of two cells.
        weight_bits: b, so that -(2^(b-1) - 1) <= Q <= 2^(b-1) - 1.
        cell_bits: k.
        pair: writes a signed digit into a pair of cells (``differential``).

    Attributes:
        levels: L.
        polarities: cells that a slice takes: 2 for pairs, else 1.
        slices: S, the number of digits that a weight takes.
        offset: 2^(b-1), or 0 where nothing is taken off.
        place_values: int64 ``(slices, polarities)``.
    """

    def __init__(
        self, name: EncodingName, weight_bits: int, cell_bits: int, pair: PairMapping = two_column
    ) -> None:
        if name not in ENCODINGS:
            raise InvalidConfig(f"no encoding {name!r}; there are {', '.join(ENCODINGS)}")
        if not 2 <= weight_bits <= 16:
            raise InvalidConfig(f"weight_bits is {weight_bits}; weights have 2 to 16 bits")
        signed = name == "differential"
        magnitude_bits = weight_bits - 1 if signed else weight_bits
        if not 1 <= cell_bits <= min(magnitude_bits, 7):
            raise InvalidConfig(
                f"cell_bits is {cell_bits}; {name} with weights of {weight_bits} bits takes cells of 1 to "
                f"{min(magnitude_bits, 7)} bits"
            )
        if name == "twos_complement" and cell_bits != 1:
            raise InvalidConfig(f"twos_complement needs cells of one bit, not {cell_bits}; use offset")
        self.name, self.weight_bits, self.cell_bits, self.pair = name, weight_bits, cell_bits, pair
        self.levels = 1 << cell_bits
        self.slices = -(-magnitude_bits // cell_bits)
        self.polarities = 2 if signed else 1
        self.offset = 1 << (weight_bits - 1) if name == "offset" else 0
        self.largest = (1 << (weight_bits - 1)) - 1
        values = self.levels ** torch.arange(self.slices)
        if name == "twos_complement":
            values[-1] = -values[-1]
        signs = torch.tensor([1, -1] if signed else [1])
        self.place_values: Int64[Tensor, "slices polarities"] = values[:, None] * signs

    def encode(self, codes: Tensor) -> Int8[Tensor, "slices polarities ..."]:
        """Digits of integer weights.

        Raises:
            InvalidConfig: a code is outside of +-(2^(b-1) - 1), or the pair's digits are none.
        """
        codes = codes.long()
        peak = int(codes.abs().max()) if codes.numel() else 0
        if peak > self.largest:
            raise InvalidConfig(f"a weight of {peak} does not fit {self.weight_bits} bits (+-{self.largest})")
        magnitude = codes.abs() if self.polarities == 2 else codes + self.offset
        shifts = torch.arange(self.slices, device=codes.device).view(-1, *[1] * codes.ndim) * self.cell_bits
        digits = (magnitude >> shifts) & (self.levels - 1)
        if self.polarities == 1:
            return digits[:, None].to(torch.int8)
        digits = digits * codes.sign()
        positive = self.pair(digits, self.levels)
        cells = torch.stack([positive, positive - digits], dim=1)
        if cells.numel() and (int(cells.min()) < 0 or int(cells.max()) >= self.levels):
            raise InvalidConfig(
                f"the pair mapping gives digits from {int(cells.min())} to {int(cells.max())}; a cell holds "
                f"0 to {self.levels - 1}"
            )
        return cells.to(torch.int8)

    def decode(self, digits: Tensor) -> Tensor:
        """Weights of digits ``(slices, polarities, ...)``: int64 of integers, float64 of read-out values."""
        exact = torch.float64 if digits.is_floating_point() else torch.int64
        values = self.place_values.to(device=digits.device, dtype=exact)
        result = torch.zeros(digits.shape[2:], dtype=exact, device=digits.device)
        for place, plane in zip(values.flatten(), digits.flatten(0, 1), strict=True):
            result += place * plane.to(exact)
        return result - self.offset
