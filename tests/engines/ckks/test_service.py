"""A server as a process of its own: what it never sees, what it refuses, and what it survives."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tradeoff.engines import ckks
from tradeoff.engines.ckks import Client, Keys, Session
from tradeoff.engines.ckks import messages as m
from tradeoff.engines.ckks.backends import evaluator
from tradeoff.engines.transport import (
    TLS,
    AuthError,
    Config,
    Party,
    PeerAborted,
    PeerError,
    PeerLost,
    PlanMismatch,
    make_keys,
)
from tradeoff.engines.transport.frames import FrameType, encode_header
from tradeoff.engines.transport.party import parse_address
from tradeoff.engines.transport.tls import client_context, handshake

WINDOW = 32


@pytest.fixture
def honest(session: Session) -> Iterator[Any]:
    """The server answers before and after whatever the test does to it."""
    x = np.linspace(-1, 1, 8)

    def asked() -> None:
        with Client(session_plan(session), session.keys).connect(session.config) as connection:
            assert connection.key_bytes_sent == 0  # they are kept
            wanted = ckks.evaluate(session_program(session), {"x": x})[0]
            assert np.abs(connection.infer(x).values - wanted).max() < 1e-3

    asked()
    yield session
    assert session.process.poll() is None
    asked()


def session_program(session: Session) -> ckks.Program:
    return ckks.load_program(session.folder / "program")[0]


def session_plan(session: Session) -> ckks.Plan:
    return ckks.load_plan(session.folder / "program" / "public")


def stranger(session: Session) -> Party:
    """A client with a good certificate and bad intentions."""
    return Party(m.configured(session.config, session_plan(session)), 1)


def test_inference(session: Session, tiny: Any) -> None:
    program, plan = tiny
    x = np.random.default_rng(0).uniform(-1, 1, 8)
    result = session.infer(x)
    assert np.abs(result.values - ckks.evaluate(program, {"x": x})[0]).max() < 1e-3
    report = result.report
    assert report.meter.counts == ckks.predicted_counts(program, plan.parameters).counts
    assert report.sent > 0
    assert report.received > 0
    assert report.to_json()["rotations"] == 2
    assert "128-bit security" in str(report)
    assert session.setup.key_bytes == len(session.keys.evaluation)
    assert session.peak_memory() > 10_000_000


# What nobody but the key owner has.


def windows(secret: Any) -> list[bytes]:
    """Pieces of the secret key, of its file and of its form in memory, at every 32 bytes."""
    found = []
    for data in (secret.save(), secret.coefficients()):
        found += [data[i : i + WINDOW] for i in range(64, len(data) - WINDOW, WINDOW)]
    return [window for window in found if len(set(window)) > 8]


def test_pieces_of_the_key_are_told_apart(session: Session) -> None:
    assert len(windows(session.keys.secret)) > 300


def contains(data: bytes, pieces: set[bytes]) -> bool:
    """Whether any piece occurs at any place."""
    pattern = re.compile(b"|".join(re.escape(piece) for piece in list(pieces)[:400]), re.DOTALL)
    return pattern.search(data) is not None


def memory(pid: int) -> Iterator[bytes]:
    """Every readable page of a process."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as pages:
        for line in maps:
            span, rights, *rest = line.split()
            if "r" not in rights or "w" not in rights or any("vvar" in word for word in rest):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            try:
                pages.seek(start)
                yield pages.read(end - start)
            except (OSError, ValueError):
                continue


