"""Folders of images, ImageNet's and Tiny-ImageNet's layouts, and hostile images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tradeoff.core.errors import DataError
from tradeoff.data import decoding, folders, images
from tradeoff.nn.fit import FitConfig, fit


def paint(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def color_of(x: torch.Tensor) -> list[int]:
    """The color of an image of one color, from its normalized pixels."""
    pixel = x[:, 0, 0] * torch.tensor(folders.STD) + torch.tensor(folders.MEAN)
    return (pixel * 255).round().int().tolist()


COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def make_classes(folder: Path, count: int, inner: str = "") -> None:
    for name, color in COLORS.items():
        for index in range(count):
            paint(folder / name / inner / f"{name}-{index}.png", color, (20 + index % 3, 16))


def check(data: images.ImageData, sizes: tuple[int, int, int]) -> None:
    assert tuple(map(len, (data.train, data.validation, data.test))) == sizes
    for split in (data.train, data.validation, data.test):
        x, y = split[:]
        assert x.shape[1:] == data.input_shape
        assert x.dtype == torch.float32
        for image, label in zip(x, y, strict=True):
            assert color_of(image) == list(COLORS[data.class_names[label]])


def test_class_folders_are_carved_into_parts(tmp_path):
    make_classes(tmp_path, 10)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "red" / "notes.txt").write_text("no image")
    data = images.load(str(tmp_path))
    assert data.input_shape == (3, 16, 16)
    check(data, (24, 3, 3))


def test_parts_in_folders_of_their_own(tmp_path):
    for part, count in (("train", 10), ("val", 2), ("test", 3)):
        make_classes(tmp_path / part, count)
    check(images.load(str(tmp_path)), (30, 6, 9))


def test_lazy_split_gives_the_same_images(tmp_path, monkeypatch):
    make_classes(tmp_path, 10)
    eager = images.load(str(tmp_path))
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 1000)
    lazy = images.load(str(tmp_path))
    assert isinstance(lazy.train, folders.FolderSplit)
    index = torch.tensor([5, 0, 7])
    for ours, theirs in zip(lazy.train[index], eager.train[index], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(lazy.train.take(4).x, eager.train.x[:4])
    with pytest.raises(DataError, match="take batches"):
        _ = lazy.train.x


def test_random_parts_depend_on_the_seed_alone(tmp_path):
    gradient = np.linspace(0, 255, 64, dtype=np.uint8)
    for name in COLORS:
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(np.add.outer(gradient // 2, gradient // 2)).save(tmp_path / name / f"{i}.png")
    split = folders.FolderSplit(
        tuple(sorted(tmp_path.rglob("*.png"))), torch.zeros(12, dtype=torch.int64), 32
    )
    index = torch.arange(6)
    first, again, other = (split.augmented(index, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({image.numpy().tobytes() for image in first}) == 6


def test_training_reads_lazily_with_workers(tmp_path, monkeypatch):
    make_classes(tmp_path, 10)
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 1000)
    data = images.load(str(tmp_path))
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    config = FitConfig(epochs=3, batch_size=8, learning_rate=1.0, evaluate_every=3, workers=1)
    history = fit(model, data.train, data.validation, config)
    assert history.column("validation_accuracy")[-1] == 1


def test_imagenet_layout(tmp_path):
    make_classes(tmp_path / "imagenet" / "train", 4)
    make_classes(tmp_path / "imagenet" / "val", 1)
    data = images.load("imagenet", tmp_path)
    assert data.input_shape == (3, 224, 224)
    check(data, (11, 1, 3))


def test_tiny_imagenet_layout(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    make_classes(folder / "train", 4, "images")
    (folder / "val").mkdir()
    annotations = folder / "val" / "val_annotations.txt"
    for index, (_name, color) in enumerate(COLORS.items()):
        paint(folder / "val" / "images" / f"val_{index}.png", color, (64, 64))
    lines = [f"val_{index}.png\t{name}\t0\t0\t63\t63" for index, name in enumerate(COLORS)]
    annotations.write_text("\n".join(lines) + "\n")
    check(images.load("tiny-imagenet", tmp_path), (11, 1, 3))

    for line in ("val_0.png", "val_0.png\tnobody\t0", "../../secret.png\tred\t0"):
        annotations.write_text(line)
        with pytest.raises(DataError, match="line 1"):
            images.load("tiny-imagenet", tmp_path)
    annotations.write_text("")
    with pytest.raises(DataError, match="lists no image"):
        images.load("tiny-imagenet", tmp_path)
    annotations.unlink()
    with pytest.raises(DataError, match="is missing"):
        images.load("tiny-imagenet", tmp_path)


def test_absent_and_unfit_folders(tmp_path):
    for name in ("imagenet", "tiny-imagenet"):
        with pytest.raises(DataError, match="TRADEOFF_DATA is not set"):
            images.load(name)
        with pytest.raises(DataError, match=f"{name} must be on this machine .not in"):
            images.load(name, tmp_path)
    with pytest.raises(DataError, match="0 subfolders"):
        images.load(str(tmp_path))
    make_classes(tmp_path, 1)
    data = images.load(str(tmp_path))
    assert len(data.train) == 1
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="void holds no image"):
        images.load(str(tmp_path))
    (tmp_path / "void" / "a.png").write_bytes(b"\x89PNG no")
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        images.load(str(tmp_path))


def test_a_test_class_that_training_has_not(tmp_path):
    make_classes(tmp_path / "train", 5)
    make_classes(tmp_path / "test", 1)
    paint(tmp_path / "test" / "violet" / "v.png", (200, 0, 200))
    with pytest.raises(DataError, match="training has not: violet"):
        images.load(str(tmp_path))


def test_images_beyond_the_bound_are_refused(tmp_path, monkeypatch):
    paint(tmp_path / "a.png", (1, 2, 3), (300, 200))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 50_000)
    with pytest.raises(DataError, match="300x200 pixels, more than 50,000"):
        decoding.open_image(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        decoding.open_image(tmp_path / "absent.png")
    assert decoding.to_pixels(Image.new("L", (4, 2), 7)).shape == (1, 2, 4)
