"""Authenticated, metered messages between named parties over TCP.

:class:`Party` links this process to the other parties of a session; :class:`SimNet` gives parties as threads
with the same interface, :class:`LocalCluster` as processes of one host.
"""

from tradeoff.engines.transport.accounting import OFFLINE, ONLINE, Stats, Traffic
from tradeoff.engines.transport.cluster import LocalCluster
from tradeoff.engines.transport.config import TLS, Config, InsecureWarning
from tradeoff.engines.transport.endpoint import Endpoint
from tradeoff.engines.transport.errors import (
    AuthError,
    ConfigError,
    HandshakeError,
    InsecureTransport,
    KeysExist,
    MalformedFrame,
    PeerAborted,
    PeerError,
    PeerLost,
    PeerTimeout,
    PlanMismatch,
    PortInUse,
    RemoteFailure,
    UnexpectedMessage,
    UnsupportedArray,
)
from tradeoff.engines.transport.keys import make_keys
from tradeoff.engines.transport.party import Party
from tradeoff.engines.transport.report import Clock, Report, Row, measured_row
from tradeoff.engines.transport.server import Server, serve
from tradeoff.engines.transport.shaper import PROFILES, LinkShaper, profile
from tradeoff.engines.transport.simnet import SimNet
from tradeoff.engines.transport.transcript import read_transcript

__all__ = [
    "OFFLINE",
    "ONLINE",
    "PROFILES",
    "TLS",
    "AuthError",
    "Clock",
    "Config",
    "ConfigError",
    "Endpoint",
    "HandshakeError",
    "InsecureTransport",
    "InsecureWarning",
    "KeysExist",
    "LinkShaper",
    "LocalCluster",
    "MalformedFrame",
    "Party",
    "PeerAborted",
    "PeerError",
    "PeerLost",
    "PeerTimeout",
    "PlanMismatch",
    "PortInUse",
    "RemoteFailure",
    "Report",
    "Row",
    "Server",
    "SimNet",
    "Stats",
    "Traffic",
    "UnexpectedMessage",
    "UnsupportedArray",
    "make_keys",
    "measured_row",
    "profile",
    "read_transcript",
    "serve",
]
