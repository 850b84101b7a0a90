"""Emulated networks between real processes on one host, for programs that are not ours as well.

A :class:`Lab` is a set of hosts, each a network namespace of its own, joined pairwise by links of a given
round trip time and bandwidth::

    with Lab.of(profile("wan")) as lab:  # or Lab(hosts=2, rtt=0.04, bandwidth=352e6)
        server = lab.popen(0, ["python", "server.py", lab.addresses[0]])
        client = lab.popen(1, ["python", "client.py", lab.addresses[0]])
        ...
        print(lab.emulator, lab.counters(0, 1).sent_bytes)

Three emulators, of which :func:`probe` says which work here:

- ``netem``: virtual cables (veth) with the kernel's delay queue. Some kernels come without it.
- ``tun``: a small relay process reads packets from a TUN device in one namespace and writes them, later,
  into its twin in the other: a delay line behind a token bucket. Nothing is dropped: a full link holds
  the sender's kernel back.
- ``veth``: virtual cables without any shaping, for a link that asks for neither delay nor bandwidth.

All need Linux, iproute2 and the right to create network namespaces (root, or CAP_SYS_ADMIN and
CAP_NET_ADMIN). The namespaces are anonymous: no name, no file. The process that holds them ends when the
lab is closed or its owner dies, and with it everything inside.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

from tradeoff.core.errors import EngineError
from tradeoff.engines.transport.shaper import LinkShaper

SHAPING_EMULATORS = ("netem", "tun")
"""In the order of preference."""


class EmulationUnavailable(EngineError):
    """No network can be emulated here: a privilege, a program or a feature of the kernel is missing."""


@dataclass(frozen=True)
class Counters:
    """What one host's end of a link has carried, headers of IP and TCP included.

    A packet that leaves the segmentation to the device counts once, with one header.
    """

    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int

    def __sub__(self, earlier: "Counters") -> "Counters":
        return Counters(
            self.sent_bytes - earlier.sent_bytes,
            self.sent_packets - earlier.sent_packets,
            self.received_bytes - earlier.received_bytes,
            self.received_packets - earlier.received_packets,
        )


@dataclass(frozen=True)
class Accuracy:
    """A link as asked for and as measured: seconds and bits per second (asked for 0: unlimited)."""

    asked_rtt: float
    rtt: float
    asked_bandwidth: float
    bandwidth: float


@cache
def probe() -> Mapping[str, str | None]:
    """Each emulator's reason for not working here, or None where it works."""
    reasons: dict[str, str | None] = {}
    for emulator in ("veth", *SHAPING_EMULATORS):
        try:
            Lab(2, rtt=1e-3, bandwidth=1e9, emulator=emulator).close()
            reasons[emulator] = None
        except EmulationUnavailable as error:
            reasons[emulator] = str(error)
    return reasons


class Lab:
    """Hosts in namespaces of their own, each pair joined by an emulated link.

    Args:
        hosts: number of hosts, at least 2.
        rtt: round trip time of every link in seconds; half of it delays each direction.
        bandwidth: bits per second of every link in each direction; 0 is unlimited.
        emulator: ``netem``, ``tun`` or ``veth``; by default the first shaping one that works here, and
            ``veth`` where neither delay nor bandwidth is asked for.

    Raises:
        EmulationUnavailable: the emulator (or every one) does not work here; the message says why.
    """

    def __init__(
        self, hosts: int = 2, *, rtt: float = 0.0, bandwidth: float = 0.0, emulator: str | None = None
    ) -> None:
        if not 2 <= hosts <= 250:
            raise ValueError(f"a lab has 2 to 250 hosts, not {hosts}")
        if rtt < 0 or bandwidth < 0:
            raise ValueError(f"rtt and bandwidth must not be negative: {rtt}, {bandwidth}")
        self.emulator = emulator or choose(rtt, bandwidth)
        if self.emulator not in ("veth", *SHAPING_EMULATORS):
            raise ValueError(f"unknown emulator {self.emulator!r}: use netem, tun or veth")
        self.rtt = rtt
        self.bandwidth = bandwidth
        self.addresses = tuple(f"10.77.0.{host + 1}" for host in range(hosts))
        self._children: list[subprocess.Popen[Any]] = []
        if sys.platform != "linux":
            raise EmulationUnavailable(
                f"networks are emulated with Linux namespaces, and this is {sys.platform}"
            )
        for tool, package in (("ip", "iproute2"), ("nsenter", "util-linux")):
            if shutil.which(tool) is None:
                raise EmulationUnavailable(f"{tool} is not installed; it comes with the package {package}")
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "tradeoff.engines.transport.emulation_keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self._namespaces: list[str] = self._ask(
                addresses=self.addresses,
                delay=rtt / 2,
                bytes_per_second=bandwidth / 8,
                emulator=self.emulator,
            )["namespaces"]
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, link: LinkShaper, hosts: int = 2, *, emulator: str | None = None) -> "Lab":
        """Hosts joined by links with the latency and bandwidth of a profile.

        Raises:
            ValueError: the profile asks for jitter or losses, which are not emulated here.
        """
        if link.jitter_ms or link.loss_rate:
            raise ValueError(
                f"link {link.name!r} has jitter or losses; a lab emulates delay and bandwidth only"
            )
        return cls(hosts, rtt=2e-3 * link.latency_ms, bandwidth=1e6 * (link.mbit or 0), emulator=emulator)

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        try:
            self._keeper.stdin.write(json.dumps(request) + "\n")
            self._keeper.stdin.flush()
        except BrokenPipeError:
            raise EngineError("the process that holds the emulated network has ended") from None
        line = self._keeper.stdout.readline()
        if not line:
            raise EngineError("the process that holds the emulated network has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EmulationUnavailable(
                f"cannot emulate a network with {self.emulator}: {answer['error'].rstrip('.')}. "
                "This needs Linux, root (or CAP_SYS_ADMIN and CAP_NET_ADMIN) and, for tun, /dev/net/tun "
                "and the native extension."
            )
        return answer

    def command(self, host: int, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on `host`."""
        return ["nsenter", f"--net={self._namespaces[host]}", "--", *argv]

    def popen(self, host: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a program on `host` (options as in :class:`subprocess.Popen`); closing the lab kills it."""
        child = subprocess.Popen(self.command(host, argv), **options)
        self._children.append(child)
        return child

    def counters(self, host: int, peer: int) -> Counters:
        """What `host` has exchanged with `peer` since the lab was made."""
        return Counters(**self._ask(do="counters", host=host, peer=peer))

    def measure(self, host: int = 0, peer: int = 1, seconds: float = 2.0) -> Accuracy:
        """What a TCP connection from `host` to `peer` really gets; loads the link for `seconds`."""
        got = self._ask(do="measure", host=host, peer=peer, seconds=seconds)
        return Accuracy(self.rtt, got["rtt"], self.bandwidth, got["bandwidth"])

    def close(self) -> None:
        """Kills what runs on the hosts and removes the network; may be called again."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
        for child in self._children:
            child.wait()
        self._children.clear()
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with suppress(BrokenPipeError):
            self._keeper.stdin.close()
        self._keeper.wait()
        self._keeper.stdout.close()

    def __enter__(self) -> "Lab":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def choose(rtt: float, bandwidth: float) -> str:
    """The emulator to use by default for such a link."""
    if not rtt and not bandwidth:
        return "veth"
    reasons = probe()
    for emulator in SHAPING_EMULATORS:
        if reasons[emulator] is None:
            return emulator
    raise EmulationUnavailable("; ".join(f"{name}: {reasons[name]}" for name in SHAPING_EMULATORS))
