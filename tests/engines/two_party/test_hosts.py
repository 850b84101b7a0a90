"""Model owner, data owner and dealer as commands of their own, over TLS, as on three hosts."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tradeoff.cli import main
from tradeoff.core.errors import DataError
from tradeoff.engines import two_party
from tradeoff.engines.transport import (
    Config,
    ConfigError,
    InsecureTransport,
    PeerAborted,
    PeerTimeout,
    PlanMismatch,
)
from tradeoff.engines.transport.config import parse_address
from tradeoff.engines.transport.emulation import Lab, probe
from tradeoff.engines.two_party.commands import app
from tradeoff.engines.two_party.errors import DealerUnavailable, PoolMismatch, PoolReused
from tradeoff.engines.two_party.hosts import query
from tradeoff.engines.two_party.pool import check_pool, write_pool
from tradeoff.nn import plan as op
from tradeoff.nn.plan import save, trace

COMMAND = [sys.executable, "-m", "tradeoff", "two-party"]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """Certificates, a program with its public view, and inputs."""
    folder = tmp_path_factory.mktemp("hosts")
    run = CliRunner()
    assert run.invoke(app, ["keys", "--out", str(folder / "certs")]).exit_code == 0
    save(trace(network(), (1, 8, 8)), folder / "plan.safetensors")
    arguments = ["compile", "--plan", str(folder / "plan.safetensors"), "--out", str(folder / "program")]
    assert run.invoke(app, arguments).exit_code == 0
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((3, 1, 8, 8)))
    return folder


def free_addresses(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    for sock in sockets:
        sock.close()
    return addresses


def write_config(folder: Path, parties: int = 3, addresses: list[str] | None = None, **settings: Any) -> Path:
    """A cluster.toml, with loopback ports that are free now unless there are ``addresses``."""
    addresses = addresses or free_addresses(parties)
    path = folder / f"cluster-{addresses[0].replace(':', '-')}.toml"
    lines = [f"parties = {json.dumps(addresses)}", *(f"{key} = {value}" for key, value in settings.items())]
    lines += ["[tls]", 'authority = "certs/ca.pem"']
    lines += ['certificate = "certs/party-{me}.pem"', 'key = "certs/party-{me}.key"']
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a verb as a process; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_three_hosts_over_tls(folder: Path, require: Any) -> None:
    """The same on hosts with networks of their own, where talking in the clear would be refused."""
    reason = probe()["veth"]
    require(reason is None, f"no test network can be made here: {reason}")
    with Lab(3) as lab:
        addresses = [f"{address}:7000" for address in lab.addresses]
        config, program = write_config(folder, addresses=addresses), folder / "program"
        shared = ["--config", str(config), "--program"]
        lines = [
            ["serve", *shared, str(program), "--queries", "1"],
            ["query", *shared, str(program / "public"), "--input", str(folder / "x.npy")],
            ["dealer", *shared, str(program / "public"), "--sessions", "1"],
        ]
        lines[1] += ["--out", str(folder / "there.npy")]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        parties = [lab.popen(host, [*COMMAND, *line], **options) for host, line in enumerate(lines)]
        said = [party.communicate(timeout=90)[0] for party in parties]
        assert [party.returncode for party in parties] == [0, 0, 0], said
        assert lab.counters(0, 1).sent_bytes > 10_000
    expected = two_party.Program.load(program).plan.evaluate(np.load(folder / "x.npy"))
    assert np.abs(np.load(folder / "there.npy") - expected).max() < 1e-3


def test_two_queries_over_tls(folder: Path, launch: Any) -> None:
    config, program = write_config(folder), folder / "program"
    server = launch("serve", "--program", program, "--config", config, "--queries", 2)
    dealer = launch("dealer", "--program", program / "public", "--config", config, "--sessions", 2)
    expected = two_party.Program.load(program).plan.evaluate(np.load(folder / "x.npy"))
    for _ in range(2):
        arguments = ("--program", program / "public", "--config", config, "--input", folder / "x.npy")
        client = launch("query", *arguments, "--out", folder / "y.npy", "--report", folder / "report.json")
        output = client.communicate(timeout=60)[0]
        assert client.returncode == 0, output
        assert np.abs(np.load(folder / "y.npy") - expected).max() < 1e-3
        (folder / "y.npy").unlink()
    report = json.loads((folder / "report.json").read_text())
    assert report["total"]["rounds"] == two_party.cost(two_party.Program.load(program), 3).total.rounds
    output = server.communicate(timeout=30)[0]
    assert server.returncode == 0
    assert output.count("answered 3 image(s)") == 2
    assert dealer.wait(30) == 0


def test_query_without_a_dealer(folder: Path, launch: Any) -> None:
    """Two hosts over TLS; who expects a pool's session meets a refusal that says why."""
    config, program = write_config(folder, parties=2), folder / "program"
    shared = ("--config", config, "--offline", "ot")
    server = launch("serve", "--program", program, *shared, "--queries", 1)
    public = two_party.Program.load(program / "public")
    x = np.load(folder / "x.npy")[:1]
    write_pool(folder / "pool", public, 1, 1)
    with pytest.raises(PlanMismatch, match="by oblivious transfer"):
        query(public, Config.load(config), x, pool=folder / "pool")
    result, report = query(public, Config.load(config), x, offline="ot")
    assert np.abs(result - two_party.Program.load(program).plan.evaluate(x)).max() < 1e-3
    predicted = two_party.cost(public, offline="ot")
    for total, expected in ((report.total, predicted.total), (report.setup, predicted.setup)):
        assert (total.offline, total.offline_sent) == (expected.offline, expected.offline_sent)
    output = server.communicate(timeout=30)[0]
    assert server.returncode == 0, output


