"""The embedded sets: sizes, disjoint splits, labels."""

import pytest
import torch

from tradeoff.core.errors import DataError
from tradeoff.data import images


def _rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


def test_digits_are_split_into_fixed_disjoint_parts():
    data = images.load("digits")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [1000, 200, 597]
    assert data.train.x.shape[1:] == data.input_shape == (1, 8, 8)
    assert data.train.x.dtype == torch.float32
    assert data.train.y.dtype == torch.int64
    assert data.train.x.abs().max() < 3
    parts = [_rows(s.x) for s in (data.train, data.validation, data.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert torch.equal(data.test.x, images.load("digits").test.x)


def test_pairs_are_sums_of_digits_of_their_own_split():
    pairs, digits = images.load("digit-pairs"), images.load("digits")
    assert pairs.input_shape == (1, 8, 16)
    for name in ("train", "validation", "test"):
        split = getattr(pairs, name)
        label_of = {x.numpy().tobytes(): int(y) for x, y in getattr(digits, name)}
        for x, y in split.take(300):
            left, right = (label_of[half.contiguous().numpy().tobytes()] for half in x.split(8, dim=2))
            assert (left + right) % 10 == int(y)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(DataError, match="did you mean 'digits'"):
        images.load("digit")
