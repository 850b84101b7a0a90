"""Every fault gives its own error at every survivor, soon, and leaves nothing behind."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import threading
import time
import zlib
from contextlib import closing, suppress

import numpy as np
import psutil
import pytest
import transport_programs as programs
from transport_helpers import Proxy, make_config, no_leaks, run_local

from tradeoff.core.errors import EngineError, ProtocolError
from tradeoff.engines.transport import (
    TLS,
    AuthError,
    HandshakeError,
    LocalCluster,
    MalformedFrame,
    Party,
    PeerAborted,
    PeerLost,
    PeerTimeout,
    PlanMismatch,
    PortInUse,
    RemoteFailure,
    SimNet,
    UnexpectedMessage,
    make_keys,
    party,
)
from tradeoff.engines.transport.frames import (
    HEADER_BYTES,
    FrameParser,
    FrameType,
    encode_array,
    encode_header,
    encode_json,
)
from tradeoff.engines.transport.handshake import Hello
from tradeoff.engines.transport.mailbox import Mailbox, Message
from tradeoff.engines.transport.party import listen

QUICK = {"connect_timeout": 20, "ping_interval": 0.2, "close_timeout": 0.5}


def wait_for_files(paths, timeout=60):
    deadline = time.monotonic() + timeout
    while not all(os.path.exists(path) and os.path.getsize(path) for path in paths):
        assert time.monotonic() < deadline, "the parties do not start"
        time.sleep(0.02)


def outcomes_after(cluster, path, act):
    """Start, do something to party 1 once all are connected, and return what each party ended with."""
    cluster.start()
    pids = cluster.pids
    try:
        wait_for_files([f"{path}.{me}" for me in range(cluster.n)])
        began = time.monotonic()
        act(pids[1])
        survivors = [cluster._pipes[me] for me in (0, 2)]
        deadline = time.monotonic() + 50
        for pipe in survivors:
            assert pipe.poll(deadline - time.monotonic()), "a survivor hangs"
        seconds = time.monotonic() - began
        for me in (0, 2):
            cluster._collect(me)
    finally:
        cluster.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    return cluster.outcomes, seconds


@pytest.mark.parametrize("tls", [False, True])
def test_killed_party_is_lost_at_once_at_every_survivor(tmp_path, tls):
    path = tmp_path / "ready"
    cluster = LocalCluster(3, programs.wait_for_second, (str(path),), tls=tls, recv_timeout=60, **QUICK)
    outcomes, seconds = outcomes_after(cluster, path, lambda pid: os.kill(pid, signal.SIGKILL))
    for me in (0, 2):
        assert isinstance(outcomes[me], PeerLost)
        assert (outcomes[me].peer, outcomes[me].scope) == (1, "waiting")
    assert seconds < 30  # half of recv_timeout: nobody waited for that


@pytest.mark.parametrize("program", [programs.wait_for_second, programs.chain])
def test_stopped_party_times_out_and_is_blamed_by_everybody(tmp_path, program):
    path = tmp_path / "ready"
    cluster = LocalCluster(3, program, (str(path),), recv_timeout=2.0, **QUICK)
    outcomes, seconds = outcomes_after(cluster, path, lambda pid: os.kill(pid, signal.SIGSTOP))
    for me in (0, 2):
        assert isinstance(outcomes[me], PeerTimeout)
        assert (outcomes[me].peer, outcomes[me].seconds) == (1, 2.0)
        assert isinstance(outcomes[me], TimeoutError)
    assert seconds < 30


def test_half_open_connection_times_out_both_ends():
    """A network that silently drops everything from some moment on."""
    both = threading.Barrier(2)
    with no_leaks(), Proxy() as proxy:

        def party(net):
            net.exchange(1 - net.me, b"before")
            both.wait()
            proxy.silent = True
            with net.scope("layer7"):
                net.recv(1 - net.me)

        run = run_local(2, party, through={0: proxy}, recv_timeout=1.0, ping_interval=0.2)
        for me in (0, 1):
            assert isinstance(run.errors[me], PeerTimeout)
            assert (run.errors[me].peer, run.errors[me].scope) == (1 - me, "layer7")


def test_a_busy_peer_that_answers_pings_still_meets_the_deadline():
    def party(net):
        if net.me == 1:
            with suppress(ProtocolError):
                net.recv(0, timeout=20)
            return
        net.recv(1, timeout=0.6)

    run = run_local(2, party, ping_interval=0.1, recv_timeout=30)
    assert isinstance(run.errors[0], PeerTimeout)
    assert run.errors[0].seconds == 0.6


def test_pings_keep_an_idle_link_alive():
    def party(net):
        time.sleep(1.5)
        return net.exchange(1 - net.me, b"late")

    run = run_local(2, party, ping_interval=0.1, recv_timeout=0.8)
    assert run.results == {0: b"late", 1: b"late"}


def test_local_error_reaches_the_others_by_class_name_only():
    with pytest.raises(ZeroDivisionError, match="a secret number") as caught:
        LocalCluster(3, programs.fail_second, **QUICK).run(60)
    assert "fail_second" in str(caught.value.__cause__)  # the traceback of the child
    with Proxy(capture=True) as proxy:
        run = run_local(2, programs.fail_second, through={0: proxy}, **QUICK)
    assert isinstance(run.errors[1], ZeroDivisionError)
    assert isinstance(run.errors[0], PeerAborted)
    assert (run.errors[0].peer, run.errors[0].reason) == (1, "ZeroDivisionError")
    assert b"ZeroDivisionError" in proxy.captured
    assert b"secret" not in proxy.captured
    with pytest.raises(ZeroDivisionError):
        SimNet(3).run(programs.fail_second)


def test_launcher_reports_strange_ends():
    with pytest.raises(RemoteFailure, match="Local: odd"):
        LocalCluster(2, programs.fail_strangely, **QUICK).run(60)
    with pytest.raises(RemoteFailure, match=r"party 0 ended without an answer .exit status 7"):
        LocalCluster(2, programs.vanish, **QUICK).run(60)
    cluster = LocalCluster(2, programs.never_end, **QUICK)
    cluster.start()
    pids = cluster.pids
    with pytest.raises(TimeoutError, match=r"parties \[0, 1\] still run"):
        cluster.wait(0.2)
    assert not any(psutil.pid_exists(pid) for pid in pids)


class RawPeer:
    """Party 1 written by hand, to say what no :class:`Party` says."""

    def __init__(self, port, **hello):
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.settimeout(20)
        self.parser = FrameParser()
        theirs = self.hear()
        self.session = theirs.session
        self.sequence = 0
        self.say(FrameType.HELLO, encode_json(Hello(self.session, 1, 2, "").encode() | hello))
        self.say(FrameType.READY)
        assert self.hear().type is FrameType.READY  # the handshake is over

    def say(self, kind, payload=b"", **fields):
        self.sock.sendall(self.frame(kind, payload, **fields))

    def frame(self, kind, payload=b"", **fields):
        values = {"session": self.session, "sequence": self.sequence, "length": len(payload), **fields}
        self.sequence += 1
        return encode_header(kind, **values) + payload

    def hear(self):
        """The next frame, or None at the end."""
        while True:
            count = self.sock.recv_into(self.parser.buffer())
            if not count:
                return None
            frames = self.parser.advance(count)
            if frames:
                return frames[0]

    def hear_error(self):
        """What the other side says before it closes; all connections must end."""
        while (frame := self.hear()) is not None:
            if frame.type is FrameType.ERROR:
                assert self.sock.recv(1) == b""
                return frame.value
        return None


def attack(act, **settings):
    """The error at party 0, which receives on, when its peer does ``act(raw)``, and what that returned."""
    caught = []
    listener = listen("127.0.0.1:0")
    config = make_config(["127.0.0.1:1", None], **{**QUICK, "recv_timeout": 10, **settings})

    def victim():
        try:
            with Party(config, 0, listener=listener) as net:
                while True:
                    net.recv(1)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            caught.append(error)

    thread = threading.Thread(target=victim)
    with closing(listener):
        thread.start()
        raw = RawPeer(listener.getsockname()[1])
        with closing(raw.sock):
            said = act(raw)
        thread.join(20)
    assert not thread.is_alive(), "the victim hangs"
    return caught[0], said


def payload_of(value):
    descriptor, data = encode_array(value)
    return descriptor + bytes(data)


GOOD = payload_of(np.arange(100, dtype=np.uint64))


def garbage_at(offset):
    def act(raw):
        frame = bytearray(raw.frame(FrameType.DATA, GOOD))
        frame[offset] ^= 0xFF
        raw.sock.sendall(frame)
        return raw.hear_error()

    return act


@pytest.mark.filterwarnings("ignore::tradeoff.engines.transport.InsecureWarning")
@pytest.mark.parametrize("offset", range(HEADER_BYTES))
def test_garbage_at_each_byte_of_a_header(offset):
    error, said = attack(garbage_at(offset))
    assert isinstance(error, MalformedFrame)
    assert isinstance(error, ProtocolError)
    assert error.peer == 1
    assert said == {"reason": "MalformedFrame", "peer": 1}


def forged(raw, **change):
    """A frame whose checksum is right and whose fields are not."""
    raw.sock.sendall(raw.frame(FrameType.DATA, GOOD, **change))
    return raw.hear_error()


def replayed(raw):
    frame = raw.frame(FrameType.DATA, GOOD)
    raw.sock.sendall(frame + frame)
    return raw.hear_error()


def truncated(raw):
    raw.sock.sendall(raw.frame(FrameType.DATA, GOOD)[:-9])
    raw.sock.shutdown(socket.SHUT_WR)
    return raw.hear_error()


def other_dtype(raw):
    raw.say(FrameType.DATA, b"\x63" + GOOD[1:])
    return raw.hear_error()


def unknown_flags(raw):
    start = raw.frame(FrameType.DATA, GOOD, flags=4)[: HEADER_BYTES - 4]
    raw.sock.sendall(start + struct.pack("<I", zlib.crc32(start)) + GOOD)
    return raw.hear_error()


def second_hello(raw):
    raw.say(FrameType.HELLO, encode_json(Hello(raw.session, 1, 2, "").encode()))
    return raw.hear_error()


def odd_error(raw):
    raw.say(FrameType.ERROR, encode_json({"reason": "x" * 200, "peer": None}))
    return raw.hear_error()


ATTACKS = {
    "at most 1048576": lambda raw: forged(raw, length=(1 << 20) + 1),
    "expected": lambda raw: forged(raw, sequence=9),
    "frame of session": lambda raw: forged(raw, session=7),
    "uint64 in 799 bytes": lambda raw: forged(raw, length=len(GOOD) - 1),
    "sequence number 2, expected 3": replayed,
    "unknown dtype code 99": other_dtype,
    "unknown flags 0x04": unknown_flags,
    "a second HELLO": second_hello,
    "ERROR without the expected contents": odd_error,
}


@pytest.mark.filterwarnings("ignore::tradeoff.engines.transport.InsecureWarning")
@pytest.mark.parametrize("what", ATTACKS)
def test_hostile_frames_give_their_error_and_an_error_frame(what):
    with no_leaks():
        error, said = attack(ATTACKS[what], max_message=1 << 20)
    assert isinstance(error, MalformedFrame)
    assert what in str(error)
    assert said is None or said["reason"] == "MalformedFrame"


@pytest.mark.filterwarnings("ignore::tradeoff.engines.transport.InsecureWarning")
def test_truncated_payload_is_a_lost_peer_and_never_a_partial_array():
    error, _ = attack(truncated)
    assert isinstance(error, PeerLost)


@pytest.mark.filterwarnings("ignore::tradeoff.engines.transport.InsecureWarning")
def test_abort_and_goodbye_of_a_peer():
    def aborts(raw):
        raw.say(FrameType.ERROR, encode_json({"reason": "OverflowError", "peer": None}))

    def leaves(raw):
        raw.say(FrameType.BYE)

    error, _ = attack(aborts)
    assert isinstance(error, PeerAborted)
    assert error.reason == "OverflowError"
    error, _ = attack(leaves)
    assert isinstance(error, PeerLost)
    assert "left the session" in str(error)


@pytest.mark.filterwarnings("ignore::tradeoff.engines.transport.InsecureWarning")
@pytest.mark.parametrize(
    "opening", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3, b"\0" * 64, b"TDF1" + b"\xff" * 64]
)
def test_strangers_are_refused_before_anything_is_taken_from_them(opening):
    config = make_config(["127.0.0.1:1", None], **QUICK)
    with closing(listen("127.0.0.1:0")) as listener, no_leaks():
        stranger = socket.create_connection(listener.getsockname())
        stranger.sendall(opening)
        with closing(stranger), pytest.raises(MalformedFrame):
            Party(config, 0, listener=listener)


@pytest.mark.filterwarnings("ignore::tradeoff.engines.transport.InsecureWarning")
@pytest.mark.parametrize("tls", [False, True])
def test_a_stranger_who_says_nothing_does_not_hold_up_a_patient_party(tmp_path, monkeypatch, tls):
    monkeypatch.setattr(party, "_GREETING_SECONDS", 0.3)
    if tls:
        make_keys(tmp_path, 2)
    security = TLS.folder(tmp_path) if tls else None
    config = make_config(["127.0.0.1:1", None], tls=security, connect_timeout=3600.0)
    with closing(listen("127.0.0.1:0")) as listener, no_leaks():
        stranger = socket.create_connection(listener.getsockname())
        with closing(stranger), pytest.raises(PeerTimeout, match="greeting"):
            Party(config, 0, listener=listener)


def test_closing_does_not_wait_for_who_sends_without_end():
    ours, theirs = socket.socketpair()
    ended = threading.Event()

    def send_on():
        with suppress(OSError):
            while not ended.is_set():
                theirs.send(bytes(64))

    sender = threading.Thread(target=send_on)
    sender.start()
    closer = threading.Thread(target=party.close_gently, args=(ours,), daemon=True)
    closer.start()
    closer.join(30)
    ended.set()
    theirs.close()
    sender.join(30)
    assert not closer.is_alive()


def test_empty_messages_fill_a_queue_too():
    mailbox = Mailbox([1], limit=1 << 20)
    message = Message(0, 0, b"", 0, 50)
    sent = 0
    while not mailbox.full(1) and sent < 1 << 20:
        mailbox.deliver(1, "online", message)
        sent += 1
    assert mailbox.full(1)
    for _ in range(sent):
        mailbox.take(1, "online", 1.0, "", lambda *_: None)
    assert mailbox.queued(1) == 0


MISMATCHES = {
    "protocol": (HandshakeError, None),
    "library": (HandshakeError, None),
    "parties": (HandshakeError, None),
    "program": (PlanMismatch, {"program": "another"}),
    "capabilities": (HandshakeError, {"capabilities": ("radix4",)}),
    "session": (HandshakeError, {"session": 77}),
}


@pytest.mark.parametrize("field", MISMATCHES)
def test_disagreement_names_the_field_and_both_values_at_both(field, monkeypatch):
    kind, differ = MISMATCHES[field]
    if differ is None:
        original = Hello.encode

        def encode(self):
            other = {"protocol": 2, "library": "0.0.1", "parties": 3}[field]
            return original(self) | ({field: other} if self.party == 1 else {})

        monkeypatch.setattr(Hello, "encode", encode)
    with no_leaks():
        run = run_local(2, lambda net: net.recv(1 - net.me), differ={1: differ or {}}, session=5, **QUICK)
    assert type(run.errors[0]) is kind
    assert run.errors[0].field == field
    if differ is not None:  # a forged greeting is one that only the other side sees
        assert type(run.errors[1]) is kind
        assert (run.errors[0].ours, run.errors[0].theirs) == (run.errors[1].theirs, run.errors[1].ours)
        assert str(run.errors[1].ours) in str(run.errors[0])


@pytest.mark.filterwarnings("ignore::tradeoff.engines.transport.InsecureWarning")
def test_wrong_party_id_is_named():
    """Two processes that both claim to be party 1 of 3."""
    config = make_config(["127.0.0.1:1", "127.0.0.1:2", None], **QUICK)
    with closing(listen("127.0.0.1:0")) as listener:
        addresses = (f"127.0.0.1:{listener.getsockname()[1]}", "127.0.0.1:2", None)
        errors = []

        def claim():
            from dataclasses import replace

            try:
                Party(replace(config, parties=addresses), 1, listener=listen("127.0.0.1:0"))
            except EngineError as error:
                errors.append(error)

        threads = [threading.Thread(target=claim) for _ in range(2)]
        for thread in threads:
            thread.start()
        with pytest.raises(HandshakeError) as caught:
            Party(config, 0, listener=listener)
        for thread in threads:
            thread.join(30)
        assert (caught.value.field, caught.value.theirs) == ("party", 1)
        assert len(errors) == 2


@pytest.mark.filterwarnings("ignore::tradeoff.engines.transport.InsecureWarning")
def test_absent_parties_and_taken_ports():
    with closing(listen("127.0.0.1:0")) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} of 127.0.0.1: the port is in use"):
            Party(make_config([f"127.0.0.1:{port}", None]), 0)
    free = f"127.0.0.1:{port}"
    for me in (0, 1):
        with pytest.raises(PeerTimeout, match=r"0\.3 s for the connection") as caught:
            Party(make_config([free, None], connect_timeout=0.3), me)
        assert caught.value.peer == 1 - me
        assert isinstance(caught.value, TimeoutError)


ERRORS = [
    PeerLost(1, "a"),
    PeerTimeout(1, 2.5, "a", "b"),
    PeerAborted(1, "KeyError"),
    MalformedFrame(1, "bad"),
    UnexpectedMessage(1, "a", "b", "c"),
    HandshakeError("program", 1, 2),
    PlanMismatch("program", "a", "b"),
    AuthError("no", 3),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling_and_are_protocol_errors(error):
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - bytes that this line made
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert isinstance(error, ProtocolError)


def test_errors_fit_the_built_in_ones():
    assert issubclass(PeerLost, ConnectionError)
    assert issubclass(PeerTimeout, TimeoutError)
    assert issubclass(AuthError, PermissionError)
    assert issubclass(PortInUse, OSError)


def test_twenty_clusters_leave_nothing():
    def children():
        return {child.pid for child in psutil.Process().children()}

    LocalCluster(2, programs.swap).run(60)  # starts the resource tracker, which stays
    before = children()
    with no_leaks():
        for _ in range(20):
            results = LocalCluster(3, programs.swap_and_list_modules).run(60)
            assert results == [([0, 1, 2], [])] * 3
    assert children() <= before


def test_two_hundred_simulated_nets_leave_nothing():
    with no_leaks():
        for _ in range(200):
            assert SimNet(3).run(programs.swap) == [[0, 1, 2]] * 3