def test_a_pool_has_no_place_beside_transfers(folder: Path) -> None:
    public = two_party.Program.load(folder / "program" / "public")
    config = Config.load(write_config(folder, parties=2))
    with pytest.raises(ConfigError, match="there is none"):
        query(public, config, np.load(folder / "x.npy"), pool=folder, offline="ot")


def deep_program(folder: Path) -> Path:
    """A program of many rounds in a row, which take their time on a slow link."""
    operators: list[op.Operator] = [op.Input("input", (), (64,))]
    for i in range(200):
        operators.append(op.ReLU(f"relu{i}", (operators[-1].name,), (64,)))
    program = two_party.compile(op.Plan(tuple(operators), (64,), operators[-1].name))
    program.save(folder / "deep")
    program.public().save(folder / "deep" / "public")
    np.save(folder / "deep.npy", np.ones((1, 64)))
    return folder / "deep"


def connected(process: subprocess.Popen[str], links: int, timeout: float = 90.0) -> None:
    """Wait until a process has so many connections."""
    deadline = time.monotonic() + timeout
    own = psutil.Process(process.pid)
    while sum(each.status == psutil.CONN_ESTABLISHED for each in own.net_connections("tcp")) < links:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the parties do not meet"
        time.sleep(0.05)


@pytest.mark.parametrize("victim", [0, 1, 2], ids=["model owner", "data owner", "dealer"])
def test_killed_in_the_middle_of_an_inference(folder: Path, launch: Any, victim: int) -> None:
    """Every other process names who is gone long before a timeout, and nobody and no port is left."""
    config, program = write_config(folder, link='"wan"', recv_timeout=120.0), deep_program(folder)
    shared = ("--config", config)
    parties = [
        launch("serve", "--program", program, *shared, "--queries", 1),
        launch("query", "--program", program / "public", *shared, "--input", folder / "deep.npy"),
        launch("dealer", "--program", program / "public", *shared, "--sessions", 1),
    ]
    connected(parties[1], 2)
    time.sleep(2.0)  # of twenty that the inference takes on this link
    assert all(party.poll() is None for party in parties)
    parties[victim].kill()
    began = time.monotonic()
    survivors = [party for rank, party in enumerate(parties) if rank != victim]
    if victim != 1:
        output = parties[1].communicate(timeout=100)[0]
        assert parties[1].returncode == 1
        assert f"error: PeerLost: party {victim} is gone in relu" in output
    if victim != 2:
        output = parties[2].communicate(timeout=100)[0]
        assert f"a session failed: PeerLost: party {victim} is gone" in output
    if victim != 0:  # the service goes on
        assert f"PeerLost: party {victim} is gone in relu" in said(parties[0], "a query failed")
        assert parties[0].poll() is None
        parties[0].terminate()
    assert time.monotonic() - began < 100
    for party in survivors:
        party.communicate(timeout=30)
    for address in Config.load(config).parties:
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(parse_address(address))


