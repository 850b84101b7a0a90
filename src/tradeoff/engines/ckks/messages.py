"""What client and server say to each other, as tagged messages of the transport."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tradeoff.core.errors import StoreError
from tradeoff.core.files import parse_json
from tradeoff.engines.ckks.errors import CorruptMessage
from tradeoff.engines.ckks.planning import Plan
from tradeoff.engines.transport import Config, ConfigError, Endpoint

SERVER, CLIENT = 0, 1

OFFER_KEYS = 1
"""Client: digest and size of its evaluation keys."""
KEYS_KNOWN = 2
"""Server: one byte, whether it has them."""
KEYS_CHUNK = 3
KEYS_READY = 4
"""Server: the keys are loaded and are what the plan asks for."""
REQUEST = 5
"""Client: number of a request; its ciphertexts follow."""
CIPHERTEXT = 6
PROGRESS = 7
"""Server: operations done and in all; it also shows that the server lives."""
RESULT = 8
"""Server: number of the request and what it took; ciphertexts follow."""

CHUNK_BYTES = 16 << 20
MAX_MESSAGE = 64 << 20
MAX_JSON = 4 << 20


def configured(config: Config, plan: Plan) -> Config:
    """The session's configuration: both sides refuse each other unless their plans are equal.

    Raises:
        ConfigError: not two parties.
    """
    if config.n != 2:
        raise ConfigError(f"a server and a client are 2 parties; the configuration has {config.n}")
    return replace(config, program=plan.digest, max_message=min(config.max_message, MAX_MESSAGE))


def send_json(net: Endpoint, to: int, tag: int, value: Any) -> None:
    """Send a small object."""
    net.send(to, json.dumps(value).encode(), tag=tag)


def as_json(value: Any) -> Any:
    """A small object from a message of anybody.

    Raises:
        CorruptMessage: it is none.
    """
    if not isinstance(value, bytes) or len(value) > MAX_JSON:
        raise CorruptMessage("a message that is no small text")
    try:
        return parse_json(value, "a message")
    except StoreError as error:
        raise CorruptMessage(str(error)) from None
