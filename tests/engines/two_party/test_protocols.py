"""Every protocol against integer arithmetic, at random and edge values, in both rings."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.engines.two_party import pooling
from tradeoff.engines.two_party.activations import Coefficients, Quadratic, powers, powers_lane, quadratic
from tradeoff.engines.two_party.arithmetic import (
    Convolution,
    Elementwise,
    MatrixProduct,
    Square,
    StaticTriple,
    Triple,
    product,
    square,
    static_product,
)
from tradeoff.engines.two_party.comparison import Comparison, at_least_zero, relu
from tradeoff.engines.two_party.party import StaticOperand
from tradeoff.engines.two_party.sharing import Ring
from tradeoff.engines.two_party.truncation import Truncation, truncate, truncate_locally
from tradeoff.nn.plan import windows

RINGS = [Ring(64, 16), Ring(32, 8)]
RADICES = [4, 2]


def edges(ring: Ring, top: int) -> list[int]:
    """Values at which carries, signs and scales change, within +-2^top."""
    L, f = ring.bits, ring.frac_bits
    alternating = int("01" * (L // 2), 2) & ((1 << top) - 1)
    values = {0, 1, -1, 1 << f, -(1 << f), (1 << f) - 1, alternating, -alternating, 1 << (top - 1)}
    values |= {(1 << top) - 1, -(1 << top), -(1 << top) + 1, -(1 << (top - 1))}
    return sorted(values)


def samples(ring: Ring, top: int, count: int, seed: int = 0) -> np.ndarray:
    """Edge values, then signed integers of every order of magnitude below 2^top; ``count`` in all."""
    generator = np.random.default_rng(seed)
    magnitude = generator.integers(0, 1 << 62, count, dtype=np.int64) >> generator.integers(
        62 - top, 62, count
    )
    values = np.where(generator.random(count) < 0.5, magnitude, -magnitude)
    edge = edges(ring, top)[:count]
    values[: len(edge)] = edge
    return values


@pytest.mark.parametrize("ring", RINGS, ids=str)
class TestExact:
    """Equal to integers modulo 2^L."""

    def test_square(self, ring: Ring, two_parties: Any, share: Any) -> None:
        x = ring.elements(samples(ring, ring.bits - 2, 100))
        shares = share(ring, x)
        run = two_parties((Square(ring, x.size),), lambda rank, m: square(rank, shares[rank], m[0]))
        assert (run.value == x * x).all()

    def test_mul(self, ring: Ring, two_parties: Any, share: Any) -> None:
        x, y = (ring.elements(samples(ring, ring.bits - 2, 100, seed)) for seed in (1, 2))
        left, right = share(ring, x), share(ring, y)
        lane = (Triple(ring, Elementwise(), x.shape, y.shape),)
        run = two_parties(lane, lambda rank, m: product(rank, Elementwise(), left[rank], right[rank], m[0]))
        assert (run.value == x * y).all()

    def test_matmul(self, ring: Ring, two_parties: Any, share: Any) -> None:
        x = ring.elements(samples(ring, ring.bits - 2, 6 * 20)).reshape(6, 20)
        w = ring.elements(samples(ring, ring.bits - 2, 5 * 20, 3)).reshape(5, 20)
        left, right = share(ring, x), share(ring, w)
        lane = (Triple(ring, MatrixProduct(), x.shape, w.shape),)
        run = two_parties(lane, lambda rank, m: product(rank, MatrixProduct(), left[rank], right[rank], m[0]))
        assert (run.value == _dot(x, w)).all()

    @pytest.mark.parametrize(
        ("x_shape", "w_shape", "map"),
        [
            ((2, 3, 7, 6), (4, 3, 3, 3), Convolution((1, 1), (1, 1), (1, 1))),
            ((2, 4, 8, 8), (6, 2, 3, 2), Convolution((2, 1), (0, 1), (2, 1), groups=2)),
            ((1, 4, 9), (4, 1, 3), Convolution((2,), (1,), (1,), groups=4)),
        ],
    )
    def test_conv(
        self, ring: Ring, x_shape: Any, w_shape: Any, map: Any, two_parties: Any, share: Any
    ) -> None:
        x = ring.elements(samples(ring, ring.bits - 2, int(np.prod(x_shape)))).reshape(x_shape)
        w = ring.elements(samples(ring, ring.bits - 2, int(np.prod(w_shape)), 3)).reshape(w_shape)
        left, right = share(ring, x), share(ring, w)
        lane = (Triple(ring, map, x_shape, w_shape),)
        run = two_parties(lane, lambda rank, m: product(rank, map, left[rank], right[rank], m[0]))
        assert (run.value == _conv(x, w, map)).all()

    def test_static_conv_opens_exactly_the_input(self, ring: Ring, two_parties: Any, share: Any) -> None:
        """The weight's mask is opened once, the unfolded input never."""
        map = Convolution((1, 1), (1, 1), (1, 1))
        x = ring.elements(samples(ring, ring.bits - 2, 2 * 3 * 6 * 6)).reshape(2, 3, 6, 6)
        w, mask = (ring.elements(samples(ring, ring.bits - 2, 4 * 27, s)).reshape(4, 3, 3, 3) for s in (1, 2))
        shares = share(ring, x)
        lane = (StaticTriple(ring, map, x.shape, w.shape, ring.bits),)
        operands = StaticOperand(w - mask, mask), StaticOperand(w - mask, None)
        run = two_parties(
            lane,
            lambda rank, m: static_product(rank, map, shares[rank], operands[rank], m[0]),
            {"weight": mask},
        )
        assert (run.value == _conv(x, w, map)).all()
        assert [message.nbytes for message, _ in run.messages] == [x.nbytes]

    @pytest.mark.parametrize("radix", RADICES)
    def test_relu_and_its_cost(self, ring: Ring, radix: int, two_parties: Any, share: Any) -> None:
        """Exact in the whole ring; 5 rounds and 26.375 B at radix 4, 8 and 31.625 at radix 2."""
        x = ring.elements(samples(ring, min(62, ring.bits - 2), 640))
        x[:3] = [ring.scalar((1 << (ring.bits - 1)) - 1), ring.scalar(1 << (ring.bits - 1)), ring.scalar(-5)]
        shares, kind = share(ring, x), Comparison(ring, x.size, radix)
        run = two_parties((kind,), lambda rank, m: relu(rank, kind, shares[rank], m[0]))
        assert (ring.integers(run.value) == np.maximum(ring.integers(x), 0)).all()
        sent = sum(message.nbytes for message, _ in run.messages) / x.size
        expected = {(64, 4): (5, 26.375), (64, 2): (8, 31.625), (32, 4): (5, 13.125), (32, 2): (7, 15.625)}
        assert (len(run.messages), sent) == expected[ring.bits, radix]

    @pytest.mark.parametrize("radix", RADICES)
    def test_drelu(self, ring: Ring, radix: int, two_parties: Any, share: Any) -> None:
        x = ring.elements(samples(ring, ring.bits - 2, 128))
        x[:2] = [ring.scalar((1 << (ring.bits - 1)) - 1), ring.scalar(1 << (ring.bits - 1))]
        shares, kind = share(ring, x), Comparison(ring, x.size, radix)
        run = two_parties((kind,), lambda rank, m: at_least_zero(rank, kind, shares[rank], m[0]))
        assert (run.value[0] == (ring.integers(x) >= 0)).all()

    def test_max(self, ring: Ring, two_parties: Any, share: Any) -> None:
        """max(a, b) = b + ReLU(a - b), as pooling has it."""
        a, b = (ring.elements(samples(ring, ring.bits - 3, 128, seed)) for seed in (0, 7))
        left, right, kind = share(ring, a), share(ring, b), Comparison(ring, 128)
        run = two_parties((kind,), lambda rank, m: relu(rank, kind, left[rank] - right[rank], m[0]))
        assert (ring.integers(run.value + b) == np.maximum(ring.integers(a), ring.integers(b))).all()

    @pytest.mark.parametrize("features", [2, 3, 7, 10])
    def test_argmax(self, ring: Ring, features: int, two_parties: Any, share: Any) -> None:
        """The lowest index wins a tie."""
        values = np.random.default_rng(features).integers(-3, 3, (features, 40))
        winners, indices = share(ring, ring.elements(values)), None
        places = np.repeat(np.arange(features, dtype=ring.dtype)[:, None], 40, axis=1)
        indices = (places, np.zeros_like(places))
        for level, pairs in enumerate(windows.levels(features)):
            lane = pooling.argmax_lane(ring, 4, 40, pairs, first=level == 0)
            run = two_parties(
                lane,
                lambda rank, m, lane=lane, level=level, winners=winners, indices=indices: (
                    pooling.argmax_level(rank, lane, winners[rank], indices[rank], level == 0, m)
                ),
            )
            winners = tuple(shares[0] for shares in run.shares)
            indices = tuple(shares[1] for shares in run.shares)
        assert (indices[0] + indices[1] == values.argmax(axis=0)).all()