def key_is_in_process(pid: int, secret: Any) -> bool:
    """By 8 aligned bytes first, which NumPy finds fast, then by whole windows."""
    coefficients = np.frombuffer(secret.coefficients(), np.uint64)
    rare = coefficients[coefficients > 2][:64]
    file = secret.save()
    for page in memory(pid):
        if any(file[at : at + WINDOW] in page for at in (256, 1024, 2048)):
            return True
        words = np.frombuffer(page[: len(page) // 8 * 8], np.uint64)
        if np.isin(rare[:8], words).all() and any(secret.coefficients()[at : at + WINDOW] in page for at in
                                                  range(0, 2048, 8)):  # fmt: skip
            return True
    return False


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc")
def test_the_server_never_has_the_secret_key(session: Session, tmp_path: Path) -> None:
    secret = session.keys.secret
    pieces = set(windows(secret))
    assert key_is_in_process(os.getpid(), secret)  # the search works: here it is
    assert not key_is_in_process(session.process.pid, secret)
    for path in session.folder.rglob("*"):
        if path.is_file():
            assert not contains(path.read_bytes(), pieces), path
    assert not list(session.folder.rglob("secret*"))
    # What the client says, before TLS.
    transcript = tmp_path / "transcript"
    plan = session_plan(session)
    config = m.configured(session.config, plan)
    with Party(config, 1, record=transcript, synthetic_inputs=True) as net:
        fresh = Keys.generate(plan)
        talk(net, fresh, Client(plan, fresh), np.ones(8))
    said = transcript.read_bytes()
    assert fresh.evaluation[:1000] in said
    assert not contains(said, set(windows(fresh.secret)))


def talk(net: Party, keys: Keys, client: Client, x: Any) -> None:
    """A client's part, as :class:`Connection` does it."""
    m.send_json(net, 0, m.OFFER_KEYS, {"digest": keys.digest, "size": len(keys.evaluation)})
    net.recv(0, tag=m.KEYS_KNOWN)
    net.send(0, np.frombuffer(keys.evaluation, np.uint8), tag=m.KEYS_CHUNK)
    net.recv(0, tag=m.KEYS_READY)
    m.send_json(net, 0, m.REQUEST, {"request": 1, "ciphertexts": 1})
    for data in client.encrypt(x):
        net.send(0, data, tag=m.CIPHERTEXT)
    assert net.recv_any(0)[0] in (m.RESULT, m.PROGRESS)


def test_a_key_that_is_uploaded_is_found(session: Session, tmp_path: Path) -> None:
    """The search of the test above sees a client that gives its key away."""
    transcript = tmp_path / "transcript"
    plan = session_plan(session)
    keys = Keys.generate(plan)
    with Party(m.configured(session.config, plan), 1, record=transcript, synthetic_inputs=True) as net:
        net.send(0, keys.secret.save(), tag=m.OFFER_KEYS)
        with pytest.raises(PeerAborted):
            net.recv(0)
    assert contains(transcript.read_bytes(), set(windows(keys.secret)))


def test_the_server_has_no_code_for_secret_keys() -> None:
    code = (
        "import sys; import tradeoff.engines.ckks.server, tradeoff.engines.ckks.backends.seal, "
        "tradeoff.engines.ckks.commands; print([n for n in sys.modules if 'secret' in n and 'tradeoff' in n])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
    root = Path(ckks.__file__).parent
    for name in ("server.py", "execution.py", "backends/seal.py"):
        text = (root / name).read_text()
        assert "SecretKey" not in text
        assert "Decryptor" not in text
        assert "seal_secret" not in text


def test_keys_on_disk(tiny: Any, tmp_path: Path) -> None:
    _, plan = tiny
    keys = Keys.create(plan, tmp_path / "keys")
    assert (tmp_path / "keys" / "secret.bin").stat().st_mode & 0o777 == 0o600
    again = Keys.load(plan, tmp_path / "keys")
    assert again.digest == keys.digest
    assert again.secret.coefficients() == keys.secret.coefficients()
    with pytest.raises(FileExistsError, match="never overwritten"):
        Keys.create(plan, tmp_path / "keys")
    other = replace(plan, steps=(*plan.steps, 5))
    with pytest.raises(ckks.KeysMismatch, match="another plan"):
        Keys.load(other, tmp_path / "keys")
    (tmp_path / "keys" / "evaluation.bin").write_bytes(b"x")
    with pytest.raises(ckks.KeysMismatch, match="damaged"):
        Keys.load(plan, tmp_path / "keys")
    with pytest.raises(ValueError, match="holds no keys"):
        Keys.load(plan, tmp_path)
    Keys.create(plan, tmp_path / "others")
    (tmp_path / "others" / "secret.bin").write_bytes(b"no key")
    with pytest.raises(ckks.KeysMismatch, match="damaged, or belongs"):
        Keys.load(plan, tmp_path / "others")


# Bad words.


def aborted(session: Session, send: Any) -> str:
    """What the server calls it when a stranger misbehaves."""
    with stranger(session) as net:
        with pytest.raises(PeerError) as caught:
            provoke(net, send)
        assert isinstance(caught.value, PeerAborted), caught.value
        return caught.value.reason


def provoke(net: Party, send: Any) -> None:
    """Misbehave and listen until the server has had enough."""
    send(net)
    while True:
        net.recv_any(0, timeout=30)


def offer(net: Party, keys: Keys) -> None:
    m.send_json(net, 0, m.OFFER_KEYS, {"digest": keys.digest, "size": len(keys.evaluation)})


@pytest.mark.parametrize("tag", range(10))
def test_every_type_of_message_out_of_place(honest: Session, tag: int) -> None:
    for value in (b"garbage", np.zeros(3, np.uint8), np.zeros((2, 2), np.float64), b"{}", b"[" * 100_000):
        said = aborted(honest, lambda net, value=value: net.send(0, value, tag=tag))
        assert said in ("UnexpectedMessage", "CorruptMessage")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"digest": "../../etc/passwd", "size": 3}, "CorruptMessage"),
        ({"digest": "0" * 64, "size": -1}, "CorruptMessage"),
        ({"digest": "0" * 64, "size": True}, "CorruptMessage"),
        ({"digest": "0" * 64, "size": 1 << 60}, "QuotaExceeded"),
        ({"digest": "0" * 64}, "CorruptMessage"),
        ([], "CorruptMessage"),
    ],
)
def test_bad_offers(honest: Session, told: Any, said: str) -> None:
    assert aborted(honest, lambda net: m.send_json(net, 0, m.OFFER_KEYS, told)) == said


