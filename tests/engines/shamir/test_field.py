"""Arithmetic of the field against Python integers, native and NumPy kernels alike."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core import native
from tradeoff.engines.shamir import field
from tradeoff.engines.shamir.field import PRIME
from tradeoff.nn.fixed_point import FixedPointOverflow

EDGES = [0, 1, 2, PRIME - 1, PRIME - 2, PRIME // 2, PRIME // 2 + 1, 1 << 60, (1 << 60) - 1]
EDGES += [(1 << 32) - 1, 1 << 32, 1 << 31, (1 << 21) - 1, 1 << 42]
elements = st.one_of(st.sampled_from(EDGES), st.integers(0, PRIME - 1))


def random_elements(shape: Any, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, PRIME, shape, dtype=np.uint64)


def exact(x: Any) -> Any:
    return np.asarray(x).astype(object)


@pytest.fixture(params=["native", "numpy"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "numpy":
        monkeypatch.setattr(field, "_kernels", lambda: None)
    elif native.extension() is None:
        pytest.skip("the extension is not built")
    assert field.backend() == request.param
    return request.param


def test_products_of_a_million_pairs_and_edges(kernels: str) -> None:
    pairs = np.array([(a, b) for a in EDGES for b in EDGES], np.uint64)
    a = np.concatenate([pairs[:, 0], random_elements(10**6, 1)])
    b = np.concatenate([pairs[:, 1], random_elements(10**6, 2)])
    expected = exact(a) * exact(b) % PRIME
    assert (exact(field.multiply(a, b)) == expected).all()


@settings(max_examples=100, deadline=None)
@given(elements, elements, elements, st.integers(0, 130))
def test_laws(a: int, b: int, c: int, shift: int) -> None:
    x, y, z = (np.array([value], np.uint64) for value in (a, b, c))
    assert int(field.add(x, y)[0]) == (a + b) % PRIME
    assert int(field.subtract(x, y)[0]) == (a - b) % PRIME
    assert int(field.negate(x)[0]) == -a % PRIME
    assert int(field.rotate(x, shift)[0]) == (a << shift) % PRIME
    distributed = field.add(field.multiply(x, y), field.multiply(x, z))
    assert np.array_equal(field.multiply(x, field.add(y, z)), distributed)
    if a:
        assert a * field.inverse(a) % PRIME == 1


def test_no_inverse_of_zero() -> None:
    with pytest.raises(ZeroDivisionError):
        field.inverse(PRIME)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9), st.integers(0, 70), st.integers(0, 9), st.integers(0, 1000))
def test_matrix_product(rows: int, inner: int, columns: int, seed: int) -> None:
    a, b = random_elements((rows, inner), seed), random_elements((inner, columns), seed + 1)
    expected = exact(a) @ exact(b) % PRIME if inner else np.zeros((rows, columns), object)
    assert (exact(field.matmul(a, b)) == expected).all()


@pytest.mark.parametrize("inner", [31, 32, 33, 255, 256, 257, 2048, 2049, 5000])
def test_long_sums_of_the_largest_products(inner: int) -> None:
    """Where accumulators would overflow, or float64 lose bits, if they were not reduced in time."""
    a, b = np.full((3, inner), PRIME - 1, np.uint64), np.full((inner, 2), PRIME - 1, np.uint64)
    assert (field.matmul(a, b) == inner).all()
    ones = np.full((1, inner), (1 << 61) - 2, np.uint64)
    assert (field.matmul(ones, random_elements((inner, 5))) != 0).any()
    assert int(field.total(np.full(inner, PRIME - 1, np.uint64))) == -inner % PRIME


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_convolution(data: st.DataObject) -> None:
    groups, dimensions = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    kernel = tuple(data.draw(st.integers(1, 3)) for _ in range(dimensions))
    stride, dilation = (tuple(data.draw(st.integers(1, 2)) for _ in kernel) for _ in range(2))
    padding = tuple(data.draw(st.integers(0, 2)) for _ in kernel)
    size = tuple(
        d * (k - 1) + 1 + data.draw(st.integers(0, 3)) for d, k in zip(dilation, kernel, strict=True)
    )
    inputs, outputs = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    x = random_elements((2, inputs * groups, *size), 3)
    w = random_elements((outputs * groups, inputs, *kernel), 4)
    result = field.conv(x, w, stride, padding, dilation, groups)
    assert (exact(result) == slow_conv(x, w, stride, padding, dilation, groups)).all()


def slow_conv(x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """Position by position, in Python integers."""
    if x.ndim == 3:
        x, w = x[:, :, None], w[:, :, None]
        return slow_conv(x, w, (1, *stride), (0, *padding), (1, *dilation), groups)[:, :, 0]
    x, w = exact(np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))), exact(w)
    size = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], w.shape[2:], stride, dilation, strict=True)
    ]
    out = np.zeros((len(x), len(w), *size), object)
    inputs, outputs = w.shape[1], len(w) // groups
    for o in range(len(w)):
        first = o // outputs * inputs
        for i in range(size[0]):
            for j in range(size[1]):
                rows = slice(i * stride[0], i * stride[0] + dilation[0] * (w.shape[2] - 1) + 1, dilation[0])
                columns = slice(
                    j * stride[1], j * stride[1] + dilation[1] * (w.shape[3] - 1) + 1, dilation[1]
                )
                window = x[:, first : first + inputs, rows, columns]
                out[:, o, i, j] = (window * w[o]).reshape(len(x), -1).sum(axis=1) % PRIME
    return out


def test_signed_integers_and_reals() -> None:
    values = np.array([0, 1, -1, (PRIME - 1) // 2, -(PRIME - 1) // 2])
    assert np.array_equal(field.integers(field.elements(values)), values)
    reals = np.array([-1.5, 0.25, 100.0])
    assert np.array_equal(field.decode(field.encode(reals, 13, 58), 13), reals)
    with pytest.raises(FixedPointOverflow, match="logits reaches 2048"):
        field.encode([2048.0], 13, 24, name="logits")
    with pytest.raises(ValueError, match="NaN or infinity"):
        field.encode([np.nan], 13, 24)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((2, 3, 1), (3, 2)), ((3,), (3, 1))])
def test_operands_that_do_not_fit(shapes: Any) -> None:
    with pytest.raises(ValueError, match="matmul needs shapes"):
        field.matmul(*(random_elements(shape) for shape in shapes))
    with pytest.raises(ValueError, match="uint64, not int64"):
        field.matmul(np.zeros((2, 2), np.int64), np.zeros((2, 2), np.uint64))
    with pytest.raises(ValueError, match="does not fit"):
        field.conv(random_elements((1, 1, 2, 2)), random_elements((1, 1, 3, 3)), (1, 1), (0, 0), (1, 1))
    with pytest.raises(ValueError, match="groups do not fit"):
        field.conv(random_elements((1, 3, 2, 2)), random_elements((1, 1, 1, 1)), (1, 1), (0, 0), (1, 1), 2)
