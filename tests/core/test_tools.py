"""The tool runner and its box: limits, containment, cache."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tradeoff.core import sandbox
from tradeoff.core.errors import EngineError, MissingTool, SandboxUnavailable
from tradeoff.core.tools import Limits, Tool, ToolResult, ToolStatus, run_tool

SHELL = Tool("sh", "apt-get install dash", version_arguments=("-c", "echo shell 1"))
PYTHON = Tool("python", "https://python.org", (sys.executable,))
KINDS = ("bubblewrap", "unshare")
Require = Callable[[object, str], None]


def shell(script: str, **options: object) -> ToolResult:
    return run_tool(SHELL, ["-c", script], **options)  # type: ignore[arg-type]


def test_inputs_outputs_and_version() -> None:
    inputs = {"a/x": b"1"}
    result = shell("cat a/x -; echo 3 > b; echo err >&2", inputs=inputs, outputs=["b", "c"], stdin=b"2")
    assert result.status is ToolStatus.OK
    assert (result.stdout, result.stderr) == (b"12", b"err\n")
    assert result.outputs == {"b": b"3\n"}
    assert result.version == "shell 1"


def test_environment_is_bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    names = {line.partition(b"=")[0] for line in shell("env").stdout.splitlines()}
    assert names <= {b"PATH", b"HOME", b"LANG", b"PWD", b"SHLVL", b"_"}


def test_failure_is_a_status_and_absence_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell("exit 4").status is ToolStatus.FAILED
    assert shell("exit 4").returncode == 4
    absent = Tool("no-such-tool", "apt-get install it")
    with pytest.raises(MissingTool, match="no-such-tool is not installed; run: apt-get install it"):
        run_tool(absent, [])
    monkeypatch.setenv("TRADEOFF_NO_SUCH_TOOL", "/nowhere/tool")
    with pytest.raises(MissingTool, match="TRADEOFF_NO_SUCH_TOOL names /nowhere/tool"):
        absent.find()
    monkeypatch.setenv("TRADEOFF_NO_SUCH_TOOL", "/bin/sh")
    assert absent.find() == Path("/bin/sh")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_names_stay_in_the_folder(name: str) -> None:
    with pytest.raises(EngineError, match="leads out of"):
        shell("true", inputs={name: b""})
    with pytest.raises(EngineError, match="leads out of"):
        shell("true", outputs=[name])


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize(
    ("script", "limits", "status"),
    [
        ("sleep 60", Limits(seconds=0.5), ToolStatus.TIMEOUT),
        ("trap '' TERM INT; while :; do :; done", Limits(seconds=0.5), ToolStatus.TIMEOUT),
        ("yes", Limits(output_bytes=10_000), ToolStatus.OUTPUT_LIMIT),
        ("yes >&2", Limits(output_bytes=10_000), ToolStatus.OUTPUT_LIMIT),
        ("head -c 2000000 /dev/zero > big", Limits(disk_bytes=10**6), ToolStatus.OUTPUT_LIMIT),
        ("for i in 1 2 3; do head -c 400000 /dev/zero > f$i; done", Limits(disk_bytes=10**6), "output_limit"),
    ],
)
def test_limits(isolate: bool, script: str, limits: Limits, status: ToolStatus) -> None:
    result = shell(script, limits=limits, isolate=isolate)
    assert result.status == status
    assert len(result.stdout) <= limits.output_bytes


def test_memory_limit() -> None:
    limits = Limits(memory_bytes=300 * 2**20)
    assert run_tool(PYTHON, ["-c", "bytearray(10**9)"], limits=limits).status is ToolStatus.MEMORY
    # Two processes within the limit each, together beyond it.
    script = "import os, time; os.fork(); b = bytearray(200 * 2**20); time.sleep(20)"
    assert run_tool(PYTHON, ["-c", script], limits=limits).status is ToolStatus.MEMORY


def test_results_are_cached_by_content(tmp_path: Path) -> None:
    def run(content: bytes, **options: object) -> ToolResult:
        script = "cat a; date +%N; echo x > o"
        return shell(script, inputs={"a": content}, outputs=["o"], cache_root=tmp_path, **options)

    first, again, other = run(b"1"), run(b"1"), run(b"2")
    assert not first.cached
    assert again.cached
    assert (again.stdout, again.outputs, again.seconds) == (first.stdout, {"o": b"x\n"}, first.seconds)
    assert not other.cached
    stopped = [shell("sleep 9", limits=Limits(seconds=0.2), cache_root=tmp_path) for _ in range(2)]
    assert [result.cached for result in stopped] == [False, False]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, require: Require) -> str:
    """Each kind of box, by turns the one that is used."""
    name: str = request.param
    require(sandbox._works(name), f"no sandbox by {name}: apt-get install bubblewrap util-linux")
    monkeypatch.setattr(sandbox, "sandbox_kind", lambda: name)
    return name


@pytest.fixture
def server() -> Iterator[int]:
    """A port of this machine that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_box_has_no_network(kind: str, server: int) -> None:
    script = f"import socket; socket.create_connection(('127.0.0.1', {server}), 5); print('reached')"
    assert run_tool(PYTHON, ["-c", script]).stdout == b"reached\n"
    boxed = run_tool(PYTHON, ["-c", script], isolate=True)
    assert boxed.status is ToolStatus.FAILED
    assert b"reached" not in boxed.stdout
    assert b"OSError" in boxed.stderr or b"ConnectionRefused" in boxed.stderr