def test_keys_that_are_none(honest: Session) -> None:
    import hashlib

    kept = sorted((honest.folder / "server-keys").iterdir())
    noise = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
    plan = session_plan(honest)
    whole = np.frombuffer(honest.keys.evaluation, np.uint8)
    flipped = whole.copy()
    flipped[len(flipped) // 2] ^= 1
    others = Keys.generate(replace(plan, steps=(1,)))
    cases = {
        "noise": (noise, "CorruptMessage"),
        "cut": (whole[:-9], "CorruptMessage"),
        "flipped": (flipped, None),  # SEAL may take it: the keys are wrong then, and the client's alone
        "too few": (np.frombuffer(others.evaluation, np.uint8), "MissingRotationKey"),
    }
    for name, (data, wanted) in cases.items():
        digest = hashlib.sha256(data.tobytes()).hexdigest()

        def send(net: Party, data: Any = data, digest: str = digest, wanted: Any = wanted) -> None:
            m.send_json(net, 0, m.OFFER_KEYS, {"digest": digest, "size": len(data)})
            net.recv(0, tag=m.KEYS_KNOWN)
            net.send(0, data, tag=m.KEYS_CHUNK)
            if wanted is None:
                net.recv(0, tag=m.KEYS_READY)
                net.send(0, b"", tag=99)

        if wanted is None:
            aborted(honest, send)
        else:
            assert aborted(honest, send) == wanted, name
    lying = {"digest": "f" * 64, "size": 5000}

    def lie(net: Party) -> None:
        m.send_json(net, 0, m.OFFER_KEYS, lying)
        net.recv(0, tag=m.KEYS_KNOWN)
        net.send(0, noise, tag=m.KEYS_CHUNK)

    assert aborted(honest, lie) == "CorruptMessage"
    now = sorted((honest.folder / "server-keys").iterdir())
    assert len(now) <= len(kept) + 1
    assert not list((honest.folder / "server-keys").glob("*.partial"))


def test_a_thousand_damaged_ciphertexts(honest: Session) -> None:
    """Bit flips, truncations and noise: an error each, no crash, no growth."""
    plan = session_plan(honest)
    good = Client(plan, honest.keys).encrypt(np.ones(8))[0]
    generator = np.random.default_rng(0)
    engine = evaluator("seal", plan.parameters)
    refused = 0
    for index in range(1000):
        data = bytearray(good)
        match index % 4:
            case 0:
                data[int(generator.integers(0, 96))] ^= 1 << int(generator.integers(0, 8))
            case 1:
                data = data[: int(generator.integers(0, len(data)))]
            case 2:
                data = bytearray(generator.bytes(int(generator.integers(0, 3000))))
            case 3:
                data = data + bytes(int(generator.integers(1, 50)))
        try:
            engine.load(bytes(data))
        except ckks.CorruptMessage:
            refused += 1
    assert refused > 900  # a flip in a seed or a coefficient still is a ciphertext
    before = resident(honest.process.pid)
    for index in range(40):
        data = bytearray(good)
        data[index] ^= 0x55

        def send(net: Party, data: bytes = bytes(data)) -> None:
            offer(net, honest.keys)
            net.recv(0, tag=m.KEYS_KNOWN)
            net.recv(0, tag=m.KEYS_READY)
            m.send_json(net, 0, m.REQUEST, {"request": 1, "ciphertexts": 1})
            net.send(0, data, tag=m.CIPHERTEXT)
            tag, _ = net.recv_any(0)
            if tag in (m.RESULT, m.PROGRESS):
                net.send(0, b"", tag=99)

        assert aborted(honest, send) in ("CorruptMessage", "UnexpectedMessage")
    assert resident(honest.process.pid) - before < 50 << 20


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


@contextmanager
def raw(session: Session) -> Iterator[ssl.SSLSocket]:
    """A TLS connection with a good certificate, on which no protocol is spoken yet."""
    import socket

    sock = socket.create_connection(parse_address(session.address), timeout=10)
    tls = TLS.folder(session.folder / "certificates").of(1)
    secure = handshake(sock, client_context(tls), 0)
    try:
        yield secure
    finally:
        secure.close()


@pytest.mark.parametrize("kind", list(FrameType))
def test_garbage_in_frames_of_every_type(honest: Session, kind: FrameType) -> None:
    noise = np.random.default_rng(int(kind)).bytes(400)
    frames = [
        encode_header(kind, session=1, sequence=0, length=len(noise)) + noise,
        encode_header(kind, session=0, sequence=7, length=1 << 60),
        encode_header(kind, session=0, sequence=0, length=1 << 29, flags=0xFF),
        noise,
    ]
    for frame in frames:
        with raw(honest) as sock:
            sock.sendall(frame)
            sock.settimeout(10)
            while sock.recv(4096):
                pass


def test_garbage_instead_of_tls(honest: Session) -> None:
    import socket

    for words in (b"GET / HTTP/1.0\r\n\r\n", bytes(1000), np.random.default_rng(0).bytes(5000)):
        with socket.create_connection(parse_address(honest.address), timeout=10) as sock:
            sock.sendall(words)
            sock.settimeout(10)
            try:
                while sock.recv(4096):
                    pass
            except ConnectionError:
                continue


def test_strangers_are_refused(honest: Session, tmp_path: Path) -> None:
    make_keys(tmp_path, 2)
    config = Config((honest.address, None), tls=TLS.folder(tmp_path))
    with pytest.raises(AuthError):
        Client(session_plan(honest), honest.keys).connect(config)


def test_another_plan_is_refused_before_anything_is_sent(honest: Session) -> None:
    plan = replace(session_plan(honest), output_bound=123.0)
    with pytest.raises(PlanMismatch):
        Client(plan, honest.keys).connect(honest.config)


# Death.


def test_a_client_that_dies_frees_the_server(honest: Session) -> None:
    plan = session_plan(honest)
    net = stranger(honest)
    offer(net, honest.keys)
    net.recv(0, tag=m.KEYS_KNOWN)
    net.recv(0, tag=m.KEYS_READY)
    m.send_json(net, 0, m.REQUEST, {"request": 1, "ciphertexts": len(plan.inputs)})
    net._links[0].sock.shutdown(2)  # gone in the middle of a request
    net.close()


def test_a_server_that_dies_is_named(tiny: Any, tmp_path: Path) -> None:
    with Session(*tiny, folder=tmp_path) as session:
        session.process.send_signal(signal.SIGKILL)
        session.process.wait()
        with pytest.raises(PeerLost) as caught:
            session.infer(np.ones(8))
        assert caught.value.peer == 0


def test_a_new_server_knows_the_keys_of_the_old_one(tiny: Any, tmp_path: Path) -> None:
    with Session(*tiny, folder=tmp_path) as session:
        assert session.setup.key_bytes == len(session.keys.evaluation) > 100_000
        keys = session.keys
    with Session(*tiny, folder=tmp_path, keys=keys) as again:
        assert again.setup.key_bytes == 0
        again.infer(np.ones(8))
    assert json.loads((tmp_path / "program" / "public" / "plan.json").read_text())["program"]


def test_servers_end_when_asked(tiny: Any, tmp_path: Path) -> None:
    session = Session(*tiny, folder=tmp_path)
    session.close()
    assert session.process.returncode == 0
    deadline = time.monotonic() + 5
    while Path(f"/proc/{session.process.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{session.process.pid}").exists()


def test_a_server_that_cannot_start_says_why(tiny: Any, tmp_path: Path) -> None:
    program, plan = tiny
    with pytest.raises(ckks.session.RemoteFailure, match="another program"):  # type: ignore[attr-defined]
        Session(program, replace(plan, program="0" * 64), folder=tmp_path)