def said(process: subprocess.Popen[str], words: str) -> str:
    """The first line of a process that holds these words."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"it never said {words!r}")


WRONG = {
    "no program": ("serve --program nothing --config {config}", "DataError: nothing is not a program"),
    "no configuration": ("serve --program {program} --config nothing", "no configuration file nothing"),
    "no inputs": (
        "query --program {program}/public --config {config} --input nothing",
        "cannot read nothing",
    ),
    "no place for results": (
        "query --program {program}/public --config {config} --input {x} --out nowhere/y.npy",
        "cannot write nowhere/y.npy",
    ),
    "a pool twice": ("dealer --program {program}/public --pool {pool}", "File exists"),
    "keys twice": ("keys --out {certs}", "KeysExist"),
    "other images": (
        "query --program {program}/public --config {config} --input {wide}",
        "(images, 1, 8, 8)",
    ),
    "no such link": ("cost --program {program} --net moon", "no link profile 'moon'"),
    "no such network": ("bench --arch nothing", "nothing"),
    "no such shape": (
        "compile --arch small_cnn --model {x} --input-shape 0,8,8 --out {out}",
        "error: ",
    ),
    "weights that are none": (
        "compile --arch small_cnn --model {x} --input-shape 1,8,8 --out {out}",
        "error: ",
    ),
    "plan that is none": ("compile --plan {x} --out {out}", "error: "),
    "clear text": (
        "query --program {program}/public --config {clear} --input {x}",
        "refusing to talk in the clear to 192.0.2.1:7000",
    ),
    "unknown key": ("serve --program {program} --config {typo}", "did you mean parties?"),
    "array that promises more than its file holds": (
        "query --program {program}/public --config {config} --input {forged}",
        "forged.npy as an .npy array",
    ),
    "options nested deeply": ("cost --program {nested}", "nested too deeply"),
    "options of another type": ("cost --program {typed}", "ring_bits is '64'; expected a int"),
    "more images than can be counted": ("cost --program {program} --batch 99999999999999", "1000000"),
    "dealer of two": ("dealer --program {program}/public --config {pair}", "three parties, not 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_and_status_2(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user meets it: no traceback, no wait for anybody."""
    program = two_party.Program.load(folder / "program")
    write_pool(tmp_path / "pool", program.public(), 1, 1)
    np.save(tmp_path / "wide.npy", np.zeros((1, 1, 9, 9)))
    for kind, text in {"nested": "[" * 100_000, "typed": '{"ring_bits": "64"}'}.items():
        shutil.copytree(folder / "program" / "public", tmp_path / kind)
        (tmp_path / kind / "options.json").write_text(text)
    with (tmp_path / "forged.npy").open("wb") as file:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (10**11, 1, 8, 8)}
        np.lib.format.write_array_header_1_0(file, shape)
    addresses = [f"192.0.2.{i + 1}:7000" for i in range(3)]
    (tmp_path / "clear.toml").write_text(f"parties = {json.dumps(addresses)}\ninsecure = true\n")
    (tmp_path / "typo.toml").write_text(f"partys = {json.dumps(addresses)}\n")
    places = {
        **{key: tmp_path / f"{key}.toml" for key in ("clear", "typo")},
        "config": write_config(folder),
        "pair": write_config(folder, parties=2),
        "program": folder / "program",
        "certs": folder / "certs",
        "x": folder / "x.npy",
        "wide": tmp_path / "wide.npy",
        "forged": tmp_path / "forged.npy",
        "nested": tmp_path / "nested",
        "typed": tmp_path / "typed",
        "pool": tmp_path / "pool",
        "out": tmp_path / "out",
    }
    line, message = WRONG[name]
    with pytest.raises(SystemExit) as ended:
        main(["two-party", *line.format(**places).split()])
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in shown
    assert "unexpected" not in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_dealer_down_is_said_before_inputs_are_shared(folder: Path, launch: Any) -> None:
    config, program = write_config(folder, connect_timeout=12.0), folder / "program"
    launch("serve", "--program", program, "--config", config)
    public = two_party.Program.load(program / "public")
    with pytest.raises(DealerUnavailable, match="nothing of the inputs"):
        query(public, Config.load(config), np.load(folder / "x.npy"))


