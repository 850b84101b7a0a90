"""From recorded joint angles to joint positions.

The humanoid of X. B. Peng, P. Abbeel, S. Levine and M. van de Panne, "DeepMimic" (SIGGRAPH 2018): a frame
holds 44 numbers: its duration, the root's position (3) and quaternion w, x, y, z (4), then for chest 4, neck
4, right hip 4, knee 1, ankle 4, shoulder 4, elbow 1, and the same for the left. Hinges turn about z; y points
up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import DataError
from tradeoff.data.skeletons.graph import Skeleton

FRAME_NUMBERS = 44
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bone:
    """A joint: its parent, its place in the parent's frame (meters), and how many numbers turn it."""

    name: str
    parent: int
    offset: tuple[float, float, float]
    numbers: int


BONES = (
    Bone("root", -1, (0.0, 0.0, 0.0), 4),
    Bone("chest", 0, (0.0, 0.236, 0.0), 4),
    Bone("neck", 1, (0.0, 0.224, 0.0), 4),
    Bone("right_hip", 0, (0.0, 0.0, 0.085), 4),
    Bone("right_knee", 3, (0.0, -0.4215, 0.0), 1),
    Bone("right_ankle", 4, (0.0, -0.410, 0.0), 4),
    Bone("right_shoulder", 1, (-0.024, 0.243, 0.183), 4),
    Bone("right_elbow", 6, (0.0, -0.275, 0.0), 1),
    Bone("left_hip", 0, (0.0, 0.0, -0.085), 4),
    Bone("left_knee", 8, (0.0, -0.4215, 0.0), 1),
    Bone("left_ankle", 9, (0.0, -0.410, 0.0), 4),
    Bone("left_shoulder", 1, (-0.024, 0.243, -0.183), 4),
    Bone("left_elbow", 11, (0.0, -0.275, 0.0), 1),
    Bone("right_wrist", 7, (0.0, -0.259, 0.0), 0),
    Bone("left_wrist", 12, (0.0, -0.259, 0.0), 0),
)

HUMANOID = Skeleton(
    tuple(bone.name for bone in BONES),
    tuple((bone.parent, index) for index, bone in enumerate(BONES) if bone.parent >= 0),
    center=1,
)


_RIGID = {
    "spine": ("root", (0.0, 0.118, 0.0)),
    "spine_top": ("chest", (0.0, 0.2, 0.0)),
    "head": ("neck", (0.0, 0.2, 0.0)),
    **{f"{s}_hand": (f"{s}_wrist", (0.0, -0.08, 0.0)) for s in ("left", "right")},
    **{f"{s}_tip": (f"{s}_wrist", (0.0, -0.16, 0.0)) for s in ("left", "right")},
    **{f"{s}_thumb": (f"{s}_wrist", (0.05, -0.06, 0.0)) for s in ("left", "right")},
    **{f"{s}_foot": (f"{s}_ankle", (0.12, -0.05, 0.0)) for s in ("left", "right")},
}
"""Points that the recordings do not have, fixed to a joint's frame: (joint, offset in meters)."""

_ARM, _LEG = ("shoulder", "elbow", "wrist", "hand"), ("hip", "knee", "ankle", "foot")
KINECT_ORDER = (
    *("root", "spine", "neck", "head"),
    *(f"left_{part}" for part in _ARM),
    *(f"right_{part}" for part in _ARM),
    *(f"left_{part}" for part in _LEG),
    *(f"right_{part}" for part in _LEG),
    *("spine_top", "left_tip", "left_thumb", "right_tip", "right_thumb"),
)
"""The 25 joints in the order of NTU RGB+D."""


def positions(frames: Floats) -> Floats:
    """Joint positions (frames, 15, 3) in meters.

    Args:
        frames: (frames, 44).

    Raises:
        DataError: another number of columns, or a value that is not finite.
    """
    return np.moveaxis(_placed(frames)[0], 0, 1)


def kinect_positions(frames: Floats) -> Floats:
    """Positions (frames, 25, 3) of the joints of NTU RGB+D, as :func:`positions`.

    Ten of them are points that are fixed to a recorded joint.
    """
    places, turns = _placed(frames)
    at = {bone.name: index for index, bone in enumerate(BONES)}
    found = []
    for name in KINECT_ORDER:
        joint, offset = _RIGID.get(name, (name, (0.0, 0.0, 0.0)))
        found.append(places[at[joint]] + turns[at[joint]] @ np.asarray(offset))
    return np.stack(found, axis=1)


def _placed(frames: Floats) -> tuple[Floats, Floats]:
    """Places (15, frames, 3) and orientations (15, frames, 3, 3) of the joints."""
    if frames.ndim != 2 or frames.shape[1] != FRAME_NUMBERS or not np.isfinite(frames).all():
        raise DataError(f"motion frames have {FRAME_NUMBERS} finite numbers, not shape {frames.shape}")
    at = 4
    places, turns = np.empty((len(BONES), len(frames), 3)), np.empty((len(BONES), len(frames), 3, 3))
    for index, bone in enumerate(BONES):
        local = _turn(frames[:, at : at + bone.numbers], bone.numbers)
        at += bone.numbers
        if bone.parent < 0:
            places[index], turns[index] = frames[:, 1:4], local
            continue
        places[index] = places[bone.parent] + turns[bone.parent] @ np.asarray(bone.offset)
        turns[index] = turns[bone.parent] @ local
    return places, turns


def _turn(numbers: Floats, count: int) -> Floats:
    """Rotation matrices (frames, 3, 3) of quaternions, of angles about z, or of nothing."""
    if count == 0:
        return np.broadcast_to(np.eye(3), (len(numbers), 3, 3))
    if count == 1:
        cos, sin, one = np.cos(numbers[:, 0]), np.sin(numbers[:, 0]), np.ones(len(numbers))
        zero = np.zeros_like(one)
        return np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], axis=1).reshape(-1, 3, 3)
    w, x, y, z = (numbers / np.linalg.norm(numbers, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)
