"""Skeletons: graphs, recorded motions, NTU RGB+D's files, BasicMotions."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tradeoff.core.errors import DataError
from tradeoff.data.skeletons import (
    HUMANOID,
    NTU,
    Skeleton,
    basic_motions,
    convert,
    fit_frames,
    load,
    motions,
    ntu,
)
from tradeoff.data.skeletons.basic_motions import NAMES, read_series
from tradeoff.data.skeletons.kinematics import BONES, KINECT_ORDER, kinect_positions, positions
from tradeoff.data.skeletons.ntu import read_skeleton
from tradeoff.data.skeletons.recordings import clips
from tradeoff.data.skeletons.splits import reflected, without_missing


def test_the_humanoid() -> None:
    assert HUMANOID.nodes == 15
    matrices = HUMANOID.adjacency()
    assert int((matrices > 0).sum()) == 43  # 15 loops and 14 bones both ways: each edge is of one kind
    assert np.allclose(matrices.sum(axis=(0, 1)), 1.0)
    assert NTU.nodes == 25
    assert int((NTU.adjacency() > 0).sum()) == 25 + 2 * 24


def test_limited_and_full_distances() -> None:
    line = Skeleton(("a", "b", "c", "d"), ((0, 1), (1, 2), (2, 3)), center=0)
    full, limited = line.adjacency("full"), line.adjacency("limited")
    assert full[2, 2, 3] > 0  # from joint 2, nearer to the center, to joint 3
    assert limited[1, 2, 3] > 0  # both are beyond one bone: equally far
    assert limited[2, 2, 3] == 0
    assert np.allclose(full.sum(0), limited.sum(0))


def test_graphs_that_are_none() -> None:
    with pytest.raises(DataError, match="not connected: no way to c"):
        Skeleton(("a", "b", "c"), ((0, 1),), 0)
    with pytest.raises(DataError, match="bone between joints 0 and 9"):
        Skeleton(("a", "b"), ((0, 9),), 0)
    with pytest.raises(DataError, match="no center 7"):
        Skeleton(("a",), (), 7)


def test_bones_keep_their_length() -> None:
    for name, frames in clips().items():
        places = positions(frames)
        for index, bone in enumerate(BONES):
            if bone.parent >= 0:
                lengths = np.linalg.norm(places[:, index] - places[:, bone.parent], axis=1)
                assert np.allclose(lengths, np.linalg.norm(bone.offset), atol=1e-9), (name, bone.name)
    walk = positions(clips()["walk"])
    assert 1.2 < walk[:, 2, 1].mean() < 1.5  # the neck is up
    assert 0 < walk[:, 5, 1].min() < 0.2  # a foot is down
    wide = kinect_positions(clips()["walk"])
    assert wide.shape[1:] == (25, 3)
    assert np.array_equal(wide[:, KINECT_ORDER.index("left_knee")], walk[:, 9])


def test_windows_of_motions() -> None:
    data = motions(frames=16, train=60, validation=15, test=30)
    assert data.input_shape == (3, 16, 15, 1)
    assert data.num_classes == 15
    assert torch.bincount(data.train.y).tolist() == [4] * 15
    again = motions(frames=16, train=60, validation=15, test=30)
    assert torch.equal(data.train.x, again.train.x)
    assert not torch.equal(data.train.x, motions(frames=16, train=60, validation=15, test=30, seed=1).train.x)
    assert load("motions-25", frames=8, windows=20).skeleton is NTU
    assert load("motions-view", frames=8, windows=20).name == "motions"
    assert torch.isfinite(data.test.x).all()


def test_motions_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="speed or view"):
        motions(divide="luck")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="15 and 25 joints"):
        motions(joints=16)
    with pytest.raises(DataError, match="windows of 1 frames"):
        motions(frames=1)
    with pytest.raises(DataError, match="holds no humanoid3d"):
        motions(folder=tmp_path)
    for text in (
        "no json",
        "{}",
        json.dumps({"Frames": [[1, 2]]}),
        json.dumps({"Frames": [[float("nan")] * 44] * 3}),
    ):
        (tmp_path / "humanoid3d_walk.txt").write_text(text)
        with pytest.raises(DataError, match="walk"):
            clips(tmp_path)
    (tmp_path / "humanoid3d_walk.txt").write_text(json.dumps({"Frames": [[0.1] * 44] * 5}))
    assert set(clips(tmp_path)) == {"walk"}
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.write(tmp_path / "humanoid3d_walk.txt", "pybullet_data/data/motions/humanoid3d_walk.txt")
    assert set(clips(tmp_path / "some.whl")) == {"walk"}


@given(st.integers(1, 30), st.integers(1, 40))
def test_sequences_are_cut_or_reflected(have: int, wanted: int) -> None:
    x = np.arange(have, dtype=float)
    if have < wanted:
        with pytest.raises(DataError, match=f"{have} frames"):
            fit_frames(x, wanted, strict=True)
        with pytest.warns(UserWarning, match="reflection"):
            result = fit_frames(x, wanted)
    else:
        result = fit_frames(x, wanted)
    assert len(result) == wanted
    assert set(result) <= set(x)
    assert np.abs(np.diff(result)).max(initial=0) <= 1


def test_reflection() -> None:
    assert reflected(np.arange(7), 4).tolist() == [0, 1, 2, 3, 2, 1, 0]
    with pytest.raises(DataError, match="without frames"):
        fit_frames(np.empty((0, 3)), 4)


def test_missing_joints_are_counted() -> None:
    x = np.ones((4, 3, 2, 2, 1))
    x[1, 0, 0, 0, 0] = np.nan
    kept, y, missing = without_missing(x, np.arange(4))
    assert (len(kept), y.tolist(), missing) == (3, [0, 2, 3], 1)


def skeleton_text(frames: int, bodies: int, offset: float = 0.0) -> str:
    lines = [str(frames)]
    for frame in range(frames):
        lines.append(str(bodies))
        for body in range(bodies):
            lines.append(f"7205759{body} 0 1 1 1 1 0 0.1 0.2 2")
            lines.append("25")
            lines += [f"{joint + offset + frame * body} 2 3 4 5 6 7 8 9 10 11 2" for joint in range(25)]
    return "\n".join(lines)


def test_skeleton_files(tmp_path: Path) -> None:
    x = read_skeleton(skeleton_text(4, 3), "one")
    assert x.shape == (3, 300, 25, 2)
    assert x[0, 3, :, 0].tolist() == [
        joint + 6 for joint in range(25)
    ]  # of three bodies, the two that move most
    assert not x[:, 4:].any()
    for broken in ("", "x", "3\n1\n", skeleton_text(2, 1)[:-40], "99999999999", "0"):
        with pytest.raises(DataError):
            read_skeleton(broken, "broken")


def test_conversion_and_the_cross_view_split(tmp_path: Path) -> None:
    for camera in (1, 2, 3):
        for action in (1, 2):
            for repeat in (1, 2, 3):
                name = f"S001C{camera:03}P001R{repeat:03}A{action:03}.skeleton"
                (tmp_path / name).write_text(skeleton_text(3, 1, offset=action))
    (tmp_path / "S001C001P001R009A001.skeleton").write_text("garbage")
    out = tmp_path / "out"
    assert convert(tmp_path, out, skip={"S001C001P001R001A001"}) == 17
    data = ntu(out, validation=2)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 2, 5)
    assert data.input_shape == (3, 256, 25, 2)
    assert set(data.test.y.tolist()) == {0, 1}
    with pytest.raises(DataError, match="convert"):
        ntu(tmp_path)
    with pytest.raises(DataError, match="holds no files"):
        convert(out, tmp_path / "more")
    with pytest.raises(DataError, match="not passed on"):
        load("ntu")


def series_text(count: int, dimensions: int = 6, length: int = 10) -> str:
    rows = [
        ":".join([",".join(str(i + d + t) for t in range(length)) for d in range(dimensions)])
        + f":class{i % 4}"
        for i in range(count)
    ]
    return "@problemName x\n@data\n" + "\n".join(rows) + "\n"


def test_basic_motions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        (tmp_path / name).write_text(series_text(20))
    data = basic_motions(tmp_path, frames=8, validation=4)
    assert data.input_shape == (1, 8, 6, 1)
    assert data.num_classes == 4
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 20)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install aeon"):
        basic_motions()
    with pytest.raises(DataError, match="holds no BasicMotions"):
        basic_motions(tmp_path / "nothing")
    for broken in ("nothing", "@data\n1,2:x\n1:x", "@data\na:b"):
        with pytest.raises(DataError):
            read_series(broken, "broken")


def test_names() -> None:
    with pytest.raises(DataError, match="there are motions"):
        load("dances")
