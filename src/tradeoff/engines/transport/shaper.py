"""Emulated links: a frame that arrived is handed out no earlier than a slower network would deliver it.

The emulation lives in the receiver, needs no privileges and delays nothing but protocol messages. A link is a
queue with a rate and a delay: a message starts when it was sent or when the message before it has left,
whichever is later, takes size / rate to leave, and arrives one latency later. So two messages in a row cost
one latency, and an exchange in which both sides send at once costs one latency, not two.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tradeoff.engines.transport.errors import ConfigError


@dataclass(frozen=True)
class LinkShaper:
    """The link to emulate; each direction of each pair of parties has one of its own.

    Attributes:
        latency_ms: one-way delay (half of the round-trip time).
        mbit: bandwidth in Mbit/s, None for unlimited.
        jitter_ms: each message is late by up to this much more, uniformly; order is kept.
        loss_rate: the probability that a message meets a lost packet.
        loss_stall_ms: how long a loss stalls the link, as a retransmission timeout does.
        seed: of the generator that draws jitter and losses.
        name: the profile this is, for reports.
    """

    latency_ms: float = 0.0
    mbit: float | None = None
    jitter_ms: float = 0.0
    loss_rate: float = 0.0
    loss_stall_ms: float = 0.0
    seed: int = 0
    name: str = "custom"

    def __post_init__(self) -> None:
        if min(self.latency_ms, self.jitter_ms, self.loss_stall_ms) < 0:
            raise ConfigError("a link's latency, jitter and stall are at least 0 ms")
        if self.mbit is not None and self.mbit <= 0:
            raise ConfigError(f"a link's bandwidth is more than 0 Mbit/s, not {self.mbit}")
        if not 0 <= self.loss_rate < 1:
            raise ConfigError(f"a link's loss rate is in [0, 1), not {self.loss_rate}")

    def seconds(self, rounds: int, payload_bytes: int) -> float:
        """The time that ``rounds`` one-way delays and ``payload_bytes`` one way cost on this link."""
        transfer = payload_bytes * 8 / (self.mbit * 1e6) if self.mbit else 0.0
        return rounds * self.latency_ms / 1e3 + transfer

    def start(self) -> ShapedLink | None:
        """One direction of the link, or None if there is nothing to emulate."""
        if not (self.latency_ms or self.mbit or self.jitter_ms or self.loss_rate):
            return None
        return ShapedLink(self)


class ShapedLink:
    """One direction of an emulated link and what is on it."""

    def __init__(self, shaper: LinkShaper) -> None:
        self._latency = shaper.latency_ms / 1e3
        self._seconds_per_byte = 8 / (shaper.mbit * 1e6) if shaper.mbit else 0.0
        self._jitter = shaper.jitter_ms / 1e3
        self._loss_rate = shaper.loss_rate
        self._stall = shaper.loss_stall_ms / 1e3
        self._generator = random.Random(shaper.seed)
        self._free = 0.0
        self._last_release = 0.0

    def release(self, sent: float, size: int) -> float:
        """When a message of ``size`` bytes sent at monotonic time ``sent`` may be handed out."""
        self._free = max(sent, self._free) + size * self._seconds_per_byte
        if self._loss_rate and self._generator.random() < self._loss_rate:
            self._free += self._stall
        late = self._generator.random() * self._jitter if self._jitter else 0.0
        self._last_release = max(self._last_release, self._free + self._latency + late)
        return self._last_release


PROFILES: Mapping[str, LinkShaper] = MappingProxyType(
    {
        "loopback": LinkShaper(name="loopback"),
        "lan": LinkShaper(latency_ms=0.15, mbit=3000, name="lan"),
        "wan": LinkShaper(latency_ms=20.0, mbit=352, name="wan"),
        "narrow": LinkShaper(latency_ms=0.1, mbit=10, name="narrow"),
        "pasnet": LinkShaper(mbit=8000, name="pasnet"),
    }
)
"""Named links. ``lan`` (0.3 ms, 3 Gbit/s) and ``wan`` (40 ms round trip, 352 Mbit/s) are the settings of
secure-inference evaluations (Huang et al., Cheetah, USENIX Security 2022); ``narrow`` is near but slow, the
opposite of ``wan`` (0.2 ms, 10 Mbit/s); ``pasnet`` is the 8 Gbit/s link of
PASNet (DAC 2023)."""


def profile(name: str | LinkShaper | Mapping[str, Any]) -> LinkShaper:
    """The link called ``name``, or the custom one that a mapping of :class:`LinkShaper` fields describes.

    Raises:
        ConfigError: no such profile or field.
    """
    if isinstance(name, LinkShaper):
        return name
    if isinstance(name, Mapping):
        try:
            return LinkShaper(**name)
        except TypeError as error:
            raise ConfigError(f"a link is described by the fields of LinkShaper: {error}") from None
    if name not in PROFILES:
        raise ConfigError(f"no link profile {name!r}; there are {', '.join(PROFILES)}")
    return PROFILES[name]
