"""Emulated networks: what they carry, what they delay, and that nothing of them stays behind.

Timing is asserted only where physics forbids the other side: a link is never faster than asked for.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tradeoff.engines.transport import Config, InsecureTransport, LinkShaper, profile
from tradeoff.engines.transport.emulation import Lab, probe

RECEIVE = """
import hashlib, socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    peer, _ = server.accept()
with peer:
    data = b"".join(iter(lambda: peer.recv(1 << 20), b""))
    peer.sendall(hashlib.sha256(data).digest())
"""
SEND = """
import os, socket, sys
data = os.urandom(int(sys.argv[3]))
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as peer:
    peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
    import hashlib
    assert peer.recv(32) == hashlib.sha256(data).digest()
"""
OWNER = """
import json, sys, time
from tradeoff.engines.transport.emulation import Lab
lab = Lab(2, rtt=0.001, bandwidth=1e9, emulator="tun")
child = lab.popen(0, ["sleep", "600"])
print(json.dumps({"keeper": lab._keeper.pid, "child": child.pid}), flush=True)
time.sleep(600)
"""

PARTY = """
import os, sys
import numpy as np
from tradeoff.engines.transport import Config, Party
parties = tuple(f"{address}:7000" for address in sys.argv[2:])
config = Config(parties, insecure=True, test_namespace=os.readlink("/proc/self/ns/net"))
with Party(config, int(sys.argv[1])) as net:
    received = net.exchange(net.peers[0], np.full(100_000, net.me, np.uint64))
    print(int(received[0]))
"""

Require = Callable[[object, str], None]


@pytest.fixture
def tun(require: Require) -> None:
    reason = probe()["tun"]
    require(reason is None, reason or "")


@pytest.fixture
def veth(require: Require) -> None:
    reason = probe()["veth"]
    require(reason is None, reason or "")


def transfer(lab: Lab, source: int, sink: int, size: int) -> None:
    """Sends `size` random bytes between two processes and checks their digest at the sender."""
    receiver = lab.popen(
        sink, [sys.executable, "-c", RECEIVE, lab.addresses[sink]], stdout=subprocess.PIPE, text=True
    )
    assert receiver.stdout is not None
    with receiver.stdout:
        port = receiver.stdout.readline().strip()
    sender = lab.popen(source, [sys.executable, "-c", SEND, lab.addresses[sink], port, str(size)])
    assert sender.wait(timeout=60) == 0
    assert receiver.wait(timeout=60) == 0


def devices() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that its parent has not collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_until_gone(pids: list[int], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.05)


@pytest.mark.usefixtures("tun")
def test_relay_carries_large_transfers_intact_and_counts_them() -> None:
    size = 8_000_000
    with Lab(2, rtt=0.002, bandwidth=2e9, emulator="tun") as lab:
        transfer(lab, 0, 1, size)
        transfer(lab, 1, 0, size // 2)
        near, far = lab.counters(0, 1), lab.counters(1, 0)
    assert size < near.sent_bytes < 1.1 * size
    assert size // 2 < far.sent_bytes < 1.2 * (size // 2) + 0.02 * size
    assert near.sent_bytes >= far.received_bytes > size


@pytest.mark.usefixtures("tun")
@pytest.mark.parametrize(("rtt", "bandwidth"), [(0.05, 50e6), (0.01, 400e6)])
def test_relayed_link_is_no_faster_than_asked(rtt: float, bandwidth: float) -> None:
    with Lab(2, rtt=rtt, bandwidth=bandwidth, emulator="tun") as lab:
        got = lab.measure(seconds=1.5)
    assert got.rtt >= rtt
    assert 0 < got.bandwidth <= bandwidth * 1.02
    assert got.asked_rtt == rtt


@pytest.mark.usefixtures("tun")
def test_unlimited_bandwidth_still_delays() -> None:
    with Lab(2, rtt=0.03, emulator="tun") as lab:
        assert lab.measure(seconds=0.2).rtt >= 0.03


def test_netem_link_is_no_faster_than_asked() -> None:
    reason = probe()["netem"]
    if reason is not None:
        pytest.skip(reason)  # a feature of the kernel, not something a complete installation has
    with Lab(2, rtt=0.02, bandwidth=100e6, emulator="netem") as lab:
        got = lab.measure(seconds=1.0)
    assert got.rtt >= 0.02
    assert got.bandwidth <= 110e6


@pytest.mark.usefixtures("tun")
def test_each_pair_of_three_hosts_has_its_own_link() -> None:
    with Lab(3, rtt=0.001, bandwidth=1e9, emulator="tun") as lab:
        transfer(lab, 0, 2, 300_000)
        assert lab.counters(0, 2).sent_bytes > 300_000
        assert lab.counters(0, 1).sent_bytes == 0
        assert lab.counters(1, 2).sent_bytes == 0


@pytest.mark.usefixtures("veth")
def test_link_without_shaping_is_a_plain_cable() -> None:
    with Lab(2) as lab:
        assert lab.emulator == "veth"
        before = lab.counters(1, 0)
        transfer(lab, 1, 0, 200_000)
        assert (lab.counters(1, 0) - before).sent_bytes > 200_000


@pytest.fixture(params=["tun", "veth"])
def emulator(request: pytest.FixtureRequest, require: Require) -> str:
    reason = probe()[request.param]
    require(reason is None, reason or "")
    emulator: str = request.param
    return emulator


def test_closing_leaves_no_process_and_no_device(emulator: str) -> None:
    before = devices()
    descriptors = len(os.listdir("/proc/self/fd"))
    lab = Lab(2, rtt=0.001, bandwidth=1e9, emulator=emulator)
    shell = lab.popen(0, ["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    with shell.stdout:
        grandchild = int(shell.stdout.readline())
    keeper = lab._keeper.pid
    lab.close()
    lab.close()
    wait_until_gone([shell.pid, grandchild, keeper])
    assert devices() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.usefixtures("tun")
def test_killed_owner_leaves_nothing() -> None:
    before = devices()
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        pids = json.loads(owner.stdout.readline())
    assert alive(pids["keeper"])
    assert alive(pids["child"])
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    wait_until_gone(list(pids.values()))
    assert devices() == before


@pytest.mark.usefixtures("tun")
def test_killed_keeper_is_an_error_and_close_still_works() -> None:
    lab = Lab(2, rtt=0.001, bandwidth=1e9, emulator="tun")
    child = lab.popen(0, ["sleep", "600"])
    lab._keeper.kill()
    lab._keeper.wait()
    with pytest.raises(RuntimeError, match="has ended"):
        lab.counters(0, 1)
    lab.close()
    assert not alive(child.pid)


def test_without_privileges_the_error_says_what_is_needed(require: Require) -> None:
    require(os.geteuid() == 0, "dropping capabilities needs root")
    script = """
