"""Mutual TLS 1.3: who may connect, what both sides see when one may not, and what a listener sees."""

from __future__ import annotations

import datetime
import hashlib
import socket
import ssl
import stat
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import transport_programs as programs
from transport_helpers import Proxy, make_config, no_leaks, run_local

from tradeoff.core.errors import MissingExtra
from tradeoff.engines.transport import (
    TLS,
    AuthError,
    Config,
    ConfigError,
    InsecureTransport,
    InsecureWarning,
    KeysExist,
    LocalCluster,
    MalformedFrame,
    Party,
    PeerLost,
    PeerTimeout,
    make_keys,
)
from tradeoff.engines.transport.party import listen

SECRET = b"the weights of this network are nobody's business but ours. " * 20


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Certificates of three parties."""
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, 3)
    return folder


@pytest.fixture(scope="module")
def other_keys(tmp_path_factory):
    """The same names, signed by another authority."""
    folder = tmp_path_factory.mktemp("other")
    make_keys(folder, 3)
    return folder


def talk(net):
    return [bytes(part) for part in net.allgather(SECRET + bytes([net.me]))]


def fingerprint(path):
    der = ssl.PEM_cert_to_DER_cert(Path(path).read_text())
    return hashlib.sha256(der).hexdigest()


def test_parties_talk_and_know_each_other(keys):
    def party(net):
        assert talk(net) == [SECRET + bytes([me]) for me in range(3)]
        return [net.security(peer) for peer in net.peers]

    with no_leaks():
        run = run_local(3, party, tls=TLS.folder(keys))
    assert not run.errors
    for me, links in run.results.items():
        assert [link["name"] for link in links] == [f"party-{peer}" for peer in range(3) if peer != me]
        assert {link["version"] for link in links} == {"TLSv1.3"}


def test_captured_bytes_hold_no_plaintext(keys):
    """The same search finds the message on a plain link."""
    seen = {}
    for secure in (True, False):
        with Proxy(capture=True) as proxy:
            run = run_local(2, talk, tls=TLS.folder(keys) if secure else None, through={0: proxy})
            assert not run.errors
        seen[secure] = bytes(proxy.captured)
    assert SECRET[:32] in seen[False]
    assert b"TDF1" in seen[False]
    assert SECRET[:16] not in seen[True]
    assert b"TDF1" not in seen[True]


def both_refused(tls):
    with no_leaks():
        run = run_local(2, talk, tls=tls, connect_timeout=10)
    assert not run.results
    return run.errors


@pytest.mark.parametrize("culprit", [0, 1])
def test_unknown_authority_is_refused_at_both_sides(keys, other_keys, culprit):
    stranger = replace(TLS.folder(other_keys), authority=keys / "ca.pem")  # trusts the right one itself
    tls = [TLS.folder(keys)] * 2
    tls[culprit] = stranger
    errors = both_refused(tls)
    assert {type(error) for error in errors.values()} == {AuthError}
    assert isinstance(errors[0], PermissionError)


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("days_ago", [30, -30])
def test_expired_and_future_certificates_are_refused_at_both_sides(tmp_path, keys, culprit, days_ago):
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from tradeoff.engines.transport import keys as module

    authority = x509.load_pem_x509_certificate((keys / "ca.pem").read_bytes())
    signer = serialization.load_pem_private_key((keys / "ca.key").read_bytes(), None)
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days_ago)
    maker = module._Maker(tmp_path, since, since + datetime.timedelta(days=1))
    name = f"party-{culprit}"
    maker.certificate(name, ec.generate_private_key(ec.SECP256R1()), name, (authority, signer))
    tls = [TLS.folder(keys)] * 2
    tls[culprit] = replace(TLS.folder(tmp_path), authority=keys / "ca.pem")
    errors = both_refused(tls)
    assert {type(error) for error in errors.values()} == {AuthError}
    assert "EXPIRED" in str(errors).upper() or days_ago < 0


@pytest.mark.parametrize(("culprit", "poses_as"), [(0, 2), (1, 2), (1, 0)])
def test_certificate_of_another_party_is_refused_at_both_sides(keys, culprit, poses_as):
    tls = [TLS.folder(keys)] * 2
    tls[culprit] = TLS(keys / f"party-{poses_as}.pem", keys / f"party-{poses_as}.key", keys / "ca.pem")
    errors = both_refused(tls)
    assert {type(error) for error in errors.values()} == {AuthError}


def test_certificate_of_a_third_party_is_refused_among_three(keys):
    """Party 2's certificate is known to party 0, but not as party 1's."""
    tls = [TLS.folder(keys)] * 3
    tls[1] = TLS(keys / "party-2.pem", keys / "party-2.key", keys / "ca.pem")
    run = run_local(3, talk, tls=tls, connect_timeout=3)
    assert isinstance(run.errors[1], AuthError)
    assert set(run.errors) == {0, 1, 2}


def test_pins_accept_exactly_these_certificates(keys):
    pins = {me: fingerprint(keys / f"party-{me}.pem") for me in range(3)}
    pinned = replace(TLS.folder(keys), pins=pins)
    assert not run_local(3, talk, tls=pinned).errors
    swapped = replace(pinned, pins={0: pins[0], 1: pins[2]})
    for tls in ([swapped, pinned], [pinned, replace(pinned, pins={0: pins[2], 1: pins[1]})]):
        errors = both_refused(tls)
        assert {type(error) for error in errors.values()} == {AuthError}


def test_pinned_certificates_need_no_authority(tmp_path, keys, other_keys):
    """Each party trusts a file with the others' own certificates, which different authorities signed."""
    bundle = tmp_path / "trusted.pem"
    own = [keys / "party-0.pem", other_keys / "party-1.pem"]
    bundle.write_text("".join(path.read_text() for path in own))
    pins = {me: fingerprint(path) for me, path in enumerate(own)}
    tls = [TLS(path, path.with_suffix(".key"), bundle, pins) for path in own]
    assert not run_local(2, talk, tls=tls).errors


