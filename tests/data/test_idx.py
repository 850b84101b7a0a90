"""IDX files, whole and malformed."""

import contextlib
import gzip
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradeoff.core.errors import DataError
from tradeoff.data import fashion, images
from tradeoff.data.idx import read_idx

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def encoded(array: np.ndarray, magic: int = 0x0800) -> bytes:
    return struct.pack(f">I{array.ndim}I", magic + array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_round_trip(tmp_path, wrap):
    path = tmp_path / "a"
    path.write_bytes(wrap(encoded(ARRAY)))
    assert np.array_equal(read_idx(path, 3), ARRAY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (encoded(ARRAY)[:9], "too short"),
        (encoded(ARRAY)[:-1], "ends before"),
        (encoded(ARRAY) + b"x", "longer than"),
        (encoded(ARRAY, magic=0x0D00), "not an IDX file"),
        (encoded(ARRAY.reshape(6, 4)) + bytes(20), "not an IDX file"),
        (struct.pack(">I3I", 0x0803, 2**32 - 1, 2**32 - 1, 2), "more than"),
        (gzip.compress(encoded(ARRAY), mtime=0)[:-9], "damaged gzip"),
        (gzip.compress(encoded(ARRAY), mtime=0)[:10] + b"\xff" * 99, "damaged gzip"),
    ],
    ids=range(9),
)
def test_malformed(tmp_path, content, message):
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path, 3)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 39), byte=st.integers(0, 255), compress=st.booleans())
def test_a_changed_byte_is_read_or_refused(tmp_path, position, byte, compress):
    content = bytearray(gzip.compress(encoded(ARRAY), mtime=0) if compress else encoded(ARRAY))
    content[position % len(content)] = byte
    path = tmp_path / "a"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert read_idx(path, 3).size == 24


def write_fashion(folder, count: int = 60, **changes: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pixels = changes.get("pixels", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        labels = changes.get("labels", np.arange(count, dtype=np.uint8) % 10)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(encoded(pixels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(encoded(labels))


def test_fashion_from_a_local_root(tmp_path, monkeypatch):
    write_fashion(tmp_path / "fashion-mnist")
    monkeypatch.setenv("TRADEOFF_DATA", str(tmp_path))
    data = images.load("fashion-mnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (50, 10, 60)
    assert data.class_names[9] == "ankle boot"


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": np.full(60, 10, np.uint8)},
        {"labels": np.zeros(59, np.uint8)},
        {"pixels": np.zeros((60, 27, 28), np.uint8)},
        {"pixels": np.zeros((0, 28, 28), np.uint8), "labels": np.zeros(0, np.uint8)},
    ],
)
def test_fashion_that_does_not_fit_together(tmp_path, changes):
    write_fashion(tmp_path / "fashion-mnist", **changes)
    with pytest.raises(DataError, match="are not 28x28 images"):
        images.load("fashion-mnist", tmp_path)


def test_fashion_absent_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "PACKAGE_FOLDER", tmp_path / "package")

    def refuse(remote, target):
        raise DataError("no network")

    monkeypatch.setattr(fashion, "download", refuse)
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist, or set TRADEOFF_DATA"):
        images.load("fashion-mnist", tmp_path)


def test_fashion_of_the_package(require):
    require(fashion.PACKAGE_FOLDER.is_dir(), "needs: apt install dataset-fashion-mnist")
    data = images.load("fashion-mnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert abs(float(data.train.x.mean())) < 0.01
    assert abs(float(data.train.x.std()) - 1) < 0.01
    assert data.test.y.bincount().tolist() == [1000] * 10
