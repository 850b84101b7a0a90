"""Ring products against Python integers and NumPy's wrapping integer arithmetic."""

import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from tradeoff.core import native
from tradeoff.engines.two_party import ring

RINGS = [np.uint64, np.uint32]


@pytest.fixture(params=["native", "limbs"], autouse=True)
def backend(request: pytest.FixtureRequest, require) -> Iterator[str]:
    """Every test runs with the compiled kernels and with the limb fallback."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "limbs":
            patch.setattr(ring, "_kernels", lambda: None)
        else:
            require(native.extension(), "the compiled extension is missing: install a C++17 compiler")
        yield request.param


def elements(generator: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Random ring elements; a quarter of them are edge values."""
    most = int(np.iinfo(dtype).max)
    edges = np.array([0, 1, most, most // 2, most // 2 + 1, most // 3, 2 * (most // 3), most - 1], dtype)
    x = generator.integers(0, most, shape, dtype=dtype, endpoint=True)
    return np.where(generator.random(shape) < 0.25, generator.choice(edges, shape), x)


def slow_conv(x, weight, stride, padding, dilation, groups):
    """Convolution of images by its definition, one output element at a time; NumPy's integers wrap."""
    outputs, inputs, *kernel = weight.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    size = [(padded.shape[2 + d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(2)]
    out = np.zeros((x.shape[0], outputs, *size), x.dtype)
    for o in range(outputs):
        first = o // (outputs // groups) * inputs
        for i, j in np.ndindex(*size):
            window = padded[
                :,
                first : first + inputs,
                i * stride[0] : i * stride[0] + dilation[0] * (kernel[0] - 1) + 1 : dilation[0],
                j * stride[1] : j * stride[1] + dilation[1] * (kernel[1] - 1) + 1 : dilation[1],
            ]
            out[:, o, i, j] = (window * weight[o]).sum((1, 2, 3), dtype=x.dtype)
    return out


@settings(deadline=None, max_examples=80)
@given(
    m=st.integers(0, 70),
    k=st.integers(0, 70),
    n=st.integers(0, 70),
    dtype=st.sampled_from(RINGS),
    seed=st.integers(0, 2**32),
)
def test_matmul_is_exact(m: int, k: int, n: int, dtype: type, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = elements(generator, (m, k), dtype), elements(generator, (k, n), dtype)
    product = ring.matmul(a, b)
    assert product.dtype == dtype
    assert product.flags.c_contiguous
    assert np.array_equal(product, a @ b)


@pytest.mark.parametrize("dtype", RINGS)
@pytest.mark.parametrize(
    "shape",
    [(1, 5000, 1), (3, 2049, 9), (50, 600, 1100), (300, 1, 2100), (97, 513, 65), (1, 1, 1), (5, 0, 3)],
)
def test_matmul_across_blocks(dtype: type, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    generator = np.random.default_rng(m)
    a, b = elements(generator, (m, k), dtype), elements(generator, (k, n), dtype)
    assert np.array_equal(ring.matmul(a, b), a @ b)


@pytest.mark.parametrize("dtype", RINGS)
@pytest.mark.parametrize("value", ["most", "top", "below top", "alternating", "half limbs"])
def test_matmul_of_extreme_values(dtype: type, value: str) -> None:
    """The largest digits in every limb at the largest exact block, against Python integers."""
    width = 8 * np.dtype(dtype).itemsize
    number = {
        "most": 2**width - 1,
        "top": 2 ** (width - 1),
        "below top": 2 ** (width - 1) - 1,
        "alternating": (2**width - 1) // 3,
        "half limbs": 2**21 + 2**43 + 2**63,
    }[value] % 2**width
    k = 4099
    a, b = np.full((2, k), number, dtype), np.full((k, 3), number, dtype)
    assert (ring.matmul(a, b) == dtype(k * number * number % 2**width)).all()
    assert (ring.matmul(a, dtype(0) - b) == dtype(-k * number * number % 2**width)).all()


@pytest.mark.parametrize("dtype", RINGS)
def test_matmul_of_views(dtype: type) -> None:
    x = elements(np.random.default_rng(0), (40, 60), dtype)
    assert np.array_equal(ring.matmul(x.T, x), x.T @ x)
    assert np.array_equal(ring.matmul(x[::2, ::-3], x[::-2, 5:25].T[:, :20]), x[::2, ::-3] @ x[::-2, 5:25].T)
    assert np.array_equal(ring.matmul(np.broadcast_to(x[:1], (7, 60)), x.T), x[[0] * 7] @ x.T)
    frozen = x.copy()
    frozen.flags.writeable = False
    assert np.array_equal(ring.matmul(frozen, frozen.T), x @ x.T)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), dtype=st.sampled_from(RINGS), seed=st.integers(0, 2**32))
def test_conv2d_is_exact(data: st.DataObject, dtype: type, seed: int) -> None:
    draw = data.draw
    groups = draw(st.integers(1, 4))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel, stride, padding, dilation = (
        draw(st.tuples(st.integers(low, high), st.integers(low, high)))
        for low, high in ((1, 4), (1, 3), (0, 3), (1, 3))
    )
    least = [max(1, dilation[d] * (kernel[d] - 1) + 1 - 2 * padding[d]) for d in range(2)]
    size = [low + draw(st.integers(0, 8)) for low in least]
    generator = np.random.default_rng(seed)
    x = elements(generator, (draw(st.integers(0, 3)), inputs, *size), dtype)
    weight = elements(generator, (outputs, inputs // groups, *kernel), dtype)
    result = ring.conv(x, weight, stride, padding, dilation, groups)
    assert result.flags.c_contiguous
    assert np.array_equal(result, slow_conv(x, weight, stride, padding, dilation, groups))


@settings(deadline=None, max_examples=30)
@given(
    channels=st.integers(1, 5),
    multiplier=st.integers(1, 2),
    length=st.integers(5, 40),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    depthwise=st.booleans(),
    dtype=st.sampled_from(RINGS),
)
def test_conv1d_is_exact(
    channels: int, multiplier: int, length: int, stride: int, padding: int, depthwise: bool, dtype: type
) -> None:
    generator = np.random.default_rng(length)
    groups = channels if depthwise else 1
    x = elements(generator, (2, channels, length), dtype)
    weight = elements(generator, (channels * multiplier, channels // groups, 3), dtype)
    result = ring.conv(x, weight, stride, padding, 2, groups)
    expected = slow_conv(x[:, :, None], weight[:, :, None], (1, stride), (0, padding), (1, 2), groups)
    assert np.array_equal(result, expected[:, :, 0])


@pytest.mark.parametrize("dtype", RINGS)
@pytest.mark.parametrize(("groups", "channels", "size"), [(1, 16, 24), (16, 16, 24), (2, 16, 13), (1, 64, 4)])
def test_conv_of_realistic_size(dtype: type, groups: int, channels: int, size: int) -> None:
    generator = np.random.default_rng(size)
    x = elements(generator, (9, channels, size, size), dtype)
    weight = elements(generator, (32, channels // groups, 3, 3), dtype)
    result = ring.conv(x, weight, stride=1, padding=1, groups=groups)
    assert np.array_equal(result, slow_conv(x, weight, (1, 1), (1, 1), (1, 1), groups))


def test_conv_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    x = generator.integers(-100, 100, (2, 6, 11, 10))
    weight = generator.integers(-100, 100, (4, 3, 3, 2))
    expected = torch.nn.functional.conv2d(
        torch.tensor(x, dtype=torch.float64),
        torch.tensor(weight, dtype=torch.float64),
        None,
        (2, 1),
        (1, 2),
        (1, 3),
        2,
    )
    result = ring.conv(x.view(np.uint64), weight.view(np.uint64), (2, 1), (1, 2), (1, 3), 2)
    assert np.array_equal(result.view(np.int64), expected.numpy())


@pytest.mark.parametrize("dtype", RINGS)
def test_threads_do_not_change_results(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    a, b = elements(generator, (130, 300), dtype), elements(generator, (300, 170), dtype)
    x, weight = elements(generator, (5, 8, 9, 9), dtype), elements(generator, (12, 8, 3, 3), dtype)
    depth = elements(generator, (8, 1, 3, 3), dtype)
    for threads in (1, 2, 3, 8, 200):
        monkeypatch.setattr(native, "threads", lambda count=threads: count)
        assert np.array_equal(ring.matmul(a, b), a @ b)
        assert np.array_equal(ring.matmul(a[:2], b), a[:2] @ b)
        assert np.array_equal(ring.conv(x, weight, 1, 1), slow_conv(x, weight, (1, 1), (1, 1), (1, 1), 1))
        assert np.array_equal(ring.conv(x, depth, 1, 1, 1, 8), slow_conv(x, depth, (1, 1), (1, 1), (1, 1), 8))


def test_product_is_much_faster_than_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's integer product is the plain loop; torch's is so on processors without AVX-512 only."""
    monkeypatch.setattr(native, "threads", lambda: 1)
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 2**64, (2, 512, 512), dtype=np.uint64)
    seconds: dict[str, float] = {}
    with threadpool_limits(1, user_api="blas"):
        for name, product in (("ring", ring.matmul), ("plain", np.matmul)):
            times = []
            for _ in range(2):
                start = time.process_time()
                product(a, b)
                times.append(time.process_time() - start)
            seconds[name] = min(times)
    least = 8 if ring.backend() in ("native-avx2", "native-avx512") else 3
    assert seconds["plain"] >= least * seconds["ring"]


def test_wrong_inputs_are_refused() -> None:
    a, x = np.zeros((4, 4), np.uint64), np.zeros((1, 4, 5, 5), np.uint64)
    for wrong in (np.int64, np.float64, np.uint8, object):
        with pytest.raises(TypeError, match="uint64 or uint32"):
            ring.matmul(a.astype(wrong), a.astype(wrong))
    with pytest.raises(TypeError, match="different rings"):
        ring.matmul(a, a.astype(np.uint32))
    with pytest.raises(ValueError, match=r"\(M, K\) and \(K, N\)"):
        ring.matmul(a, a[:3])
    with pytest.raises(ValueError, match=r"\(M, K\)"):
        ring.matmul(a, a[0])
    kernel = np.zeros((2, 4, 3, 3), np.uint64)
    with pytest.raises(ValueError, match="does not fit"):
        ring.conv(x, kernel, dilation=3)
    with pytest.raises(ValueError, match="groups=3"):
        ring.conv(x, kernel, groups=3)
    with pytest.raises(ValueError, match="input channels"):
        ring.conv(x, kernel[:, :3])
    with pytest.raises(ValueError, match="stride"):
        ring.conv(x, kernel, stride=0)
    with pytest.raises(ValueError, match="padding"):
        ring.conv(x, kernel, padding=(1, 1, 1))
    with pytest.raises(ValueError, match="conv needs"):
        ring.conv(x[0, 0], kernel)


def test_backend_has_a_name() -> None:
    assert ring.backend() in ("native-avx512", "native-avx2", "native-portable", "limbs")


def test_without_the_extension_there_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tradeoff._native", None)
    native.extension.cache_clear()
    try:
        with pytest.warns(native.NativeMissingWarning, match="C\\+\\+17 compiler") as caught:
            assert [native.extension(), native.extension(), native.instruction_set()] == [None, None, None]
        assert len(caught) == 1
        assert "missing" in native.describe()
    finally:
        native.extension.cache_clear()