def test_pool_serves_until_it_is_used_up(folder: Path, tmp_path: Path, launch: Any) -> None:
    config, program = write_config(folder, parties=2), folder / "program"
    public = two_party.Program.load(program / "public")
    write_pool(tmp_path, public, 3, 1)
    server = launch("serve", "--program", program, "--config", config, "--pool", tmp_path / "party-0")
    x = np.load(folder / "x.npy")
    settings = Config.load(config)
    result, _ = query(public, settings, x, pool=tmp_path / "party-1")
    assert np.abs(result - two_party.Program.load(program).plan.evaluate(x)).max() < 1e-3
    with pytest.raises(Exception, match=r"offline pool|OfflineExhausted|gone"):
        query(public, settings, x, pool=tmp_path / "party-1")
    assert server.wait(30) != 0


def test_query_of_another_batch_does_not_end_the_service(folder: Path, tmp_path: Path, launch: Any) -> None:
    config, program = write_config(folder, parties=2), folder / "program"
    public = two_party.Program.load(program / "public")
    write_pool(tmp_path / "good", public, 3, 2)
    write_pool(tmp_path / "other", public, 2, 1)
    launch("serve", "--program", program, "--config", config, "--pool", tmp_path / "good" / "party-0")
    x, settings = np.load(folder / "x.npy"), Config.load(config)
    with pytest.raises(PoolMismatch, match="batches of 3 images"):
        query(public, settings, x[:2], pool=tmp_path / "good" / "party-1")
    with pytest.raises(PeerAborted, match="PoolMismatch"):
        query(public, settings, x[:2], pool=tmp_path / "other" / "party-1")
    result, _ = query(public, settings, x, pool=tmp_path / "good" / "party-1")
    assert np.abs(result - two_party.Program.load(program).plan.evaluate(x)).max() < 1e-3


@pytest.mark.parametrize("verb", ["serve", "query"])
def test_missing_pool_is_said_before_anybody_is_waited_for(folder: Path, tmp_path: Path, verb: str) -> None:
    arguments = [verb, "--program", folder / "program", "--config", write_config(folder, parties=2)]
    arguments += (
        ["--pool", tmp_path] if verb == "serve" else ["--pool", tmp_path, "--input", folder / "x.npy"]
    )
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(result.exception, FileNotFoundError)


def test_other_program_is_refused(folder: Path, launch: Any) -> None:
    config = write_config(folder, connect_timeout=20.0)
    launch("serve", "--program", folder / "program", "--config", config)
    other = two_party.Program.load(folder / "program" / "public").with_options(radix=2)
    with pytest.raises(PlanMismatch):
        query(other, Config.load(config), np.load(folder / "x.npy"))


def test_clear_text_to_another_host_is_refused(folder: Path) -> None:
    path = folder / "clear.toml"
    path.write_text('parties = ["192.0.2.1:7000", "192.0.2.2:7000", "192.0.2.3:7000"]\ninsecure = true\n')
    public = two_party.Program.load(folder / "program" / "public")
    with pytest.raises(InsecureTransport, match="in the clear"):
        query(public, Config.load(path), np.load(folder / "x.npy"))


