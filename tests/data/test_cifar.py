"""CIFAR's parquet layout: a small file of the same layout, malformed ones, and the real set where it is."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tradeoff.core.errors import DataError
from tradeoff.data import cifar, images

SMALL = replace(cifar.CIFAR10, rows=(("train", 6_000), ("test", 20)))
REAL_ROOT = os.environ.get("TRADEOFF_DATA")


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, encoded: list[bytes | None], labels: list, column: str = "label") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images_column = pa.array([{"bytes": content, "path": None} for content in encoded], IMAGE)
    pq.write_table(pa.table({"img": images_column, column: pa.array(labels)}), path)


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RED = png(np.full((32, 32, 3), (255, 0, 0), np.uint8))
BLUE = png(np.full((32, 32, 3), (0, 0, 255), np.uint8))


@pytest.fixture
def root(tmp_path) -> Path:
    for part, rows in SMALL.rows:
        path = tmp_path / "cifar10" / "plain_text" / f"{part}-00000-of-00001.parquet"
        write(path, [RED if i % 2 else BLUE for i in range(rows)], [i % 10 for i in range(rows)])
    return tmp_path


def test_layout_of_the_hub_is_read_and_cached(root, cache, monkeypatch):
    data = cifar.load(SMALL, root)
    assert (len(data.train), len(data.validation), len(data.test)) == (1000, 5000, 20)
    for x, y in (*data.train.take(20), *data.test):
        channels = (x.mean((1, 2)) * torch.tensor(data.std) + torch.tensor(data.mean)).round().tolist()
        assert channels == ([1, 0, 0] if y % 2 else [0, 0, 1])

    decoded = sorted((cache / "tradeoff" / "data" / "decoded").glob("*.safetensors"))
    assert len(decoded) == 2
    monkeypatch.setattr(cifar, "read_parquet", lambda *a: pytest.fail("decoded twice"))
    assert torch.equal(cifar.load(SMALL, root).train.x, data.train.x)
    monkeypatch.undo()

    for path in decoded:
        path.write_bytes(path.read_bytes()[:100])
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert torch.equal(cifar.load(SMALL, root).train.x, data.train.x)


@pytest.mark.parametrize(
    ("encoded", "labels", "column", "message"),
    [
        ([RED], [0], "label", "holds 1 images; 2 were expected"),
        ([RED, RED], [0, 1], "labels", "no column label"),
        ([RED, RED], [0, 10], "label", "labels must be integers from 0 to 9"),
        ([RED, RED], [0.0, 1.0], "label", "labels must be integers"),
        ([RED, None], [0, 1], "label", "empty or longer"),
        ([RED, b"x" * 200_000], [0, 1], "label", "empty or longer"),
        ([RED, b"no image"], [0, 1], "label", "cannot be decoded"),
        ([RED, RED[:60]], [0, 1], "label", "cannot be decoded"),
        ([RED, png(np.zeros((64, 32, 3), np.uint8))], [0, 1], "label", "32x64 pixels, not 32x32"),
    ],
)
def test_malformed_tables(tmp_path, encoded, labels, column, message):
    path = tmp_path / "t.parquet"
    write(path, encoded, labels, column)
    with pytest.raises(DataError, match=message):
        cifar.read_parquet(path, "label", 2, 10)


def test_malformed_files(tmp_path):
    path = tmp_path / "t.parquet"
    write(path, [RED, RED], [0, 1])
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-20], whole[:50], b"PAR1" + b"\xff" * 64 + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not a parquet file"):
            cifar.read_parquet(path, "label", 2, 10)
    pq.write_table(pa.table({"img": [1, 2], "label": [0, 1]}), path)
    with pytest.raises(DataError, match="is not a parquet file of encoded images"):
        cifar.read_parquet(path, "label", 2, 10)


def test_absent_says_what_to_do(tmp_path, monkeypatch):
    def refuse(remote, target):
        assert remote.url == (
            "https://huggingface.co/datasets/uoft-cs/cifar100/resolve/main/cifar100/train-00000-of-00001.parquet"
        )
        raise DataError("no network")

    monkeypatch.setattr(cifar, "download", refuse)
    with pytest.raises(DataError, match=r"cifar100 is not here .*set TRADEOFF_DATA to a folder that holds"):
        images.load("cifar100", tmp_path)


def test_real_cifar10(require):
    require(REAL_ROOT and (Path(REAL_ROOT) / "cifar10").is_dir(), "needs TRADEOFF_DATA with cifar10/")
    x, y = cifar.read_parquet(
        Path(str(REAL_ROOT)) / "cifar10/plain_text/test-00000-of-00001.parquet", "label", 10_000, 10
    )
    assert x.shape == (10_000, 3, 32, 32)
    assert np.bincount(y).tolist() == [1000] * 10
    assert np.allclose(x.mean((0, 2, 3)) / 255, cifar.CIFAR10.mean, atol=0.01)
