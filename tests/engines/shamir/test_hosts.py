"""Servers, dealer and data owner as commands of their own, over TLS, as on hosts of their own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tradeoff.cli import main
from tradeoff.core.errors import DataError
from tradeoff.engines import shamir
from tradeoff.engines.shamir import hosts
from tradeoff.engines.shamir.commands import app
from tradeoff.engines.shamir.errors import DealerUnavailable
from tradeoff.engines.shamir.hosts import query, serve_queries
from tradeoff.engines.transport import (
    Config,
    ConfigError,
    InsecureTransport,
    PeerTimeout,
    PlanMismatch,
    PortInUse,
)
from tradeoff.nn.plan import save, trace

COMMAND = [sys.executable, "-m", "tradeoff", "shamir"]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """Certificates, everybody's part of a program, and inputs."""
    folder = tmp_path_factory.mktemp("hosts")
    run = CliRunner()
    assert run.invoke(app, ["keys", "--out", str(folder / "certs")]).exit_code == 0
    save(trace(network(), (1, 8, 8)), folder / "plan.safetensors")
    arguments = ["compile", "--plan", str(folder / "plan.safetensors"), "--out", str(folder / "program")]
    assert run.invoke(app, [*arguments, "--security", "abort"]).exit_code == 0
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((3, 1, 8, 8)))
    return folder


def write_config(folder: Path, parties: int = 5) -> Path:
    """A cluster.toml with loopback ports that are free now."""
    sockets = [socket.socket() for _ in range(parties)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    for sock in sockets:
        sock.close()
    path = folder / f"cluster-{addresses[0].replace(':', '-')}.toml"
    lines = [f"parties = {json.dumps(addresses)}", "[tls]", 'authority = "certs/ca.pem"']
    lines += ['certificate = "certs/party-{me}.pem"', 'key = "certs/party-{me}.key"']
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a verb as a process; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_query_over_tls(folder: Path, launch: Any) -> None:
    config, program = write_config(folder), folder / "program"
    shared = ("--config", config, "--program")
    servers = [launch("serve", *shared, program / f"server-{i}", "--id", i, "--queries", 1) for i in range(3)]
    dealer = launch("dealer", *shared, program / "public", "--sessions", 1)
    client = launch(
        *("query", *shared, program / "public", "--input", folder / "x.npy"),
        *("--out", folder / "y.npy", "--report", folder / "report.json"),
    )
    output = client.communicate(timeout=120)[0]
    assert client.returncode == 0, output
    expected = trace(network(), (1, 8, 8)).evaluate(np.load(folder / "x.npy"))
    assert np.abs(np.load(folder / "y.npy") - expected).max() < 5e-3
    loaded = shamir.Program.load(program / "public")
    report = json.loads((folder / "report.json").read_text())
    assert report["verified"]
    assert report["total"]["sent"] == shamir.cost(loaded, 3, party=4).total.sent
    for process, said in zip([*servers, dealer], ["computed 3 image(s)"] * 3 + ["dealt for 1"], strict=True):
        assert said in process.communicate(timeout=60)[0]
        assert process.returncode == 0


def test_what_is_compiled_is_readable_by_its_owner_only(folder: Path) -> None:
    program = folder / "program"
    assert sorted(path.name for path in program.iterdir()) == ["public", "server-0", "server-1", "server-2"]
    shares = [(program / f"server-{i}" / "shares.safetensors") for i in range(3)]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in shares)
    assert len({path.read_bytes() for path in shares}) == 3
    assert not shamir.Program.load(program / "public").plan.has_weights
    digests = {shamir.Program.load(path).digest for path in program.iterdir()}
    assert len(digests) == 1


