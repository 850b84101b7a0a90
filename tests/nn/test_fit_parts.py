"""Augmentation and Lookahead against slow, obvious references; distillation through the loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tradeoff.data import images
from tradeoff.nn.augment import crop_and_flip, flip, random_crop, resize
from tradeoff.nn.checkpoint import CheckpointMismatch, load_checkpoint, save_checkpoint
from tradeoff.nn.fit import FitConfig, evaluate, fit
from tradeoff.nn.lookahead import Lookahead
from tradeoff.nn.losses import distillation
from tradeoff.nn.models import build


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    padding=st.integers(1, 4),
    channels_last=st.booleans(),
    data=st.data(),
)
def test_random_crop_equals_padding_and_slicing(shape, padding, channels_last, data):
    x = torch.randn(shape)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    draw = st.tuples(st.integers(0, 2 * padding), st.integers(0, 2 * padding))
    offsets = data.draw(st.lists(draw, min_size=len(x), max_size=len(x)))
    out = random_crop(x, padding, torch.tensor(offsets, dtype=torch.int64).reshape(-1, 2))
    padded = torch.zeros(shape[0], shape[1], shape[2] + 2 * padding, shape[3] + 2 * padding)
    padded[:, :, padding:-padding, padding:-padding] = x
    assert out.shape == x.shape
    for image, source, (row, column) in zip(out, padded, offsets, strict=True):
        assert torch.equal(image, source[:, row : row + shape[2], column : column + shape[3]])


def test_flip_mirrors_the_marked():
    x = torch.randn(3, 2, 4, 5)
    out = flip(x, torch.tensor([True, False, True]))
    assert torch.equal(out[1], x[1])
    assert torch.equal(out[0], x[0, :, :, [4, 3, 2, 1, 0]])


def test_augmentation_is_drawn_from_the_generator_alone():
    x = torch.arange(200 * 16.0).view(200, 1, 4, 4) + 1
    first, again, other = (
        crop_and_flip(x, 1, True, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    unpadded = crop_and_flip(x, 0, True, torch.Generator().manual_seed(0))
    flipped = (unpadded != x).flatten(1).any(1)
    assert 60 < int(flipped.sum()) < 140
    assert crop_and_flip(x, 0, False, torch.Generator()) is x


def test_images_grow_to_full_size():
    data = torch.utils.data.TensorDataset(torch.randn(40, 1, 16, 24), torch.zeros(40, dtype=torch.int64))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    sizes = []

    def loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(inputs.shape[2:]))
        return nn.functional.cross_entropy(model(inputs), targets)

    config = FitConfig(epochs=2, batch_size=4, initial_scale=0.5, full_size_fraction=0.25)
    fit(model, data, None, config, loss=loss)
    assert sizes[0] == (8, 12)
    assert sizes == sorted(sizes)
    assert sizes.count((16, 24)) == 5
    assert len(set(sizes)) > 3
    constant = resize(torch.full((2, 3, 16, 16), 0.7), 0.5)
    assert constant.shape == (2, 3, 8, 8)
    torch.testing.assert_close(constant, torch.full_like(constant, 0.7))


def test_lookahead_follows_its_equation():
    fast = torch.tensor([1.0, -2.0])
    lookahead = Lookahead([fast], period=3, rate=0.5)
    slow = fast.clone()
    for step in range(1, 10):
        fast += 0.1 * step
        expected = fast.clone()
        if step % 3 == 0:
            expected = slow = slow + 0.5 * (expected - slow)
        lookahead.step()
        torch.testing.assert_close(fast, expected)


def test_distillation_teaches_labels_that_targets_do_not_hold():
    """All targets are wrong (0); the student still learns from the teacher, which stays as it is."""
    digits = images.load("digits")
    torch.manual_seed(0)
    teacher, student = build("small_cnn", 10, (1, 8, 8)), build("small_cnn", 10, (1, 8, 8))
    config = FitConfig(epochs=4, batch_size=25, optimizer="adam", learning_rate=3e-3)
    fit(teacher, digits.train, None, config)
    teacher.eval().requires_grad_(False)
    before = [p.clone() for p in teacher.parameters()]

    def loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return distillation(model(inputs), teacher(inputs))

    wrong = images.Split(digits.train.x, torch.zeros_like(digits.train.y))
    fit(student, wrong, None, config, loss=loss)
    assert evaluate(teacher, digits.test) > 0.8
    assert evaluate(student, digits.test) > evaluate(teacher, digits.test) - 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_checkpoint_file_survives_a_failing_write(tmp_path, monkeypatch):
    path = tmp_path / "c"
    save_checkpoint(path, {"a": torch.ones(2)}, {"step": 1})
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"a": torch.zeros(2)}, {"step": 2})
    tensors, progress = load_checkpoint(path)
    assert progress == {"step": 1}
    assert tensors["a"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_foreign_safetensors_file_is_no_checkpoint(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "c")
    with pytest.raises(CheckpointMismatch, match="no training checkpoint"):
        load_checkpoint(tmp_path / "c")