def test_stopped_server_is_a_timeout(folder: Path, launch: Any) -> None:
    config = write_config(folder, connect_timeout=20.0, recv_timeout=1.5, ping_interval=0.5)
    program = folder / "program"
    server = launch("serve", "--program", program, "--config", config)
    launch("dealer", "--program", program / "public", "--config", config)
    public = two_party.Program.load(program / "public")
    x = np.load(folder / "x.npy")
    settings = Config.load(config)
    query(public, settings, x)
    server.send_signal(signal.SIGSTOP)
    with pytest.raises(PeerTimeout):
        query(public, replace(settings, connect_timeout=4.0), x)
    server.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--program", "nothing", "--config", "c.toml"], "is not a program"),
        (["cost", "--program", "nothing"], "is not a program"),
        (["compile", "--out", "out"], "either --plan or --arch"),
        (["dealer", "--program", "nothing"], "either --config"),
    ],
)
def test_wrong_input_is_named(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert message in (result.output + str(result.exception))
    assert not isinstance(result.exception, FileNotFoundError)


def test_public_view_cannot_serve(folder: Path) -> None:
    arguments = ["serve", "--program", folder / "program" / "public", "--config", write_config(folder)]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert "the public view" in " ".join(result.output.replace("│", " ").split())  # however long the path is


def test_inputs_that_are_no_array(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    arguments = ["query", "--program", folder / "program" / "public", "--config", write_config(folder)]
    result = CliRunner().invoke(app, list(map(str, [*arguments, "--input", tmp_path / "x.npy"])))
    assert isinstance(result.exception, DataError)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 64)), "images, 1, 8, 8"),
        (np.zeros((0, 1, 8, 8)), "at least one image"),
        (np.full((1, 1, 8, 8), np.nan), "NaN"),
        (np.zeros((1, 1, 8, 8), complex), "real numbers, not complex128"),
        (np.array(["a"]), "real numbers"),
    ],
)
def test_wrong_images_are_named(folder: Path, tmp_path: Path, x: Any, message: str) -> None:
    np.save(tmp_path / "x.npy", x)
    arguments = ["query", "--program", folder / "program" / "public", "--config", write_config(folder)]
    result = CliRunner().invoke(app, list(map(str, [*arguments, "--input", tmp_path / "x.npy"])))
    assert isinstance(result.exception, DataError)
    assert message in str(result.exception)


@pytest.mark.parametrize(
    "options",
    [("--radix", "3"), ("--ring-bits", "48"), ("--output", "what"), ("--weights", "secret")],
    ids=lambda options: options[0],
)
def test_wrong_options_are_bad_input(folder: Path, tmp_path: Path, options: tuple[str, str]) -> None:
    plan = str(folder / "plan.safetensors")
    result = CliRunner().invoke(app, ["compile", "--plan", plan, "--out", str(tmp_path / "out"), *options])
    assert isinstance(result.exception, DataError)
    assert not (tmp_path / "out").exists()