@pytest.mark.parametrize("ring", RINGS, ids=str)
class TestWithinOneUnit:
    """Truncation gives the floor or one unit more, for -2^(L-2) <= x < 2^(L-2)."""

    @pytest.mark.parametrize("shift", [1, 8, 16, 24])
    def test_truncation(self, ring: Ring, shift: int, two_parties: Any, share: Any) -> None:
        x = samples(ring, ring.bits - 2, 1000)
        shares = share(ring, ring.elements(x))
        lane = (Truncation(ring, x.size, shift),)
        run = two_parties(lane, lambda rank, m: truncate(rank, ring, shift, shares[rank], m[0]))
        assert set(ring.integers(run.value) - (x >> shift)) <= {0, 1}
        exact = x % (1 << shift) == 0
        assert (ring.integers(run.value) == x >> shift)[exact].all()

    @pytest.mark.parametrize("radix", RADICES)
    @pytest.mark.parametrize("shift", [8, 10])
    def test_relu_with_truncation(
        self, ring: Ring, radix: int, shift: int, two_parties: Any, share: Any
    ) -> None:
        """The same rounds and bytes as a plain ReLU."""
        x = samples(ring, ring.bits - 2, 640)
        shares, kind = share(ring, ring.elements(x)), Comparison(ring, x.size, radix, shift)
        run = two_parties((kind,), lambda rank, m: relu(rank, kind, shares[rank], m[0]))
        assert set(ring.integers(run.value) - (np.maximum(x, 0) >> shift)) <= {0, 1}
        assert kind.openings == Comparison(ring, x.size, radix).openings

    @pytest.mark.parametrize("private", [False, True])
    @pytest.mark.parametrize("dropped", [False, True])
    def test_quadratic(self, ring: Ring, private: bool, dropped: bool, two_parties: Any, share: Any) -> None:
        """c2 y^2 + c1 y + c0 is exact in y, which is x truncated: one opening, private or not."""
        f, shift = ring.frac_bits, ring.frac_bits if dropped else 0
        x = samples(ring, 2 * f + 2 if dropped else f + 2, 60).reshape(4, 15)
        c = np.random.default_rng(1).integers(-(1 << f), 1 << f, (3, 15))
        shares, kind = share(ring, ring.elements(x)), Quadratic(ring, x.shape, shift, private, ring.bits)
        static = {name: share(ring, ring.elements(c[0]))[0] for name in ("linear", "quadratic")}

        def protocol(rank: int, m: Any) -> Any:
            linear, quadratic_, constant = (ring.elements(row) for row in (c[1], c[2], c[0] << (2 * f)))
            constant = constant if rank == 0 else None
            if not private:
                return quadratic(rank, kind, Coefficients(constant, linear, quadratic_), shares[rank], m[0])
            opened = linear - static["linear"], quadratic_ - static["quadratic"]
            own = (static["linear"], static["quadratic"]) if rank == 0 else (None, None)
            return quadratic(rank, kind, Coefficients(constant, *opened, *own), shares[rank], m[0])

        run = two_parties((kind,), protocol, static if private else None)
        y = (x >> shift).astype(object)
        candidates = [c[2] * t * t + ((c[1] * t) << f) + (c[0] << (2 * f)) for t in (y, y + 1)]
        value = ring.integers(run.value)
        assert ((value == candidates[0]) | (value == candidates[1])).all()
        assert len(run.messages) == 1
        if not dropped:
            assert (value == candidates[0]).all()

    def test_quadratic_that_drops_most_bits(self, ring: Ring, two_parties: Any, share: Any) -> None:
        """Behind two average poolings a product has more surplus bits than half of the ring."""
        shift = ring.bits // 2 + 4
        x = samples(ring, ring.bits - 2, 60).reshape(4, 15)
        shares, kind = share(ring, ring.elements(x)), Quadratic(ring, x.shape, shift, False, ring.bits)
        zero, one = (ring.elements(np.full(15, value)) for value in (0, 1))

        def protocol(rank: int, m: Any) -> Any:
            return quadratic(rank, kind, Coefficients(None, zero, one), shares[rank], m[0])

        value = ring.integers(two_parties((kind,), protocol).value)
        y = x >> shift
        assert ((value == y * y) | (value == (y + 1) ** 2)).all()

    def test_powers(self, ring: Ring, two_parties: Any, share: Any) -> None:
        f = ring.frac_bits
        x = np.random.default_rng(0).integers(-(2 << f), 2 << f, 50)
        shares = share(ring, ring.elements(x << f))
        lane = powers_lane(ring, x.size, f, 4)
        run = two_parties(lane, lambda rank, m: powers(rank, ring, f, 4, shares[rank], iter(m)))
        real = np.ldexp(x, -f)
        for order in range(1, 5):
            error = np.ldexp(ring.integers(run.value[order - 1]), -f) - real**order
            assert np.abs(error).max() <= 40 * 2.0**-f


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62 - 1), min_size=1, max_size=20), st.sampled_from([4, 2]))
def test_relu_of_any_integers(two_parties: Any, share: Any, values: list[int], radix: int) -> None:
    ring = Ring()
    x = np.zeros(64, np.int64)
    x[: len(values)] = values
    shares, kind = share(ring, ring.elements(x)), Comparison(ring, 64, radix)
    run = two_parties((kind,), lambda rank, m: relu(rank, kind, shares[rank], m[0]))
    assert (ring.integers(run.value) == np.maximum(x, 0)).all()


