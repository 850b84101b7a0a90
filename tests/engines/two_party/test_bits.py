"""Packed bits and the comparison tree against integer comparison, native and NumPy."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core import native
from tradeoff.engines.two_party import bits

TREES = [(64, 4), (64, 2), (32, 4), (32, 2)]


@pytest.fixture(params=["native", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest, require) -> Iterator[None]:
    """Every test runs with the compiled kernels and with the NumPy reference."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "reference":
            patch.setattr(bits, "_kernels", lambda: None)
        else:
            require(native.extension(), "the compiled extension is missing: install a C++17 compiler")
        yield


def random_words(generator: np.random.Generator, shape: int | tuple[int, ...], dtype: type = np.uint64):
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def compare(x: np.ndarray, tree: bits.ComparisonTree, generator: np.random.Generator) -> np.ndarray:
    """Run the comparison protocol for both parties on shares of x; the clear result as booleans."""
    r, r0 = random_words(generator, x.shape, x.dtype.type), random_words(generator, x.shape, x.dtype.type)
    c, r_bits = x + r, (r0, r ^ r0)
    shares = [bits.leaves(c, r_bits[party], party) for party in (0, 1)]
    for level, m in zip(tree.levels, tree.level_words(x.size), strict=True):
        masks = [random_words(generator, (level.inputs, m)) for _ in (0, 1)]
        products0 = random_words(generator, (level.products, m))
        products = (products0, level.corrections(*masks, products0))
        sent = [level.mask(*shares[party], masks[party]) for party in (0, 1)]
        opened = sent[0][0] ^ sent[1][0]
        shares = [
            level.evaluate(opened, sent[party][1], masks[party], products[party], party) for party in (0, 1)
        ]
    results = [bits.nonnegative_bits(c, r_bits[party], shares[party][0], party) for party in (0, 1)]
    return bits.unpack(results[0] ^ results[1], x.size)


@pytest.mark.parametrize(("width", "radix"), TREES)
def test_comparison_is_exact(width: int, radix: int) -> None:
    dtype = np.uint64 if width == 64 else np.uint32
    top = 1 << (width - 1)
    edges = [0, 1, top - 1, top, top + 1, 2 * top - 1, top // 2, top + top // 2, (2 * top - 1) // 3]
    edges += [1 << k for k in range(width)] + [(2 * top) - (1 << k) for k in range(width)]
    generator = np.random.default_rng(width + radix)
    x = np.concatenate([np.array(edges, dtype), random_words(generator, 704 - len(edges), dtype)])
    tree = bits.ComparisonTree(width, radix)
    assert np.array_equal(compare(x, tree, generator), x < dtype(top))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), groups=st.integers(0, 40), which=st.sampled_from(TREES))
def test_comparison_at_any_length(seed: int, groups: int, which: tuple[int, int]) -> None:
    generator = np.random.default_rng(seed)
    dtype = np.uint64 if which[0] == 64 else np.uint32
    x = random_words(generator, 64 * groups, dtype) >> dtype(generator.integers(0, which[0]))
    x = np.where(generator.random(x.size) < 0.5, x, dtype(0) - x)
    expected = x < dtype(1 << (which[0] - 1))
    assert np.array_equal(compare(x, bits.ComparisonTree(*which), generator), expected)


@pytest.mark.parametrize(
    ("width", "radix", "opened", "corrections"),
    [(64, 4, 18.25, 56.875), (64, 2, 23.5, 15.625), (32, 4, 9.0, 27.625), (32, 2, 11.5, 7.625)],
)
def test_bytes_an_element(width: int, radix: int, opened: float, corrections: float) -> None:
    tree = bits.ComparisonTree(width, radix)
    assert sum(tree.opened_bytes(640)) == 640 * opened
    assert sum(tree.correction_bytes(640)) == 640 * corrections
    assert tree.opened_bytes(577) == tree.opened_bytes(640)