def test_saved_weights_are_private_whatever_was_there(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.safetensors").write_bytes(b"")
    (tmp_path / "plan.safetensors").chmod(0o644)
    two_party.Program.load(folder / "program").save(tmp_path)
    assert (tmp_path / "plan.safetensors").stat().st_mode & 0o777 == 0o600


def test_wrong_offline_choice_is_bad_input(folder: Path) -> None:
    result = CliRunner().invoke(app, ["cost", "--program", str(folder / "program"), "--offline", "magic"])
    assert result.exit_code == 2
    assert "dealer or ot" in result.output


def test_cost_without_a_dealer_as_json(folder: Path) -> None:
    arguments = ["cost", "--program", str(folder / "program"), "--offline", "ot", "--json"]
    total = json.loads(CliRunner().invoke(app, arguments).output)["total"]
    predicted = two_party.cost(two_party.Program.load(folder / "program"), offline="ot").total
    assert total["offline_sent"] == predicted.offline_sent > total["sent"]
    assert total["offline_rounds"] == predicted.offline_rounds


def test_cost_as_json(folder: Path) -> None:
    result = CliRunner().invoke(app, ["cost", "--program", str(folder / "program"), "--batch", "4", "--json"])
    document = json.loads(result.output)
    assert (
        document["total"]["rounds"] == two_party.cost(two_party.Program.load(folder / "program")).total.rounds
    )


class TestPool:
    """Material is used once: every way to use it twice is refused."""

    @pytest.fixture
    def program(self, folder: Path) -> two_party.Program:
        return two_party.Program.load(folder / "program")

    def infer(self, program: two_party.Program, pool: Path) -> None:
        x = np.zeros((1, 1, 8, 8))
        with two_party.Session.simulated("file", pool=pool) as session:
            session.infer(program, x)

    def test_files_are_private(self, program: two_party.Program, tmp_path: Path) -> None:
        for party in write_pool(tmp_path, program.public(), 1, 1):
            assert all(path.stat().st_mode & 0o077 == 0 for path in (party, *party.iterdir()))

    def test_second_session_goes_on_where_the_first_ended(
        self, program: two_party.Program, tmp_path: Path
    ) -> None:
        write_pool(tmp_path, program.public(), 1, 2)
        self.infer(program, tmp_path)
        self.infer(program, tmp_path)
        with pytest.raises(two_party.OfflineExhausted) as error:
            self.infer(program, tmp_path)
        assert (error.value.needed, error.value.left) == (1, 0)

    def test_restored_file_is_refused(self, program: two_party.Program, tmp_path: Path) -> None:
        write_pool(tmp_path, program.public(), 1, 3)
        state = tmp_path / "party-1" / "party-1.state"
        old = state.read_text()
        self.infer(program, tmp_path)
        state.write_text(old)
        with pytest.raises(PoolReused, match="make a new pool"):
            self.infer(program, tmp_path)

    def test_count_is_on_disk_before_use(self, program: two_party.Program, tmp_path: Path) -> None:
        from tradeoff.engines.two_party.pool import PoolFile

        folders = write_pool(tmp_path, program.public(), 1, 1)
        pool = PoolFile(folders[1], 1)
        pool.begin(0)
        assert json.loads((folders[1] / "party-1.state").read_text())["consumed"] == 1
        with pytest.raises(PoolReused):
            pool.begin(0)

    def test_two_processes_cannot_share(self, program: two_party.Program, tmp_path: Path) -> None:
        from tradeoff.engines.two_party.pool import PoolFile

        folders = write_pool(tmp_path, program.public(), 1, 1)
        first = PoolFile(folders[0], 0)
        with pytest.raises(PoolReused, match="in use"):
            PoolFile(folders[0], 0)
        first.end()

    def test_other_weights_are_refused(self, program: two_party.Program, tmp_path: Path) -> None:
        write_pool(tmp_path, program.public(), 1, 2)
        self.infer(program, tmp_path)
        torch.manual_seed(1)
        changed = network()
        nn.init.normal_(changed[0].weight)
        with pytest.raises(PoolReused, match="other weights"):
            self.infer(two_party.compile(changed, (1, 8, 8)), tmp_path)

    def test_other_pool_program_or_batch(self, program: two_party.Program, tmp_path: Path) -> None:
        write_pool(tmp_path / "a", program.public(), 1, 1)
        write_pool(tmp_path / "b", program.public(), 1, 1)
        with pytest.raises(PoolMismatch, match="another program"):
            self.infer(program.with_options(radix=2), tmp_path / "a")
        mixed = tmp_path / "mixed"
        mixed.mkdir()
        for party, source in ((0, "a"), (1, "b")):
            (mixed / f"party-{party}").symlink_to(tmp_path / source / f"party-{party}")
        with pytest.raises(PoolMismatch, match="another pool"):
            self.infer(program, mixed)
        session = two_party.Session.simulated("file", pool=tmp_path / "a")
        with session, pytest.raises(PoolMismatch, match="batches of 1"):
            session.infer(program, np.zeros((2, 1, 8, 8)))

    def test_damaged_file(self, program: two_party.Program, tmp_path: Path) -> None:
        folders = write_pool(tmp_path, program.public(), 1, 1)
        path = folders[1] / "party-1.pool"
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(PoolMismatch, match="truncated"):
            self.infer(program, tmp_path)

    @pytest.mark.parametrize("change", [("seed", "x" * 32), ("pool", " " * 32), ("batch", -1)])
    def test_damaged_header(
        self, program: two_party.Program, tmp_path: Path, change: tuple[str, Any]
    ) -> None:
        path = write_pool(tmp_path, program.public(), 1, 1)[0] / "party-0.pool"
        data = path.read_bytes()
        header = {**json.loads(data[8:]), change[0]: change[1]}
        path.write_bytes((data[:8] + json.dumps(header).encode()).ljust(len(data)))
        with pytest.raises(PoolMismatch, match="damaged"):
            check_pool(tmp_path, 0, program)
