"""Fixed point: encoding, truncation, bit packing."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tradeoff.nn.fixed_point import FixedPoint, FixedPointOverflow, pack_bits, unpack_bits

FORMATS = [FixedPoint(), FixedPoint(64, 13), FixedPoint(32, 8), FixedPoint(32, 1)]


def test_defaults_and_limits() -> None:
    assert (FixedPoint().ring_bits, FixedPoint().fraction_bits) == (64, 16)
    assert FixedPoint().limit() == 2.0**46
    assert FixedPoint().limit(32) == 2.0**30
    assert FixedPoint(32, 8).limit() == 2.0**22
    assert FixedPoint(32, 8).dtype == np.uint32


@pytest.mark.parametrize(
    ("ring_bits", "fraction_bits"), [(16, 4), (64, 0), (64, 31), (32, 15), (32, 16), (64, -1)]
)
def test_formats_without_room_are_refused(ring_bits: int, fraction_bits: int) -> None:
    with pytest.raises(ValueError, match="_bits must"):
        FixedPoint(ring_bits, fraction_bits)


@pytest.mark.parametrize("fixed", FORMATS)
@given(data=st.data())
def test_encoding_is_exact_rounding(fixed: FixedPoint, data: st.DataObject) -> None:
    bound = fixed.limit() - 1
    x = data.draw(st.floats(-bound, bound))
    encoded = fixed.encode(x)
    exact = round(Fraction(x) * 2**fixed.fraction_bits)  # Python rounds halves to even
    assert encoded.dtype == fixed.dtype
    assert int(encoded) == exact % 2**fixed.ring_bits
    assert fixed.decode(encoded) == float(exact) / 2**fixed.fraction_bits


def test_halves_round_to_even() -> None:
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5]) / 2**16
    assert FixedPoint().signed(FixedPoint().encode(halves)).tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("fixed", FORMATS)
def test_bias_scale(fixed: FixedPoint) -> None:
    double = 2 * fixed.fraction_bits
    assert int(fixed.encode(1.0, fraction_bits=double)) == 1 << double
    encoded = fixed.encode([-0.25, 1.0], fraction_bits=double)
    assert fixed.decode(encoded, fraction_bits=double).tolist() == [-0.25, 1.0]


@pytest.mark.parametrize("fixed", FORMATS)
def test_overflow_is_named(fixed: FixedPoint) -> None:
    limit = fixed.limit()
    fixed.encode(np.nextafter(limit, 0) if fixed.ring_bits == 64 else limit - 1)
    for value in (limit, -limit, 1e308, -3 * limit):
        with pytest.raises(FixedPointOverflow) as caught:
            fixed.encode([0.0, value], "conv1 weight")
        assert caught.value.name == "conv1 weight"
        assert caught.value.maximum == abs(value)
        assert caught.value.limit == limit
        assert isinstance(caught.value, OverflowError)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named(bad: float) -> None:
    with pytest.raises(ValueError, match="fc bias holds NaN or infinity"):
        FixedPoint().encode([1.0, bad], "fc bias")


def test_empty_and_other_ring() -> None:
    assert FixedPoint().encode(np.zeros((0, 3))).shape == (0, 3)
    with pytest.raises(TypeError, match="uint32"):
        FixedPoint(32, 8).decode(FixedPoint().encode([1.0]))


def elements(fixed: FixedPoint) -> st.SearchStrategy[int]:
    edges = [0, 1, -1, 1 << fixed.fraction_bits, fixed.bound - 1, -fixed.bound, 0x5555 << 4]
    return st.one_of(st.sampled_from(edges), st.integers(-fixed.bound, fixed.bound - 1))


@pytest.mark.parametrize("fixed", FORMATS)
@given(data=st.data())
def test_truncation_is_floor(fixed: FixedPoint, data: st.DataObject) -> None:
    value, bits = data.draw(elements(fixed)), data.draw(st.integers(0, fixed.ring_bits - 3))
    ring = np.array([value % 2**fixed.ring_bits], dtype=fixed.dtype)
    assert fixed.signed(fixed.truncate(ring, bits)).tolist() == [value >> bits]
    assert fixed.signed(fixed.truncate(ring)).tolist() == [value >> fixed.fraction_bits]


@pytest.mark.parametrize("fixed", FORMATS)
@given(data=st.data())
def test_stochastic_truncation_adds_the_coin(fixed: FixedPoint, data: st.DataObject) -> None:
    value, bits = data.draw(elements(fixed)), data.draw(st.integers(1, fixed.ring_bits - 3))
    coin = data.draw(st.integers(0, 2**fixed.ring_bits - 1))
    ring = np.array([value % 2**fixed.ring_bits], dtype=fixed.dtype)
    result = fixed.truncate_stochastic(ring, np.array([coin], dtype=fixed.dtype), bits)
    assert fixed.signed(result).tolist() == [(value + coin % 2**bits) >> bits]


def test_stochastic_truncation_is_unbiased() -> None:
    """Up with probability equal to the dropped fraction: 3/16 here, at 5 standard deviations."""
    fixed, count = FixedPoint(64, 4), 100_000
    coin = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
    x = np.full(count, -(7 * 16) + 3, dtype=np.int64).view(np.uint64)
    result = fixed.signed(fixed.truncate_stochastic(x, coin))
    assert set(result.tolist()) == {-7, -6}
    assert abs((result == -6).mean() - 3 / 16) < 5 * np.sqrt(3 / 16 * 13 / 16 / count)


@given(arrays.arrays(np.bool_, st.integers(0, 300)))
def test_bits_are_packed_little_endian(bits: np.ndarray) -> None:
    words = pack_bits(bits)
    assert words.dtype == np.uint64
    assert len(words) == -(-len(bits) // 64)
    value = sum(int(word) << (64 * index) for index, word in enumerate(words))
    assert value == sum(1 << index for index, bit in enumerate(bits) if bit)
    np.testing.assert_array_equal(unpack_bits(words, len(bits)), bits)


def test_unpacking_checks_the_count() -> None:
    with pytest.raises(ValueError, match="64 bits, not 65"):
        unpack_bits(np.zeros(1, dtype=np.uint64), 65)
    with pytest.raises(ValueError, match="not -1"):
        unpack_bits(np.zeros(1, dtype=np.uint64), -1)
    assert pack_bits(np.ones((2, 2, 2))).tolist() == [255]
