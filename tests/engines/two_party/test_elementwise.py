"""The last steps of truncation and ReLU, from the dealer's corrections to the clear result."""

from collections.abc import Iterator

import numpy as np
import pytest

from tradeoff.core import native
from tradeoff.engines.two_party import bits, elementwise

CASES = [(np.uint64, 16), (np.uint64, 32), (np.uint32, 8), (np.uint64, 1), (np.uint32, 30), (np.uint64, 62)]


@pytest.fixture(params=["native", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest, require) -> Iterator[None]:
    """Every test runs with the compiled kernels and with the NumPy reference."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "reference":
            patch.setattr(elementwise, "_kernels", lambda: None)
        else:
            require(native.extension(), "the compiled extension is missing: install a C++17 compiler")
        yield


def words(generator: np.random.Generator, shape: int | tuple[int, ...], dtype: type) -> np.ndarray:
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def values(generator: np.random.Generator, count: int, dtype: type, bound: int) -> np.ndarray:
    """Ring elements of signed magnitude below ``bound``: edges first, then all binary orders."""
    edges = [0, 1, -1, bound - 1, -bound, bound // 2, -(bound // 2), bound // 3]
    scale = generator.integers(0, bound.bit_length() - 1, count - len(edges))
    rest = [int(generator.integers(-(1 << int(k)), 1 << int(k))) for k in scale]
    return np.array([v % (1 << 8 * np.dtype(dtype).itemsize) for v in edges + rest], dtype)


def signed(x: np.ndarray) -> np.ndarray:
    return x.view(np.int64 if x.dtype == np.uint64 else np.int32).astype(object)


@pytest.mark.parametrize(("dtype", "shift"), CASES)
@pytest.mark.parametrize("count", [8, 64, 333])
def test_truncation(dtype: type, shift: int, count: int) -> None:
    generator = np.random.default_rng(count)
    quarter = 1 << (8 * np.dtype(dtype).itemsize - 2)
    x = values(generator, count, dtype, quarter)
    r, rho0, m0 = words(generator, (3, count), dtype)
    c = x + dtype(quarter) + r
    rho1, m1 = elementwise.truncation_corrections(r, rho0, m0, shift)
    total = elementwise.truncation(c, rho0, m0, shift, 0) + elementwise.truncation(c, rho1, m1, shift, 1)
    error = signed(total) - (signed(x) >> shift)
    assert set(error.tolist()) <= {0, 1}


@pytest.mark.parametrize("dtype", [np.uint64, np.uint32])
@pytest.mark.parametrize("count", [8, 64, 333])
def test_relu(dtype: type, count: int) -> None:
    generator = np.random.default_rng(count)
    x = values(generator, count, dtype, 1 << (8 * np.dtype(dtype).itemsize - 1))
    r, x0, bits0, s0, r_s0 = words(generator, (5, count), dtype)
    s = words(generator, -(-count // 64), np.uint64)
    bits1, s1, r_s1 = elementwise.relu_corrections(r, s, bits0, s0, r_s0)
    assert np.array_equal(bits0 ^ bits1, r)
    t = bits.pack(signed(x) >= 0) ^ s
    total = elementwise.relu(x + r, x0, t, s0, r_s0) + elementwise.relu(x + r, x - x0, t, s1, r_s1)
    assert np.array_equal(total, np.where(signed(x) >= 0, x, dtype(0)))


@pytest.mark.parametrize(("dtype", "shift"), CASES)
@pytest.mark.parametrize("count", [8, 64, 333])
def test_truncated_relu(dtype: type, shift: int, count: int) -> None:
    generator = np.random.default_rng(count)
    quarter = 1 << (8 * np.dtype(dtype).itemsize - 2)
    x = values(generator, count, dtype, quarter)
    r = words(generator, count, dtype)
    share0 = words(generator, (6, count), dtype)
    s = words(generator, -(-count // 64), np.uint64)
    share1 = elementwise.truncated_relu_corrections(r, s, *share0, shift)
    assert np.array_equal(share0[0] ^ share1[0], r)
    t = bits.pack(signed(x) >= 0) ^ s
    c = x + dtype(quarter) + r
    parts = [
        elementwise.truncated_relu(c, t, rho, m, s_share, rho_s, m_s, shift, party)
        for party, (_, rho, m, s_share, rho_s, m_s) in enumerate((share0, share1))
    ]
    error = signed(parts[0] + parts[1]) - np.maximum(signed(x) >> shift, 0)
    # A negative value gives exactly zero: the comparison decides, not the rounding.
    assert set(error.tolist()) <= {0, 1}
    assert not error[signed(x) < 0].any()


def test_wrong_inputs_are_refused() -> None:
    x = np.zeros(65, np.uint64)
    with pytest.raises(ValueError, match="shift"):
        elementwise.truncation(x, x, x, 63, 0)
    with pytest.raises(ValueError, match="party"):
        elementwise.truncation(x, x, x, 16, 2)
    with pytest.raises(ValueError, match="one length"):
        elementwise.truncation(x, x[:64], x, 16, 0)
    with pytest.raises(TypeError, match="uint64 or uint32"):
        elementwise.truncation(x.view(np.int64), x.view(np.int64), x.view(np.int64), 16, 0)
    with pytest.raises(ValueError, match="65 elements need"):
        elementwise.relu(x, x, np.zeros(1, np.uint64), x, x)
