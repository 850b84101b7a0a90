"""A test network on one Linux host: namespaces as hosts, joined by a switch, if need be with a rate limit.

Each host is a network namespace ``NAME-I`` with the address 10.77.0.(I+1); the switch is a bridge in a
namespace of its own, so that nothing of the machine's own network is touched. What was made is written to a
file before it is made, and exactly that is removed again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tradeoff.core.errors import EngineError, MissingTool
from tradeoff.engines.transport.errors import ConfigError

_STATE = Path("/run/tradeoff-lab")
_NAMESPACES = Path("/run/netns")
_SUBNET = "10.77.0"
_MAX_HOSTS = 200
_SECONDS = 30


class LabError(EngineError):
    """A test network cannot be made or removed here."""


@dataclass(frozen=True)
class Host:
    """One emulated host: run a program on it with ``ip netns exec NAMESPACE``."""

    namespace: str
    address: str


def lab_up(hosts: int, *, mbit: float | None = None, name: str = "lab") -> list[Host]:
    """Make ``hosts`` namespaces that reach each other, each sending at no more than ``mbit`` Mbit/s.

    Raises:
        LabError: no privileges, or a namespace of that name exists. Nothing is left behind.
        MissingTool: iproute2 is not installed.
    """
    if not 2 <= hosts <= _MAX_HOSTS:
        raise ConfigError(f"a lab has 2 to {_MAX_HOSTS} hosts, not {hosts}")
    state = _state(name)
    members = [Host(f"{name}-{i}", f"{_SUBNET}.{i + 1}") for i in range(hosts)]
    switch = f"{name}-switch"
    names = [switch, *(host.namespace for host in members)]
    there = [space for space in names if (_NAMESPACES / space).exists()]
    if state.exists() or there:
        raise LabError(
            f"lab {name!r} exists: run `tradeoff net lab down --name {name}`, or take another name"
        )
    try:
        for space in names:
            _remember(state, space)
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for i, host in enumerate(members):
            _plug(host, switch, f"port{i}", mbit)
    except BaseException:
        lab_down(name)
        raise
    return members


def lab_down(name: str = "lab") -> list[str]:
    """Remove what :func:`lab_up` made under ``name``; the namespaces removed.

    Raises:
        LabError: there is no such lab.
    """
    state = _state(name)
    try:
        made = json.loads(state.read_text())
    except FileNotFoundError:
        raise LabError(f"there is no lab {name!r} to take down") from None
    removed = [space for space in made if (_NAMESPACES / space).exists()]
    for space in removed:
        _ip("netns", "del", space)
    state.unlink()
    return removed


def lab_available() -> bool:
    """Whether this process may make namespaces."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


def _plug(host: Host, switch: str, port: str, mbit: float | None) -> None:
    """Connect a host to the switch by a pair of virtual Ethernet devices."""
    space = host.namespace
    _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
    _ip("-n", switch, "link", "set", port, "master", "bridge")
    _ip("-n", switch, "link", "set", port, "up")
    _ip("-n", space, "addr", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", space, "link", "set", "eth0", "up")
    if mbit:
        queue = ("tbf", "rate", f"{mbit:g}mbit", "burst", "64kb", "latency", "50ms")
        _run("tc", "-n", space, "qdisc", "add", "dev", "eth0", "root", *queue)


def _state(name: str) -> Path:
    if not re.fullmatch(r"[a-z][a-z0-9]{0,9}", name):
        raise ConfigError(f"a lab's name is up to ten lower-case letters and digits, not {name!r}")
    return _STATE / f"{name}.json"


def _remember(state: Path, space: str) -> None:
    try:
        state.parent.mkdir(mode=0o755, exist_ok=True)
        made = json.loads(state.read_text()) if state.exists() else []
        fresh = state.with_suffix(".new")
        fresh.write_text(json.dumps([*made, space]))
        fresh.replace(state)
    except PermissionError as error:
        raise LabError(f"a lab needs root: {error}") from None


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(program: str, *arguments: str) -> None:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        raise MissingTool(f"{program} is not installed; it comes with the package iproute2")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise LabError(f"{program} {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
