"""The configuration file and the commands, as a user meets them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import ExitStack, closing

import pytest
from typer.testing import CliRunner

from tradeoff.core.errors import TradeoffError
from tradeoff.engines.transport import TLS, Config, ConfigError, InsecureTransport, KeysExist, LinkShaper
from tradeoff.engines.transport.commands import app
from tradeoff.engines.transport.config import is_loopback, parse_address

FULL = """
parties = ["10.0.0.1:7000", "[fe80::1]:7001"]
session = 5
program = "abc"
capabilities = ["radix4"]
recv_timeout = 120
max_message = 1000000
[tls]
authority = "certs/ca.pem"
certificate = "certs/party-{me}.pem"
key = "/etc/party.key"
[tls.pins]
0 = "sha256:AA:PIN"
[link]
latency_ms = 3
[links]
1 = {profile = "wan"}
""".replace("AA:PIN", ":".join(["aB"] * 32))


def write(folder, text):
    path = folder / "cluster.toml"
    path.write_text(text)
    return path


def test_a_full_file_is_read(tmp_path):
    config = Config.load(write(tmp_path, FULL))
    assert (config.n, config.session, config.recv_timeout) == (2, 5, 120)
    tls = config.tls.of(1)
    assert tls.certificate == tmp_path / "certs" / "party-1.pem"
    assert str(tls.key) == "/etc/party.key"
    assert tls.pins == {0: "ab" * 32}
    assert config.shaper(0) == LinkShaper(latency_ms=3)
    assert config.shaper(1).name == "wan"
    config.require_secure(0)


WRONG = {
    "parties = " + "[" * 5000: "nested too deeply",
    'parties = ["a:1"]': "at least two parties",
    'parties = ["a:1", "b"]': "host:port",
    'parties = ["a:1", "b:70000"]': "host:port",
    'parties = ["a:1", "b:2"]\nrecv_timout = 3': "unknown key recv_timout; did you mean recv_timeout",
    'parties = ["a:1", "b:2"]\nrecv_timeout = 0': "recv_timeout is a number of seconds above 0",
    'parties = ["a:1", "b:2"]\nrecv_timeout = "soon"': "recv_timeout has the value 'soon' of a wrong type",
    'parties = ["a:1", "b:2"]\nconnect_timeout = inf': "connect_timeout is a number of seconds above 0",
    'parties = ["a:1", "b:2"]\nping_interval = nan': "ping_interval is a number of seconds above 0",
    'parties = ["a:1", "b:2"]\nlinks = 3': "links has the value 3 of a wrong type",
    'parties = ["a:1", "b:2"]\nlink = 3': "link has the value 3 of a wrong type",
    'parties = ["a:1", "b:2"]\ntls = true': "tls has the value True of a wrong type",
    '[tls]\nkey="k"\ncertificate="c"\nauthority="a"\npins="ab"': "tls.pins is a table",
    'parties = ["a:1", "b:2"]\nmax_message = 3': "max_message is between",
    'parties = ["a:1", "b:2"]\nsend_queue = 0': "send_queue and recv_queue",
    'parties = ["a:1", "b:2"]\nsession = -1': "session id",
    'parties = ["a:1", "b:2"]\n[tls]\nkey = "k"': "[tls] lacks authority, certificate",
    'parties = ["a:1", "b:2"]\n[tls]\nkeys = "k"': "unknown key tls.keys; did you mean tls.key",
    'parties = ["a:1", "b:2"]\n[link]\nprofile = "moon"': "no link profile 'moon'",
    'parties = ["a:1", "b:2"]\n[link]\nspeed = 1': "fields of LinkShaper",
    'parties = ["a:1", "b:2"]\n[link]\nmbit = -1': "more than 0 Mbit/s",
    "parties = 3": "parties",
    "parties = [": "cannot read",
    "x = 1": "unknown key x; there are parties",
    "": "parties",
    '[tls]\nkey="k"\ncertificate="c"\nauthority="a"\n[tls.pins]\n0="12"': "a pin is the SHA-256",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_files_are_refused_by_name_and_reason(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Config.load(path)
    assert str(path) in str(caught.value)
    assert WRONG[text] in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_absent_odd_and_huge_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        Config.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        Config.load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ConfigError, match="cannot read"):
        Config.load(tmp_path / "binary")
    (tmp_path / "huge").write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match="larger than"):
        Config.load(tmp_path / "huge")


def test_addresses():
    assert parse_address("[::1]:80") == ("::1", 80)
    assert [is_loopback(a) for a in ("127.1.2.3:1", "[::1]:1", "localhost:1", "host:1", "10.0.0.1:1")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_keys_command(tmp_path):
    done = run("keys", "--parties", 2, "--out", tmp_path / "certs")
    assert done.exit_code == 0
    assert len(done.output.splitlines()) == 6
    again = run("keys", "--parties", 2, "--out", tmp_path / "certs")
    assert isinstance(again.exception, KeysExist)
    assert run("keys", "--parties", 0, "--out", tmp_path / "none").exit_code == 2
    for days in ("nan", "-1", "0", "1e9"):
        refused = run("keys", "--parties", 2, "--out", tmp_path / "none", "--days", days)
        assert isinstance(refused.exception, ConfigError)
    assert not (tmp_path / "none").exists()


def test_key_files_in_a_folder_with_odd_characters():
    tls = TLS.folder("a{b}{me}c").of(3)
    assert str(tls.key) == "a{b}3c/party-3.key"


def test_check_command_among_three_processes(tmp_path):
    run("keys", "--parties", 3, "--out", tmp_path / "certs")
    with ExitStack() as stack:
        ports = []
        for _ in range(3):
            sock = stack.enter_context(closing(socket.socket()))
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
    addresses = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    files = 'certificate = "certs/party-{me}.pem"\nkey = "certs/party-{me}.key"'
    tls = f'[tls]\nauthority = "certs/ca.pem"\n{files}'
    path = write(tmp_path, f"parties = [{addresses}]\n{tls}\n")
    code = "from tradeoff.engines.transport.commands import app; app()"
    command = [sys.executable, "-c", code, "check", "--config", str(path), "--json", "--me"]
    processes = [
        subprocess.Popen([*command, str(me)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for me in range(3)
    ]
    answers = []
    for process in processes:
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        answers.append(json.loads(out))
    assert len({answer["session"] for answer in answers}) == 1
    for me, answer in enumerate(answers):
        assert [link["peer"] for link in answer["links"]] == [peer for peer in range(3) if peer != me]
        for link in answer["links"]:
            assert link["tls"]["version"] == "TLSv1.3"
            assert link["tls"]["name"] == f"party-{link['peer']}"
            assert link["round_trip_ms"] > 0
            assert link["mb_per_s"] > 0


def test_commands_raise_errors_made_for_users(tmp_path):
    clear = write(tmp_path, 'parties = ["192.0.2.1:7000", "192.0.2.2:7000"]\ninsecure = true')
    for arguments, kind in (
        (("check", "--config", tmp_path / "none.toml", "--me", 0), ConfigError),
        (("check", "--config", clear, "--me", 1), InsecureTransport),
        (("lab", "down", "--name", "nosuchlab"), TradeoffError),
        (("lab", "up", "--hosts", 2, "--name", "Not/Good"), ConfigError),
    ):
        done = run(*arguments)
        assert isinstance(done.exception, kind), done.output