def test_square_costs_one_element_and_one_round(two_parties: Any, share: Any) -> None:
    ring = Ring()
    shares = share(ring, np.arange(1000, dtype=np.uint64))
    run = two_parties((Square(ring, 1000),), lambda rank, m: square(rank, shares[rank], m[0]))
    assert [message.nbytes for message, _ in run.messages] == [8000]


def test_dealer_truncation_has_no_gross_error(two_parties: Any, share: Any) -> None:
    """10^7 elements at |x| = 2^45, none off by more than one unit."""
    ring = Ring()
    generator = np.random.default_rng(0)
    for _ in range(10):
        x = (1 << 45) - generator.integers(0, 1 << 20, 10**6)
        x *= generator.choice([-1, 1], x.size)
        shares = share(ring, ring.elements(x))
        lane = (Truncation(ring, x.size, 16),)
        run = two_parties(lane, lambda rank, m, shares=shares: truncate(rank, ring, 16, shares[rank], m[0]))
        error = ring.integers(run.value) - (x >> 16)
        assert error.min() >= 0
        assert error.max() <= 1


def test_local_truncation_has_gross_errors(share: Any) -> None:
    """Uniform in +-2^50, 4 * 10^6 values: 122 expected, standard deviation 11."""
    ring = Ring()
    gross = 0
    generator = np.random.default_rng(0)
    for _ in range(4):
        x = generator.integers(-(1 << 50), 1 << 50, 10**6)
        shares = share(ring, ring.elements(x))
        value = sum(truncate_locally(rank, ring, 16, shares[rank]) for rank in (0, 1))
        gross += int((np.abs(ring.integers(value) - (x >> 16)) > 1).sum())
    assert 75 <= gross <= 170


def _dot(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x w^T by multiplication and sum, which wrap as the ring does."""
    return (x[:, None, :] * w[None, :, :]).sum(axis=2, dtype=x.dtype)


def _conv(x: np.ndarray, w: np.ndarray, map: Convolution) -> np.ndarray:
    """Convolution tap by tap."""
    kernel, per_group = w.shape[2:], w.shape[0] // map.groups
    taps = windows.windows(x, kernel, map.stride, map.padding, map.dilation, 0)
    out = np.zeros(map.shape(x.shape, w.shape), x.dtype)
    for tap, offset in zip(taps, np.ndindex(*kernel), strict=True):
        for channel in range(w.shape[0]):
            group = channel // per_group
            part = tap[:, group * w.shape[1] : (group + 1) * w.shape[1]]
            weights = w[(channel, slice(None), *offset)].reshape(-1, *(1,) * len(kernel))
            out[:, channel] += (part * weights).sum(axis=1, dtype=x.dtype)
    return out
