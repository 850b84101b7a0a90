"""Who the parties are and how they talk, read from a TOML file or written in Python."""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from tradeoff.engines.transport.errors import ConfigError, InsecureTransport
from tradeoff.engines.transport.frames import DEFAULT_MAX_MESSAGE, UNAUTHENTICATED_LIMIT
from tradeoff.engines.transport.shaper import LinkShaper, profile

_SECONDS = ("connect_timeout", "recv_timeout", "send_timeout", "ping_interval", "close_timeout")
_LONGEST = 1e6
_NAMESPACES = Path("/run/netns")


class InsecureWarning(UserWarning):
    """Messages cross the network without encryption or authentication."""


@dataclass(frozen=True)
class TLS:
    """Certificates of one party. In the paths ``{me}`` stands for the party's id.

    Attributes:
        certificate, key: this party's own, PEM.
        authority: PEM file of whom to trust: the private CA, or the parties' own certificates if they are
            pinned and self-signed.
        pins: SHA-256 fingerprint (hex) by party id; only exactly these certificates are accepted.
    """

    certificate: Path
    key: Path
    authority: Path
    pins: Mapping[int, str] | None = None

    def __post_init__(self) -> None:
        for name in ("certificate", "key", "authority"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        if self.pins is not None:
            pins = {int(party): _fingerprint(pin) for party, pin in self.pins.items()}
            object.__setattr__(self, "pins", MappingProxyType(pins))

    def __reduce__(self) -> tuple[Any, ...]:
        pins = None if self.pins is None else dict(self.pins)
        return TLS, (self.certificate, self.key, self.authority, pins)

    def of(self, me: int) -> TLS:
        """The same with ``{me}`` filled in."""
        certificate, key = (Path(str(path).replace("{me}", str(me))) for path in (self.certificate, self.key))
        return replace(self, certificate=certificate, key=key)

    @classmethod
    def folder(cls, folder: Path | str) -> TLS:
        """The files that :func:`make_keys` wrote into ``folder``."""
        folder = Path(folder)
        return cls(folder / "party-{me}.pem", folder / "party-{me}.key", folder / "ca.pem")


@dataclass(frozen=True)
class Config:
    """A session among ``len(parties)`` parties; equal at all of them but for local limits and key files.

    Attributes:
        parties: ``host:port`` by party id. The last may be None: nobody dials it.
        session: the session's id; None lets party 0 draw and announce one.
        program: digest of what the parties are about to run; they refuse each other if it differs.
        capabilities: names that must be equal as well.
        tls: certificates; None talks in the clear and needs ``insecure``.
        insecure: allow that, between loopback addresses or inside ``test_namespace``.
        test_namespace: name of the network namespace declared to be a test's, in which this process runs;
            ``{me}`` stands for the party's id. One without a name is ``net:[INODE]``.
        link: emulated link to every peer; links: to single peers, by id.
        connect_timeout, recv_timeout, send_timeout, ping_interval, close_timeout: seconds.
        max_message, send_queue, recv_queue: bytes.
    """

    parties: tuple[str | None, ...]
    session: int | None = None
    program: str = ""
    capabilities: tuple[str, ...] = ()
    tls: TLS | None = None
    insecure: bool = False
    test_namespace: str | None = None
    link: LinkShaper | None = None
    links: Mapping[int, LinkShaper] = field(default_factory=dict)
    connect_timeout: float = 30.0
    recv_timeout: float = 60.0
    send_timeout: float = 60.0
    ping_interval: float = 5.0
    close_timeout: float = 5.0
    max_message: int = DEFAULT_MAX_MESSAGE
    send_queue: int = 256 << 20
    recv_queue: int = 256 << 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "parties", tuple(self.parties))
        object.__setattr__(self, "capabilities", tuple(self.capabilities))
        if not 2 <= len(self.parties) <= 0xFFFF:
            raise ConfigError(f"a session has at least two parties, not {len(self.parties)}")
        for party, address in enumerate(self.parties):
            if address is not None:
                parse_address(address)
            elif party != len(self.parties) - 1:
                raise ConfigError(f"party {party} needs an address: parties with a higher id dial it")
        for name in _SECONDS:
            if not 0 < getattr(self, name) <= _LONGEST:
                raise ConfigError(
                    f"{name} is a number of seconds above 0 and up to {_LONGEST:,.0f}, "
                    f"not {getattr(self, name)!r}"
                )
        if not UNAUTHENTICATED_LIMIT <= self.max_message <= DEFAULT_MAX_MESSAGE:
            raise ConfigError(f"max_message is between 64 KiB and 1 GiB, not {self.max_message!r}")
        if self.send_queue <= 0 or self.recv_queue <= 0:
            raise ConfigError("send_queue and recv_queue are numbers of bytes above 0")
        if self.session is not None and not 0 < self.session < 1 << 64:
            raise ConfigError("a session id is an unsigned 64-bit number above 0")

    @property
    def n(self) -> int:
        """The number of parties."""
        return len(self.parties)

    def shaper(self, peer: int) -> LinkShaper | None:
        """The emulated link to a peer, if any."""
        return self.links.get(peer, self.link)

    def require_secure(self, me: int) -> None:
        """Refuse that party ``me`` talks in the clear where somebody else could listen.

        Raises:
            InsecureTransport: no TLS, and not both ``insecure`` and local.
        """
        if self.tls is not None:
            return
        if not self.insecure:
            raise InsecureTransport(
                "no TLS is configured: make certificates with `tradeoff net keys` and name them under [tls], "
                "or set insecure = true for a test on one host"
            )
        outside = [address for address in self.parties if address and not is_loopback(address)]
        if outside and not _inside_namespace(self.test_namespace, me):
            raise InsecureTransport(
                f"refusing to talk in the clear to {', '.join(outside)}: insecure is for loopback addresses "
                "and for a test network namespace; configure TLS (`tradeoff net keys`)"
            )
        warnings.warn("messages are neither encrypted nor authenticated", InsecureWarning, stacklevel=3)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a configuration; relative key files are taken from the file's own folder.

        Example::

            parties = ["10.0.0.1:7000", "10.0.0.2:7000"]
            recv_timeout = 120

            [tls]
            authority = "certs/ca.pem"
            certificate = "certs/party-{me}.pem"
            key = "certs/party-{me}.key"

            [link]            # only to emulate a slower network
            profile = "wan"   # or latency_ms, mbit, jitter_ms, loss_rate, loss_stall_ms

        Raises:
            ConfigError: the file is missing, is no TOML, has an unknown key or a value out of range.
        """
        path = Path(path)
        try:
            if path.stat().st_size > 1 << 20:
                raise ConfigError(f"{path} is larger than a configuration can be (1 MiB)")
            table = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no configuration file {path}") from None
        except RecursionError:
            raise ConfigError(f"cannot read {path}: it is nested too deeply") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from None
        try:
            return cls(**_values(cls, table, path.parent))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from None


def parse_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as a pair.

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = str(address).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise ConfigError(f"an address is host:port, not {address!r}")
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Whether nobody outside this host can be at ``address``. Other names than localhost count as outside."""
    host, _ = parse_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _values(kind: type, table: dict[str, Any], folder: Path) -> dict[str, Any]:
    values = dict(table)
    _refuse_unknown(values, [f.name for f in fields(kind)], "")
    _check_types(values)
    if "tls" in values:
        values["tls"] = _tls(values["tls"], folder)
    if "link" in values:
        values["link"] = _link(values["link"])
    if "links" in values:
        values["links"] = {int(peer): _link(link) for peer, link in values["links"].items()}
    return values