from tradeoff.engines.transport.emulation import EmulationUnavailable, Lab, probe
assert all(reason for reason in probe().values())
try:
    Lab(2, rtt=0.01)
except EmulationUnavailable as error:
    print(error)
"""
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CAP_NET_ADMIN" in done.stdout
    assert "not permitted" in done.stdout


@pytest.mark.usefixtures("tun")
def test_parties_talk_in_the_clear_between_hosts_of_a_lab() -> None:
    with Lab(2, rtt=0.001, bandwidth=1e9, emulator="tun") as lab:
        parties = [
            lab.popen(
                me,
                [sys.executable, "-W", "ignore", "-c", PARTY, str(me), *lab.addresses],
                stdout=subprocess.PIPE,
                text=True,
            )
            for me in range(2)
        ]
        answers = [party.communicate(timeout=90)[0] for party in parties]
        sent = lab.counters(0, 1).sent_bytes
    assert answers == ["1\n", "0\n"]
    assert sent > 800_000


def test_own_namespace_of_the_machine_is_no_test_namespace() -> None:
    outside = ("192.0.2.6:7000", "192.0.2.7:7001")
    with pytest.raises(InsecureTransport):
        Config(outside, insecure=True, test_namespace=os.readlink("/proc/self/ns/net")).require_secure(1)


@pytest.mark.usefixtures("tun")
def test_lab_of_a_profile_has_its_delay_and_bandwidth() -> None:
    with Lab.of(profile("wan"), emulator="tun") as lab:
        assert (lab.rtt, lab.bandwidth) == (pytest.approx(0.04), pytest.approx(352e6))


def test_jitter_and_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="jitter or losses"):
        Lab.of(LinkShaper(latency_ms=1.0, jitter_ms=0.5))


@pytest.mark.parametrize(
    "wrong", [{"hosts": 1}, {"rtt": -1.0}, {"bandwidth": -1.0}, {"emulator": "carrier pigeon"}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"hosts|negative|unknown emulator"):
        Lab(**wrong)  # type: ignore[arg-type]