@pytest.mark.parametrize("dialing", [True, False])
def test_tls_1_2_is_refused(keys, dialing):
    """A peer that speaks TLS 1.2 at most, with a good certificate."""
    side = ssl.PROTOCOL_TLS_CLIENT if dialing else ssl.PROTOCOL_TLS_SERVER
    context = ssl.SSLContext(side)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(str(keys / "ca.pem"))
    name = "party-1" if dialing else "party-0"
    context.load_cert_chain(str(keys / f"{name}.pem"), str(keys / f"{name}.key"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with closing(listen("127.0.0.1:0")) as listener:
        config = make_config([f"127.0.0.1:{listener.getsockname()[1]}", None], tls=TLS.folder(keys))
        other = []

        def old_peer():
            sock = socket.create_connection(listener.getsockname()) if dialing else listener.accept()[0]
            sock.settimeout(20)
            try:
                context.wrap_socket(sock, server_side=not dialing).close()
            except OSError as error:
                other.append(error)
                sock.close()

        thread = threading.Thread(target=old_peer)
        thread.start()
        with pytest.raises(AuthError, match=r"VERSION|PROTOCOL"):
            Party(config, 0 if dialing else 1, listener=listener if dialing else None)
        thread.join(20)
        assert isinstance(other[0], ssl.SSLError)


def test_plain_and_secure_parties_do_not_talk(keys):
    # Both wait for the other to speak first, until one loses patience.
    run = run_local(2, talk, tls=[TLS.folder(keys), None], connect_timeout=1.5)
    assert {type(error) for error in run.errors.values()} <= {AuthError, PeerTimeout, PeerLost}
    assert set(run.errors) == {0, 1}
    run = run_local(2, talk, tls=[None, TLS.folder(keys)], connect_timeout=1.5)
    assert isinstance(run.errors[1], AuthError)
    assert isinstance(run.errors[0], MalformedFrame | PeerLost)


def test_large_messages_over_tls_are_exact_and_both_may_send_first(keys):
    value = np.random.default_rng(0).integers(0, 1 << 63, 1 << 20, np.uint64)

    def party(net):
        for size in (0, 1, 2000, 2030, 2048, 4096, 1 << 20):
            assert np.array_equal(net.exchange(1 - net.me, value[:size]), value[:size])
        return net.stats().tls_overhead[1 - net.me]

    run = run_local(2, party, tls=TLS.folder(keys), send_queue=1 << 20, recv_queue=1 << 20)
    assert not run.errors
    assert min(run.results.values()) > 0


def test_local_cluster_makes_certificates_of_its_own():
    results = LocalCluster(3, programs.swap, tls=True).run(60)
    assert results == [[0, 1, 2]] * 3


def test_keys_are_private_complete_and_never_overwritten(tmp_path):
    folder = tmp_path / "certs"
    written = make_keys(folder, 2)
    assert sorted(path.name for path in written) == [
        "ca.key",
        "ca.pem",
        "party-0.key",
        "party-0.pem",
        "party-1.key",
        "party-1.pem",
    ]
    contents = {path: path.read_bytes() for path in written}
    for path in written:
        if path.suffix == ".key":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for left in ("ca.key", "party-1.pem"):
        for path in written:
            if path.name != left:
                path.unlink(missing_ok=True)
        (folder / left).write_bytes(b"mine")
        with pytest.raises(KeysExist, match=left):
            make_keys(folder, 2)
        assert (folder / left).read_bytes() == b"mine"
        assert [path.name for path in folder.iterdir()] == [left]
        for path, data in contents.items():
            path.write_bytes(data)
    assert issubclass(KeysExist, FileExistsError)
    with pytest.raises(ValueError, match="at least one"):
        make_keys(tmp_path / "none", 0)


def test_missing_cryptography_names_the_extra(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtra, match=r"tradeoff\[private\]"):
        make_keys(tmp_path, 2)
    assert not list(tmp_path.iterdir())


def test_clear_text_is_refused_beyond_loopback(monkeypatch):
    loopback = ("127.0.0.1:7000", "[::1]:7001", "localhost:7002", None)
    outside = ("127.0.0.1:7000", "192.0.2.7:7001")
    with pytest.raises(InsecureTransport, match="tradeoff net keys"):
        Party(Config(loopback), 3)
    with pytest.raises(InsecureTransport, match=r"refusing to talk in the clear to 192\.0\.2\.7:7001"):
        Party(Config(outside, insecure=True), 1)
    for name in ("nowhere", "../netns/x", "a/b"):
        with pytest.raises(InsecureTransport):
            Config(outside, insecure=True, test_namespace=name).require_secure(1)
    with pytest.warns(InsecureWarning, match="neither encrypted nor authenticated"):
        Config(loopback, insecure=True).require_secure(0)


def test_missing_key_files_are_a_configuration_error(tmp_path):
    config = make_config(["127.0.0.1:0", None], tls=TLS.folder(tmp_path))
    with no_leaks(), pytest.raises(ConfigError, match="cannot load the TLS files"):
        Party(config, 0)


def test_importing_transport_is_light():
    heavy = ("torch", "cryptography", "pydantic")
    code = f"import sys, tradeoff.engines.transport; print([m for m in {heavy} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