def test_node_sizes() -> None:
    assert [(v.inputs, v.products) for v in bits.ComparisonTree(64, 4).levels] == [(7, 22), (7, 22), (6, 15)]
    assert [(v.inputs, v.products) for v in bits.ComparisonTree(32, 4).levels] == [(7, 22), (7, 22), (2, 1)]
    assert [(v.inputs, v.products) for v in bits.ComparisonTree(64, 2).levels] == 5 * [(3, 2)] + [(2, 1)]


def test_last_level_without_a_mask_product_is_wrong() -> None:
    """The comparison notices a product of masks that the dealer got wrong."""
    level = bits.ComparisonTree(64, 4).levels[-1]
    generator = np.random.default_rng(0)
    masks = [random_words(generator, (6, 64)) for _ in (0, 1)]
    products0 = random_words(generator, (15, 64))
    g, p = random_words(generator, 256), random_words(generator, 256)
    zeros = np.zeros_like(g)
    sent = [level.mask(g, p, masks[0]), level.mask(zeros, zeros, masks[1])]
    for broken in range(15):
        products1 = level.corrections(*masks, products0)
        expected = _generate(level, sent, masks, products0, products1)
        products1[broken] = 0
        assert not np.array_equal(_generate(level, sent, masks, products0, products1), expected)


def _generate(level, sent, masks, products0, products1):
    opened = sent[0][0] ^ sent[1][0]
    return (
        level.evaluate(opened, sent[0][1], masks[0], products0, 0)[0]
        ^ level.evaluate(opened, sent[1][1], masks[1], products1, 1)[0]
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 300))
def test_pack_unpack(seed: int, count: int) -> None:
    values = np.random.default_rng(seed).random(count) < 0.5
    words = bits.pack(values)
    assert words.size == -(-count // 64)
    assert np.array_equal(bits.unpack(words, count), values)
    for position in np.flatnonzero(values)[:5]:
        assert int(words[position // 64]) >> int(position % 64) & 1


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), groups=st.integers(0, 9), step=st.sampled_from([2, 4]), data=st.data())
def test_compact_takes_every_step_th_bit(seed: int, groups: int, step: int, data: st.DataObject) -> None:
    words = random_words(np.random.default_rng(seed), 4 * groups)
    offset = data.draw(st.integers(0, step - 1))
    expected = bits.unpack(words, 64 * words.size)[offset::step]
    assert np.array_equal(bits.unpack(bits.compact(words, step, offset), expected.size), expected)


@pytest.mark.parametrize("dtype", [np.uint64, np.uint32])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_top_bits(dtype: type, count: int) -> None:
    x = random_words(np.random.default_rng(count), count, dtype)
    assert np.array_equal(bits.unpack(bits.top_bits(x), count), x >> dtype(8 * x.itemsize - 1) == 1)
    assert bits.top_bits(x).size == -(-count // 64)


def test_padded_length() -> None:
    assert [bits.padded_length(n) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]


def test_wrong_inputs_are_refused() -> None:
    level = bits.ComparisonTree(64, 4).levels[0]
    words = np.zeros(64, np.uint64)
    with pytest.raises(ValueError, match="party"):
        bits.leaves(words, words, 2)
    with pytest.raises(ValueError, match="multiple of 64"):
        bits.leaves(words[:63], words[:63], 0)
    with pytest.raises(ValueError, match="7 rows"):
        level.mask(words, words, np.zeros((6, 16), np.uint64))
    with pytest.raises(ValueError, match="must have 60 words"):
        level.mask(words, words, np.zeros((7, 15), np.uint64))
    with pytest.raises(ValueError, match="radix"):
        bits.ComparisonTree(64, 8)
    with pytest.raises(ValueError, match="hold no"):
        bits.unpack(words, 64 * 64 + 1)
    with pytest.raises(TypeError, match="uint64 or uint32"):
        bits.leaves(words.astype(np.int64), words.astype(np.int64), 0)
    matrices = np.zeros((7, 16), np.uint64), np.zeros((22, 16), np.uint64)
    with pytest.raises(ValueError, match="one length"):
        level.evaluate(matrices[0], words[:16], matrices[0], np.zeros((22, 15), np.uint64), 0)
    with pytest.raises(ValueError, match="linear"):
        level.evaluate(matrices[0], words[:15], matrices[0], matrices[1], 0)