def test_box_neither_reads_nor_writes_outside(kind: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("secret")
    tmp_path.chmod(0o777)
    script = f"cat {canary} /etc/shadow; echo x > {tmp_path}/new; touch /usr/x /x /dev/x /etc/x; ls /home"
    result = shell(script, isolate=True)
    assert result.status is ToolStatus.FAILED
    assert result.stdout == b""
    assert list(tmp_path.iterdir()) == [canary]
    assert not Path("/usr/x").exists()


def test_box_has_no_privilege_and_sees_no_process(kind: str) -> None:
    script = "id -u; grep CapEff /proc/self/status; ls -d /proc/[0-9]* | wc -l; mount -t tmpfs none /box"
    result = shell(script, isolate=True)
    user, capabilities, processes = result.stdout.decode().splitlines()
    assert user != "0" or os.geteuid() != 0
    assert int(capabilities.split()[1], 16) == 0
    assert int(processes) < 10
    assert result.status is ToolStatus.FAILED


def test_box_lends_its_folder_and_what_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "library.lib").write_text("cells")
    tmp_path.chmod(0o755)
    script = f"cat a {tmp_path}/library.lib; echo 1 > made; echo 2 > /tmp/also; pwd"
    result = shell(script, inputs={"a": b"in "}, outputs=["made", "also"], isolate=True, readable=[tmp_path])
    assert result.stdout == b"in cells/box\n"
    assert result.outputs == {"made": b"1\n", "also": b"2\n"}


def test_links_out_of_the_box_are_not_followed(kind: str) -> None:
    script = "ln -s /etc/passwd one; ln -s /etc two; echo fine > three"
    result = shell(script, outputs=["one", "two/passwd", "three"], isolate=True)
    assert result.outputs == {"three": b"fine\n"}


def test_a_fork_bomb_and_its_children_end_with_the_box(kind: str) -> None:
    # Tagged by an unlikely argument, so that survivors can be found.
    script = "(setsid sleep 4321.25 &) ; (setsid sleep 4321.25 &); b() { b | b & }; b; sleep 4321.25"
    shell(script, isolate=True, limits=Limits(seconds=1, processes=64))
    deadline = time.monotonic() + 20
    while survivors := _sleepers():
        assert time.monotonic() < deadline, survivors
        time.sleep(0.1)


def _sleepers() -> list[list[str]]:
    lines = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "4321.25" in " ".join(line):
            lines.append(line)
    return lines


def test_without_a_sandbox_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "sandbox_kind", lambda: None)
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        shell("true", isolate=True)
    assert shell("true").status is ToolStatus.OK


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
@pytest.mark.parametrize("kind", KINDS)
def test_box_of_an_ordinary_user(kind: str, monkeypatch: pytest.MonkeyPatch, require: Require) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)
        monkeypatch.setattr(sandbox, "_is_root", lambda: False)
        script = "echo x > made; touch /usr/x || cat /proc/self/status | grep CapEff"
        command = sandbox._BUILDERS[kind](["sh", "-c", script], Path(folder), ())
        done = subprocess.run(command, user=65534, group=65534, cwd="/", capture_output=True, check=False)
        require(b"Operation not permitted" not in done.stderr, "user namespaces are forbidden here")
        assert int(done.stdout.split()[1], 16) == 0
        assert (Path(folder) / "made").read_text() == "x\n"