def _tls(table: dict[str, Any], folder: Path) -> TLS:
    _refuse_unknown(table, [f.name for f in fields(TLS)], "tls.")
    if not isinstance(table.get("pins", {}), dict):
        raise ConfigError("tls.pins is a table of fingerprints by party id")
    missing = {"certificate", "key", "authority"} - set(table)
    if missing:
        raise ConfigError(f"[tls] lacks {', '.join(sorted(missing))}")
    paths = {name: folder / str(table[name]) for name in ("certificate", "key", "authority")}
    return TLS(**paths, pins=table.get("pins"))


def _link(table: str | dict[str, Any]) -> LinkShaper:
    if isinstance(table, dict) and "profile" in table:
        _refuse_unknown(table, ["profile"], "link.")
        table = table["profile"]
    return profile(table)


def _check_types(values: dict[str, Any]) -> None:
    wanted: dict[str, type | tuple[type, ...]] = {
        "parties": list,
        "session": int,
        "program": str,
        "capabilities": list,
        "insecure": bool,
        "test_namespace": str,
        "tls": dict,
        "link": (str, dict),
        "links": dict,
        **dict.fromkeys(_SECONDS, (int, float)),
        **dict.fromkeys(("max_message", "send_queue", "recv_queue"), int),
    }
    for name, kind in wanted.items():
        if name in values and not isinstance(values[name], kind):
            raise ConfigError(f"{name} has the value {values[name]!r} of a wrong type")


def _refuse_unknown(table: Mapping[str, Any], known: list[str], prefix: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; there are {', '.join(known)}"
            raise ConfigError(f"unknown key {prefix}{key}{hint}")


def _fingerprint(pin: str) -> str:
    digits = str(pin).lower().removeprefix("sha256:").replace(":", "")
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise ConfigError(f"a pin is the SHA-256 fingerprint of a certificate in hex, not {pin!r}")
    return digits


def _inside_namespace(name: str | None, me: int) -> bool:
    """Whether this process runs in the network namespace ``name``, and that is not the machine's own."""
    if not name or "/" in name:
        return False
    name = name.replace("{me}", str(me))
    try:
        own = os.stat("/proc/self/ns/net").st_ino
        declared = own if name == f"net:[{own}]" else (_NAMESPACES / name).stat().st_ino
        return own == declared and own != _machine_namespace()
    except OSError:
        return False


def _machine_namespace() -> int:
    """The network namespace of the outermost ancestor that this process may look at; some hide process 1."""
    process, namespace = os.getpid(), 0
    while process:
        try:
            namespace = os.stat(f"/proc/{process}/ns/net").st_ino
        except PermissionError:
            break
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return namespace
