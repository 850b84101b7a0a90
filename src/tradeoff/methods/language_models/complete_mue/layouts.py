"""Targets in a few letters: ``w128`` has width 128, ``e8k2`` 8 experts of which 2 are active."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import TransferError

_PART = re.compile(
    r"(?P<letter>[wdbt])(?P<number>\d+(\.\d+)?)|e(?P<total>\d+)k(?P<active>\d+)(s(?P<shared>\d+))?"
)
_AXES = {"w": "width", "d": "depth", "b": "batch", "t": "tokens"}


@dataclass(frozen=True)
class Layout:
    """How a target differs from the base.

    Parts are joined by dashes: ``w256`` has width 256, ``d8`` 8 blocks, ``b4`` and ``t2`` 4 times the
    base's batch and 2 times its tokens; ``e32k2`` has 32 experts of which a token passes 2, ``e8k1s1`` also
    one that all tokens pass. The width of an expert is such that those active together are as wide as the
    dense layer. ``base`` changes nothing.

    >>> Layout("w128-e8k2").mixture
    (8, 2, 0)

    Raises:
        TransferError: a part says nothing, twice the same, or 0 of something.
    """

    text: str

    def __post_init__(self) -> None:
        _ = self._parts

    @cached_property
    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        for part in self.text.split("-") if self.text != "base" else ():
            match = _PART.fullmatch(part)
            if match is None:
                raise TransferError(
                    f"{part!r} of layout {self.text!r} is none of w128, d8, b4, t2 (width, depth, times the "
                    "batch, times the tokens), e8k2 or e8k1s1 (experts, active, shared)"
                )
            axis = _AXES[match["letter"]] if match["letter"] else "mixture"
            if axis in parts:
                raise TransferError(f"layout {self.text!r} gives the {axis} twice")
            if match["letter"]:
                parts[axis] = float(match["number"])
                if not parts[axis] > 0:
                    raise TransferError(f"layout {self.text!r} has a {axis} of {match['number']}")
            else:
                parts[axis] = (int(match["total"]), int(match["active"]), int(match["shared"] or 0))
        return parts

    @property
    def axes(self) -> tuple[str, ...]:
        """What it changes: ``width``, ``depth``, ``batch``, ``tokens``, ``mixture``."""
        return tuple(self._parts)

    def number(self, axis: str, default: float) -> float:
        """Its value on an axis."""
        return float(self._parts.get(axis, default))

    @property
    def mixture(self) -> tuple[int, int, int] | None:
        """Experts, active ones and shared ones; None for a dense layer."""
        found: tuple[int, int, int] | None = self._parts.get("mixture")
        return found

    @property
    def dense(self) -> "Layout":
        """The same without its mixture."""
        kept = [part for part in self.text.split("-") if not part.startswith("e")]
        return Layout("-".join(kept) or "base")

    def __str__(self) -> str:
        return self.text
