"""A server is party 0 towards each client, whatever the clients do."""

from __future__ import annotations

import socket
import threading
import time
import warnings

import numpy as np
import pytest
from transport_helpers import make_config, no_leaks

from tradeoff.engines.transport import (
    TLS,
    AuthError,
    ConfigError,
    InsecureWarning,
    MalformedFrame,
    Party,
    PeerAborted,
    PeerLost,
    PlanMismatch,
    make_keys,
    serve,
)

pytestmark = pytest.mark.filterwarnings("ignore::tradeoff.engines.transport.InsecureWarning")


def echo(net, name):
    while not isinstance(value := net.recv(1), bytes) or value != b"end":
        net.send(1, value)
    net.send(1, name.encode())


def client_config(server, **settings):
    return make_config([server.address, None], **settings)


def converse(server, values, me=1, **settings):
    with Party(client_config(server, **settings), me) as net:
        for value in values:
            assert np.array_equal(net.exchange(0, value), value)
        return net.session, net.exchange(0, b"end")


def test_many_clients_at_once_each_in_a_session_of_its_own():
    values = [np.full(1000, i, np.uint64) for i in range(20)]
    sessions = []

    def client():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureWarning)
            sessions.append(converse(server, values)[0])

    with no_leaks(), serve(echo, make_config(["127.0.0.1:0", None])) as server:
        threads = [threading.Thread(target=client) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(set(sessions)) == 6
        assert not server.failures


def test_failing_clients_end_only_their_own_sessions():
    with no_leaks(), serve(echo, make_config(["127.0.0.1:0", None], program="a")) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n" * 4)
            with pytest.raises(PlanMismatch):
                Party(client_config(server, program="b"), 1)
            with pytest.raises(ZeroDivisionError), Party(client_config(server, program="a"), 1):
                raise ZeroDivisionError
            assert converse(server, [b"x"], program="a")[1] == b""
        deadline = time.monotonic() + 20
        while len(server.failures) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        kinds = {type(error) for error in server.failures}
        assert kinds == {MalformedFrame, PlanMismatch, PeerAborted}


def test_client_names_reach_the_handler_and_strangers_do_not(tmp_path):
    make_keys(tmp_path / "a", 3)
    make_keys(tmp_path / "b", 3)
    ours = TLS.folder(tmp_path / "a")
    bob = TLS(tmp_path / "a" / "party-2.pem", tmp_path / "a" / "party-2.key", tmp_path / "a" / "ca.pem")
    stranger = TLS(tmp_path / "b" / "party-1.pem", tmp_path / "b" / "party-1.key", tmp_path / "a" / "ca.pem")
    with no_leaks(), serve(echo, make_config(["127.0.0.1:0", None], tls=ours)) as server:
        assert converse(server, [b"x"], tls=ours)[1] == b"party-1"
        assert converse(server, [b"x"], tls=bob)[1] == b"party-2"
        with pytest.raises(AuthError):
            Party(client_config(server, tls=stranger), 1)


def test_closing_the_server_ends_its_sessions():
    server = serve(echo, make_config(["127.0.0.1:0", None]))
    with no_leaks(seconds=10):
        net = Party(client_config(server), 1)
        assert net.exchange(0, b"x") == b"x"
        server.close()
        with pytest.raises((PeerAborted, PeerLost)):
            net.recv(0)
        net.close()


def test_a_server_is_for_two():
    with pytest.raises(ConfigError, match="two parties"):
        serve(echo, make_config(["127.0.0.1:0", "127.0.0.1:0", None]))
