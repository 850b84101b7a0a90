"""Every protocol against integers: products, truncation, signs, ReLU; masks at the ends of their range."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tradeoff.core.errors import EngineError
from tradeoff.engines.shamir import Options, field
from tradeoff.engines.shamir.field import HALF, PRIME
from tradeoff.engines.shamir.materials import MaskedSign, Material, Reduction, Truncation, split
from tradeoff.engines.shamir.protocols import multiply, nonnegative, relu, truncate
from tradeoff.engines.shamir.sharing import fresh_stream

SETTINGS = [
    Options(3, 1),
    Options(3, 1, "abort"),
    Options(5, 1, "robust"),
    Options(5, 2),
    Options(5, 2, "abort"),
    Options(4, 1, "abort"),
]
settings = pytest.mark.parametrize(
    "options", SETTINGS, ids=lambda o: f"{o.servers},{o.threshold},{o.security}"
)
EXTREME_MASKS = [0, 1, PRIME - 1, HALF - 1, HALF, HALF + 1]


def integers(count: int, bits: int, seed: int = 0) -> Any:
    """Signed integers of all magnitudes below 2^bits."""
    rng = np.random.default_rng(seed)
    sizes = np.exp2(rng.uniform(0, bits, count)) * rng.choice([-1, 1], count)
    return np.clip(sizes.astype(np.int64), 1 - (1 << bits), (1 << bits) - 1)


def forced(masks: list[int]) -> Callable[[Material], Any]:
    """A dealer whose masks r are these, in turn."""

    def deal(material: Material) -> Any:
        values = material.deal(fresh_stream())
        if "bits" not in values and "shifted" not in values:
            return values
        r = np.resize(np.array(masks, np.uint64), material.count)
        if isinstance(material, Truncation):
            return split(r, material.shift)
        places = np.arange(material.leaves, dtype=np.uint64)[:, None]  # type: ignore[attr-defined]
        bits = (r >> places) & np.uint64(1)
        values = split(r, material.leaves)  # type: ignore[attr-defined]
        return {**values, "bits": bits, "top_bits": bits * values["top"]}

    return deal


@settings
def test_product(protocol_runner: Any, options: Options) -> None:
    a, b = (np.random.default_rng(seed).integers(0, PRIME, 50, dtype=np.uint64) for seed in (0, 1))
    a[:3], b[:3] = [0, PRIME - 1, PRIME - 1], [PRIME - 1, PRIME - 1, 1]
    ran = protocol_runner(options, multiply, a, b)
    assert ran.value.tolist() == [x * y % PRIME for x, y in zip(a.tolist(), b.tolist(), strict=True)]


@settings
def test_chain_of_products(protocol_runner: Any, options: Options) -> None:
    """Degrees do not grow."""

    def power(server: Any, x: Any) -> Any:
        y = x
        for _ in range(5):
            y = multiply(server, y, x)
        return y

    x = np.array([2, 3, PRIME - 2], np.uint64)
    assert protocol_runner(options, power, x).value.tolist() == [pow(v, 6, PRIME) for v in x.tolist()]


@settings
@pytest.mark.parametrize("shift", [1, 13, 26])
def test_truncation_is_the_floor_or_one_more(protocol_runner: Any, options: Options, shift: int) -> None:
    x = np.concatenate([integers(200, 58), [0, 1, -1, (1 << 58) - 1, 1 - (1 << 58)]])
    ran = protocol_runner(options, lambda server, s: truncate(server, s, shift), field.elements(x))
    error = field.integers(ran.value) - (x >> shift)
    assert set(error.tolist()) <= {0, 1}


@pytest.mark.parametrize("mask", EXTREME_MASKS)
def test_truncation_with_masks_at_the_ends(protocol_runner: Any, mask: int) -> None:
    x = np.concatenate([integers(300, 58), [0, 1, -1, (1 << 58) - 1, 1 - (1 << 58)]])
    ran = protocol_runner(
        Options(), lambda server, s: truncate(server, s, 13), field.elements(x), deal=forced([mask])
    )
    assert set((field.integers(ran.value) - (x >> 13)).tolist()) <= {0, 1}


def test_truncation_rounds_without_bias(protocol_runner: Any) -> None:
    """One more with the probability of the dropped fraction."""
    count, shift = 40_000, 13
    x = integers(count, 58)
    ran = protocol_runner(Options(), lambda server, s: truncate(server, s, shift), field.elements(x))
    error = field.integers(ran.value) - (x >> shift)
    fraction = (x & ((1 << shift) - 1)) / (1 << shift)
    assert abs(error.mean() - fraction.mean()) < 0.01
    low, high = fraction < 0.25, fraction > 0.75
    assert abs(error[low].mean() - fraction[low].mean()) < 0.015
    assert abs(error[high].mean() - fraction[high].mean()) < 0.015


@settings
@pytest.mark.parametrize("mode", ["strict", "masked"])
def test_sign(protocol_runner: Any, options: Options, mode: Any) -> None:
    options = Options(options.servers, options.threshold, options.security, mode)
    bound = 1 << options.bound_bits
    x = np.concatenate(
        [integers(150, options.bound_bits), np.arange(-20, 21), [-bound, bound - 1, 1 - bound]]
    )
    ran = protocol_runner(options, nonnegative, field.elements(x))
    assert ran.value.tolist() == (x >= 0).astype(int).tolist()


@pytest.mark.parametrize("mode", ["strict", "masked"])
def test_sign_of_many(protocol_runner: Any, mode: Any) -> None:
    options = Options(nonlinear=mode)
    x = np.concatenate([np.arange(-(1 << 12), (1 << 12) + 1), integers(20_000, options.bound_bits)])
    ran = protocol_runner(options, nonnegative, field.elements(x))
    assert np.array_equal(ran.value, (x >= 0).astype(np.uint64))


@pytest.mark.parametrize("bits", [14, 17, 22, 40])
@pytest.mark.parametrize("mask", EXTREME_MASKS)
def test_strict_sign_with_masks_at_the_ends(protocol_runner: Any, mask: int, bits: int) -> None:
    """Opened values on both sides of 2^60; every depth of the tree."""
    options = Options(bound_bits=bits)
    bound = 1 << bits
    x = np.concatenate([integers(100, bits, bits), np.arange(-5, 6), [-bound, bound - 1]])
    ran = protocol_runner(options, nonnegative, field.elements(x), deal=forced([mask]))
    assert ran.value.tolist() == (x >= 0).astype(int).tolist()


@settings
def test_relu(protocol_runner: Any, options: Options) -> None:
    x = integers(60, options.bound_bits)
    ran = protocol_runner(options, relu, field.elements(x))
    assert field.integers(ran.value).tolist() == np.maximum(x, 0).tolist()


def test_masked_values_stay_in_the_field() -> None:
    """|2 (R x + q) + 1| < p / 2 for the largest factor, and the sign of zero is positive."""
    options = Options(nonlinear="masked")
    material = MaskedSign(options, 20_000)
    dealt = {name: field.integers(value) for name, value in material.deal(fresh_stream()).items()}
    assert set(dealt["sign"].tolist()) == {-1, 1}
    factor, offset = dealt["factor"] * dealt["sign"], dealt["offset"] * dealt["sign"]
    assert factor.min() >= 2
    assert factor.max() <= 2 << material.spread
    assert ((offset > 0) & (offset < factor + 1)).all()
    largest = factor.astype(object) * (1 << options.bound_bits) + offset
    assert max(largest) < PRIME // 2
    sizes = np.log2(factor / 2)
    counts, _ = np.histogram(sizes, bins=9, range=(0, material.spread))
    assert counts[1:].min() > 0.8 * counts[1:].max()  # log-uniform: every size is as likely


def test_an_opening_that_was_not_declared_is_an_error(protocol_runner: Any) -> None:
    """Costs are predicted from what materials declare, so a protocol may not open anything else."""

    def more(server: Any, x: Any) -> Any:
        server.take(Reduction(server.options, x[0].size - 1))
        return server.reduce(field.multiply(x, x), "too much")

    def less(server: Any, x: Any) -> Any:
        server.take(Reduction(server.options, x[0].size))
        server.take(Reduction(server.options, x[0].size))
        return x

    for protocol in (more, less):
        with pytest.raises(EngineError, match="declare"):
            protocol_runner(Options(), protocol, np.arange(4, dtype=np.uint64))


def test_broken_protocols_fail(protocol_runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above would miss if they were dead: a forgotten wrap, a biased truncation, a product
    that is not reduced."""
    from tradeoff.engines.shamir import protocols

    x = integers(300, 58)
    with monkeypatch.context() as patch:
        patch.setattr(protocols, "_shifted", lambda c, shift: (c >> np.uint64(shift), np.zeros_like(c)))
        ran = protocol_runner(Options(), lambda server, s: truncate(server, s, 13), field.elements(x))
        assert not set((field.integers(ran.value) - (x >> 13)).tolist()) <= {0, 1}
        signs = integers(300, 22)
        wrapping = forced([PRIME - 1])
        ran = protocol_runner(Options(), nonnegative, field.elements(signs), deal=wrapping)
        assert ran.value.tolist() != (signs >= 0).astype(int).tolist()

    def unreduced(server: Any, a: Any) -> Any:
        return field.multiply(a, a)

    with pytest.raises(AssertionError):
        protocol_runner(Options(), unreduced, field.elements(x))
