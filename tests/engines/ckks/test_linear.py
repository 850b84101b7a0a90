"""Layouts and linear algebra on packed data, against torch and NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tradeoff.core.errors import DataError
from tradeoff.engines import ckks
from tradeoff.engines.ckks import Builder, ChannelTime, Grouped, Vector, parse_layout
from tradeoff.engines.ckks.linear import (
    channel_diagonals,
    matrix_product,
    sum_over_time,
    temporal_convolution,
)

LAYOUTS = st.one_of(
    st.builds(Vector, st.integers(1, 40), st.integers(1, 64)),
    st.builds(
        ChannelTime, st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 4),
        st.integers(1, 8), st.integers(1, 16),
    ),
    st.builds(
        Grouped, st.integers(1, 3), st.integers(1, 20), st.integers(1, 4), st.just(32), st.integers(1, 8)
    ),
)  # fmt: skip


@given(LAYOUTS, st.integers(0, 1000))
def test_layouts_round_trip(layout: Any, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal(layout.shape)
    vectors = layout.pack(x)
    assert len(vectors) == layout.ciphertexts
    assert all(len(vector) == layout.period for vector in vectors)
    assert np.array_equal(layout.unpack(vectors), x)
    assert parse_layout(str(layout)) == layout
    assert all(not vector[layout.mask() == 0].any() for vector in vectors)


@pytest.mark.parametrize(
    "text", ["", "vector", "vector()", "vector(0,1)", "cube(3)", "vector(1,2,3)", "vector(99999999,1)"]
)
def test_layouts_from_bad_text(text: str) -> None:
    with pytest.raises(DataError):
        parse_layout(text)


def test_layouts_refuse_other_tensors() -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        Vector(4).pack(np.ones(5))
    with pytest.raises(ValueError, match="finite"):
        Vector(2).pack(np.array([1.0, np.nan]))


def test_rotation_is_that_of_numpy(program_runner: Any) -> None:
    build = Builder(16)
    x = build.input("x")
    outputs = [build.rotate(x, step) for step in (1, 5, 15, -2)]
    program = build.finish(outputs, "vector(16)", "vector(16)")
    values = np.random.default_rng(0).standard_normal(16)
    results, _ = program_runner(program, ckks.plan(program), [values])
    for result, step in zip(results, (1, 5, 15, -2), strict=True):
        assert np.abs(result - np.tile(np.roll(values, -step), len(result) // 16)).max() < 1e-6


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 100))
@settings(max_examples=60)
def test_matrix_product(rows: int, columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    matrix, x = generator.standard_normal((rows, columns)), generator.standard_normal(columns)
    build = Builder(16)
    program = build.finish([matrix_product(build, build.input("x"), matrix)], "vector(16)", "vector(16)")
    padded = np.zeros(16)
    padded[:columns] = x
    assert np.allclose(ckks.evaluate(program, {"x": padded})[0][:rows], matrix @ x)
    assert program.depth == 1
    rotations = ckks.predicted_counts(program, ckks.plan(program).parameters).total("rotate")
    assert rotations <= 2 * 4  # baby and giant steps, not 15


@given(
    batch=st.integers(1, 3), channels=st.integers(1, 4), out=st.integers(1, 4), time=st.integers(3, 9),
    taps=st.sampled_from([1, 3, 5, 9]), stride=st.sampled_from([1, 2]), seed=st.integers(0, 100),
)  # fmt: skip
@settings(max_examples=80)
def test_temporal_convolution(
    batch: int, channels: int, out: int, time: int, taps: int, stride: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    layout = ChannelTime(batch, channels, time, 1, max(channels, out))
    kernel = generator.standard_normal((out, channels, taps))
    residual = generator.standard_normal((out, channels))
    x = generator.standard_normal((batch, channels, time))
    build = Builder(layout.period)
    value = build.input("x")
    made = temporal_convolution(build, layout, value, kernel, stride=stride, residual=[(value, residual)])
    program = build.finish([made], str(layout), str(layout))
    assert program.depth == 1
    (packed,) = layout.pack(x[..., None])
    result = ckks.evaluate(program, {"x": packed})[0]
    seen = ChannelTime(batch, out, time, 1, max(channels, out)).unpack([result])[..., 0]
    wanted = functional.conv1d(torch.tensor(x), torch.tensor(kernel), padding=taps // 2, stride=stride)
    wanted = wanted + functional.conv1d(torch.tensor(x), torch.tensor(residual[..., None]), stride=stride)
    assert np.allclose(seen[..., ::stride], wanted.numpy())  # first and last frames included
    if stride == 2:
        assert not seen[..., 1::2].any()
    counts = ckks.predicted_counts(program, ckks.plan(program).parameters)
    if batch == 1 and channels == out == 4 and time >= taps:
        assert counts.total("rotate") == taps - 1 + 3
        assert counts.total("ct_pt") == taps * 4 + 4


def test_border_frames_see_zeros() -> None:
    layout = ChannelTime(1, 2, 8, 1)
    kernel = np.ones((2, 2, 9))
    x = np.arange(16.0).reshape(1, 2, 8, 1) + 1
    build = Builder(layout.period)
    made = temporal_convolution(build, layout, build.input("x"), kernel)
    program = build.finish([made], str(layout), str(layout))
    result = layout.unpack(ckks.evaluate(program, {"x": layout.pack(x)[0]}))[0, 0, :, 0]
    sums = x[0, :, :, 0].sum(axis=0)
    assert np.allclose(result, [sums[max(0, t - 4) : t + 5].sum() for t in range(8)])


@given(st.integers(1, 3), st.integers(0, 50))
def test_channel_products_do_not_cross_samples(batch: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    layout = ChannelTime(batch, 4, 4, 1)
    weight, x = generator.standard_normal((4, 4)), generator.standard_normal((batch, 4, 4, 1))
    build = Builder(layout.period)
    value = build.input("x")
    terms = [(build.rotate(value, d), v) for d, v in channel_diagonals(layout, weight).items()]
    program = build.finish([build.rescaled(terms)], str(layout), str(layout))
    assert len(terms) == (4 if batch == 1 else 7)
    result = layout.unpack(ckks.evaluate(program, {"x": layout.pack(x)[0]}))
    assert np.allclose(result, np.einsum("oi,bitv->botv", weight, x))


def test_sum_over_time() -> None:
    layout = ChannelTime(2, 3, 5, 1)
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 1))
    build = Builder(layout.period)
    program = build.finish([sum_over_time(build, layout, build.input("x"))], str(layout), str(layout))
    result = ckks.evaluate(program, {"x": layout.pack(x)[0]})[0].reshape(2, 4, 8)
    assert np.allclose(result[:, :3, 0], x[..., 0].sum(axis=2))
    assert ckks.predicted_counts(program, ckks.plan(program).parameters).total("rotate") == 3


def test_bad_kernels() -> None:
    layout = ChannelTime(1, 2, 4, 1)
    build = Builder(layout.period)
    x = build.input("x")
    with pytest.raises(ValueError, match="odd number"):
        temporal_convolution(build, layout, x, np.ones((2, 2, 4)))
    with pytest.raises(ValueError, match="zero"):
        temporal_convolution(build, layout, x, np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="does not fit"):
        matrix_product(build, x, np.ones((9, 3)))
