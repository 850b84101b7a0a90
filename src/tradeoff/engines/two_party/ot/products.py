"""Shares of a bilinear product of which one party holds the left operand and the other the right one.

N. Gilboa, "Two Party RSA Key Generation", CRYPTO 1999, for bilinear maps: the holder of the right operand
chooses by its bits, the other one offers what the weight meets. A weight costs one transfer a bit, whose
payload are the M elements of the left operand that it is multiplied with: 16 + M element bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from tradeoff.engines.two_party.arithmetic import BilinearMap, Convolution, Elementwise, MatrixProduct
from tradeoff.engines.two_party.errors import RangeExceeded
from tradeoff.engines.two_party.ot.transfers import Bits, Chosen, Offered, low_bits
from tradeoff.engines.two_party.sharing import Ring, Share
from tradeoff.nn.plan.windows import windows

_BLOCK = 1 << 19
"""Elements of payload that are handled at a time."""

MESSAGE = 1 << 26
"""Bytes of payload that one message holds, unless a single output has more."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class CrossProduct:
    """map(left, right) for a left operand of one party and a right one of ``bits`` bits of the other.

    Written as ``groups`` matrix products of (outputs, taps) weights with (taps, met) elements.

    Args:
        bits: of the right operand in two's complement.
    """

    ring: Ring
    map: BilinearMap
    left: Shape
    right: Shape
    bits: int

    @property
    def groups(self) -> int:
        if isinstance(self.map, Elementwise):
            return prod(self.right)
        return self.map.groups if isinstance(self.map, Convolution) else 1

    @property
    def outputs(self) -> int:
        """Of one group."""
        return 1 if isinstance(self.map, Elementwise) else self.right[0] // self.groups

    @property
    def taps(self) -> int:
        """Weights of one output."""
        return prod(self.right) // (self.groups * self.outputs)

    @property
    def met(self) -> int:
        """Elements that one weight meets."""
        return prod(self.map.shape(self.left, self.right)) // (self.groups * self.outputs)

    @property
    def transfers(self) -> int:
        return prod(self.right) * self.bits

    @property
    def payload_shape(self) -> tuple[int, int, int]:
        """(outputs of all groups, transfers of one, elements met)."""
        return self.groups * self.outputs, self.taps * self.bits, self.met

    @property
    def payload(self) -> int:
        """Bytes from the holder of the left operand."""
        return prod(self.payload_shape) * self.ring.nbytes

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Ranges of outputs, the payload of each fitting one message."""
        rows, each, met = self.payload_shape
        step = max(1, MESSAGE // max(1, each * met * self.ring.nbytes))
        return [(low, min(low + step, rows)) for low in range(0, rows, step)]

    def choices(self, right: Share) -> Bits:
        """The right operand's bits, output by output, tap by tap, the lowest first.

        Raises:
            RangeExceeded: it does not fit ``bits``.
        """
        if self.bits < self.ring.bits:
            largest = int(np.abs(self.ring.integers(right)).max(initial=0))
            if largest >= 1 << (self.bits - 1):
                raise RangeExceeded("an operand of a transfer", largest, 2.0 ** (self.bits - 1))
        return low_bits(right, self.bits)

    def offer(self, offered: Offered, start: int, left: Share) -> tuple[Share, Share]:
        """This party's share of the product, and the payload to send, for the transfers from ``start``."""
        rows, payload = self.offer_rows(offered, start, left, (0, self.payload_shape[0]))
        return self.fold(rows), payload

    def offer_rows(
        self, offered: Offered, start: int, left: Share, outputs: tuple[int, int]
    ) -> tuple[Share, Share]:
        """The same for a range of outputs: shares (outputs, met)."""
        scaled = self._scaled(left)
        first, last = outputs
        payload = np.empty((last - first, *self.payload_shape[1:]), self.ring.dtype)
        result = np.empty((last - first, self.met), self.ring.dtype)
        for low, high, at in self._blocks(start, len(payload)):
            delta = scaled[np.arange(first + low, first + high) // self.outputs].reshape(-1, self.met)
            share, corrections = offered.elements(at, delta, self.ring)
            payload[low:high] = corrections.reshape(payload[low:high].shape)
            result[low:high] = share.reshape(payload[low:high].shape).sum(axis=1, dtype=self.ring.dtype)
        return result, payload

    def receive(self, chosen: Chosen, start: int, payload: Share) -> Share:
        """The other party's share, from the payload."""
        return self.fold(self.receive_rows(chosen, start, payload))

    def receive_rows(self, chosen: Chosen, start: int, payload: Share) -> Share:
        """Shares (outputs, met) of the outputs of which the payload (outputs, transfers, met) is."""
        result = np.empty((len(payload), self.met), self.ring.dtype)
        for low, high, at in self._blocks(start, len(payload)):
            corrections = payload[low:high].reshape(-1, self.met)
            share = chosen.elements(at, corrections, self.ring)
            result[low:high] = share.reshape(payload[low:high].shape).sum(axis=1, dtype=self.ring.dtype)
        return result

    def _blocks(self, start: int, outputs: int) -> list[tuple[int, int, slice]]:
        """Ranges of outputs, with their transfers."""
        _, each, met = self.payload_shape
        step = max(1, _BLOCK // max(1, each * met))
        return [
            (
                low,
                min(low + step, outputs),
                slice(start + low * each, start + min(low + step, outputs) * each),
            )
            for low in range(0, outputs, step)
        ]

    def _scaled(self, left: Share) -> Share:
        """What each bit of each tap weighs: (groups, taps, bits, met)."""
        shifts = np.arange(self.bits, dtype=self.ring.dtype)[:, None]
        scaled = self._unfold(left)[:, :, None, :] << shifts
        if self.bits < self.ring.bits:
            np.negative(scaled[:, :, -1], out=scaled[:, :, -1])
        return scaled

    def _unfold(self, left: Share) -> Share:
        """(groups, taps, met)."""
        if isinstance(self.map, MatrixProduct):
            return left.T[None]
        if isinstance(self.map, Convolution):
            map = self.map
            taps = windows(left, self.right[2:], map.stride, map.padding, map.dilation, 0)
            # (positions, batch, channels, ...) -> (channels, positions, batch, ...)
            stacked = np.stack(taps).swapaxes(1, 2).swapaxes(0, 1)
            return stacked.reshape(self.groups, self.taps, self.met)
        kept, rest = self._axes()
        return left.transpose(kept + rest).reshape(self.groups, 1, self.met)

    def fold(self, result: Share) -> Share:
        """The product of the map's shape from (groups * outputs, met)."""
        shape = self.map.shape(self.left, self.right)
        if isinstance(self.map, Elementwise):
            kept, rest = self._axes()
            order = kept + rest
            back = tuple(int(axis) for axis in np.argsort(order))
            return result.reshape([shape[axis] for axis in order]).transpose(back)
        return result.reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1)

    def _axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Axes of the left operand along which an elementwise factor varies, and the others."""
        sizes = (1,) * (len(self.left) - len(self.right)) + self.right
        kept = tuple(axis for axis, size in enumerate(sizes) if size > 1)
        return kept, tuple(axis for axis in range(len(sizes)) if axis not in kept)