def test_cost_verb(folder: Path) -> None:
    run = CliRunner()
    arguments = ["cost", "--program", str(folder / "program" / "public"), "--batch", "4"]
    told = run.invoke(app, [*arguments, "--json"])
    assert told.exit_code == 0, told.output
    document = json.loads(told.output)
    predicted = shamir.cost(shamir.Program.load(folder / "program" / "public"), 4, "wan", party=2)
    assert document["total"]["sent"] == predicted.total.sent
    assert document["link_seconds"] > 0.02 * predicted.total.rounds
    assert "links alone" in run.invoke(app, arguments).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["keys", "--out", "{}/k", "--servers", "2"], "3 to 16 servers"),
        (["compile", "--out", "{}/p", "--plan", "{}/plan.safetensors", "--servers", "2"], "2 servers"),
        (["compile", "--out", "{}/p", "--plan", "{}/plan.safetensors", "--security", "no"], "security"),
        (["cost", "--program", "{}"], "not a program"),
        (["query", "--program", "{}", "--config", "{}/none", "--input", "{}/x.npy"], "not a program"),
        (["query", "--program", "{}/program/public", "--config", "{}/none", "--input", "{}/x.npy"], "none"),
        (["serve", "--program", "{}/program/public", "--config", "{}/none", "--id", "0"], "none"),
        (["bench", "--security", "robust"], "robust needs"),
        (["bench", "--net", "moon"], "moon"),
        (["bench", "--json", "{}/there/is/none.json"], "cannot write"),
    ],
)
def test_bad_input_is_one_clear_line(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.replace("{}", str(folder)) for argument in arguments]
    with pytest.raises(SystemExit) as caught:
        main(["shamir", *filled])
    assert caught.value.code not in (0, None)
    output = capsys.readouterr()
    assert said in output.err + output.out
    assert "Traceback" not in output.err + output.out


def test_serving_without_shares_is_refused(folder: Path) -> None:
    config = write_config(folder)
    arguments = ["serve", "--program", str(folder / "program" / "public"), "--config", str(config)]
    result = CliRunner().invoke(app, [*arguments, "--id", "0"])
    assert result.exit_code == 2
    assert "a server has its own folder" in result.output


def test_configurations_that_do_not_fit(folder: Path) -> None:
    program = shamir.Program.load(folder / "program" / "public")
    config = Config.load(write_config(folder, 4))
    with pytest.raises(ConfigError, match="are 5 parties; the configuration has 4"):
        query(program, config, np.zeros((1, 1, 8, 8)))
    with pytest.raises(ConfigError, match="servers are 0 to 2, not 3"):
        serve_queries(program, {}, Config.load(write_config(folder)), 3)
    clear = replace(Config.load(write_config(folder)), tls=None)
    with pytest.raises(InsecureTransport):
        query(program, clear, np.zeros((1, 1, 8, 8)))
    with pytest.raises(DataError, match="inputs have shape"):
        query(program, config, np.zeros((1, 1, 7, 8)))


def test_port_in_use_is_named(folder: Path) -> None:
    program = shamir.Program.load(folder / "program" / "public")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = Config.load(write_config(folder))
        config = replace(config, parties=(f"127.0.0.1:{port}", *config.parties[1:]))
        with pytest.raises(PortInUse, match=str(port)):
            serve_queries(program, {}, config, 0)


def test_another_program_is_noticed(folder: Path, launch: Any) -> None:
    """Before any of the inputs is shared."""
    config, program = write_config(folder), folder / "program"
    launch("serve", "--program", program / "server-0", "--config", config, "--id", 0)
    settings = replace(Config.load(config), connect_timeout=60.0)
    other = shamir.compile(network(), (1, 8, 8), security="abort").shared()
    with pytest.raises(PlanMismatch):
        query(other.public(), settings, np.zeros((1, 1, 8, 8)))


def test_an_absent_dealer_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shamir.Program.load(folder / "program" / "public")
    config = Config.load(write_config(folder))
    for absent, error in ((3, DealerUnavailable), (1, PeerTimeout)):

        def fail(*arguments: Any, peer: int = absent) -> None:
            raise PeerTimeout(peer, 30.0, "", "the connection")

        monkeypatch.setattr(hosts, "Party", fail)
        with pytest.raises(error, match="nothing of the inputs" if absent == 3 else "party 1"):
            query(program, config, np.zeros((1, 1, 8, 8)))
