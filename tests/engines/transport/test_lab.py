"""Sessions between network namespaces, which look like hosts to the programs in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tradeoff.engines.transport import make_keys
from tradeoff.engines.transport.lab import LabError, lab_available, lab_down, lab_up

PROGRAM = """
import sys
import numpy as np
from tradeoff.engines.transport import Config, Party
with Party(Config.load(sys.argv[1]), int(sys.argv[2])) as net:
    parts = net.allgather(np.full(100000, net.me, np.uint64))
    print([int(part[0]) for part in parts], net.security(net.peers[0]).get("version", "clear"))
"""


@pytest.fixture
def lab(require):
    require(lab_available(), "network namespaces need root and iproute2")
    name = f"t{os.getpid() % 10**8}"
    try:
        hosts = lab_up(2, mbit=500, name=name)
    except LabError as error:
        require(False, f"network namespaces cannot be made here: {error}")
    yield name, hosts
    if Path(f"/run/tradeoff-lab/{name}.json").exists():
        lab_down(name)


def run_on(hosts, path):
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", host.namespace, sys.executable, "-c", PROGRAM, str(path), str(me)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me, host in enumerate(hosts)
    ]
    return [(*process.communicate(timeout=90), process.returncode) for process in processes]


def test_parties_on_two_hosts_with_tls_and_in_a_declared_test_namespace(tmp_path, lab):
    _, hosts = lab
    make_keys(tmp_path, 2)
    parties = "parties = " + json.dumps([f"{host.address}:7000" for host in hosts]) + "\n"
    tls = '[tls]\nauthority = "ca.pem"\ncertificate = "party-{me}.pem"\nkey = "party-{me}.key"\n'
    spaces = hosts[0].namespace.removesuffix("0") + "{me}"
    clear = f'insecure = true\ntest_namespace = "{spaces}"\n'
    path = tmp_path / "cluster.toml"
    for security, version in ((tls, "TLSv1.3"), (clear, "clear")):
        path.write_text(parties + security)
        for out, err, status in run_on(hosts, path):
            assert status == 0, err
            assert out.split("] ") == ["[0, 1", version + "\n"]
    path.write_text(parties + "insecure = true\nconnect_timeout = 5\n")
    for _, err, status in run_on(hosts, path):
        assert status != 0
        assert "InsecureTransport" in err


def test_a_lab_is_removed_exactly(lab):
    name, hosts = lab
    spaces = {path.name for path in Path("/run/netns").iterdir()}
    assert {host.namespace for host in hosts} <= spaces
    with pytest.raises(LabError, match="exists"):
        lab_up(2, name=name)
    removed = lab_down(name)
    assert set(removed) == {f"{name}-0", f"{name}-1", f"{name}-switch"}
    left = {path.name for path in Path("/run/netns").iterdir()}
    assert not left & set(removed)
    with pytest.raises(LabError, match="no lab"):
        lab_down(name)
