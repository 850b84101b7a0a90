"""The command line as a user types it: what it prints, what it refuses, and what it imports."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Tradeoff

HEAVY = ("torch", "numpy", "pydantic", "rich", "matplotlib", "plotly", "yaml", "psutil", "scipy")


@pytest.mark.parametrize("words", [["-c", "import tradeoff"], ["-m", "tradeoff", "--help"]])
def test_help_and_import_pull_in_nothing_heavy(tradeoff: Tradeoff, words: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, env=tradeoff.environment, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "tradeoff" in imported
    assert imported.isdisjoint(HEAVY)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wrong inputs in it."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "binary.yaml").write_bytes(b"\x00\xff")
    (folder / "evil.yaml").write_text("bits: !!python/object/apply:os.system [ls]\n")
    (folder / "empty").mkdir()
    damaged = folder / "damaged"
    damaged.mkdir()
    (damaged / "recipe.json").write_text("{")
    foreign = folder / "foreign"
    foreign.mkdir()
    (foreign / "recipe.json").write_text('{"method": "toy-rounding", "recipe": {"bitz": [1], "minutes": 1}}')
    gone = folder / "gone"
    gone.mkdir()
    (gone / "recipe.json").write_text('{"method": "toy-rouding", "recipe": {}}')
    (folder / "file").write_text("")
    return folder


RUN = ("run", "toy-rounding", "--recipe")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("run", "toy-rouding"), 2, "UnknownName: no method 'toy-rouding'; did you mean 'toy-rounding'?"),
        (("show", "x"), 2, "UnknownName: no method 'x'"),
        ((*RUN, "smok"), 2, "RecipeError: toy-rounding has no recipe 'smok'; did you mean 'smoke'?"),
        ((*RUN, "absent.yaml"), 2, "RecipeError: cannot read recipe absent.yaml"),
        ((*RUN, "list.yaml"), 2, "RecipeError: list.yaml: must be a mapping"),
        ((*RUN, "binary.yaml"), 2, "RecipeError: binary.yaml: not valid YAML"),
        ((*RUN, "evil.yaml"), 2, "RecipeError: evil.yaml: not valid YAML"),
        ((*RUN, "smoke", "--set", "bitz=[1]"), 2, "unknown key 'bitz'; did you mean 'bits'?"),
        (
            (*RUN, "smoke", "--set", "bits=some"),
            2,
            "recipe smoke: bits: input should be a valid list",
        ),
        ((*RUN, "smoke", "--set", "bits"), 2, "RecipeError: --set 'bits': write key=value"),
        ((*RUN, "smoke", "--set", "numbers=1"), 2, "numbers: input should be greater than or equal to 2"),
        ((*RUN, "smoke", "--set", "pause=.nan"), 2, "pause: "),
        ((*RUN, "smoke", "--seeds", "0"), 2, "RecipeError: recipe smoke: seeds"),
        ((*RUN, "smoke", "--seeds", "three"), 2, "'--seeds'"),
        ((*RUN, "smoke", "--workers", "0"), 2, "workers"),
        ((*RUN, "smoke", "--executor", "cloud"), 2, "cloud"),
        ((*RUN, "smoke", "--no-such-option"), 2, "no-such-option"),
        ((*RUN, "smoke", "--runs", "file"), 1, "StoreError: cannot write"),
        (("compare", "toy-rounding"), 2, "UnknownName: no run of toy-rounding in runs; make one"),
        (("report", "empty"), 2, "UnknownName: empty is not a run folder"),
        (("report", "runs/absent"), 2, "UnknownName: runs/absent is not a run folder"),
        (("report", "damaged"), 1, "StoreError: "),
        (("report", "foreign"), 2, "unknown key 'bitz'; did you mean 'bits'"),
        (("report", "gone"), 2, "did you mean 'toy-rounding'?"),
        (("frobnicate",), 2, "No such command 'frobnicate'"),
        (("toy-rounding", "stor"), 2, "stor"),
    ],
)
def test_wrong_input_gives_a_named_error_and_no_traceback(
    tradeoff: Tradeoff, workplace: Path, words: tuple[str, ...], status: int, message: str
) -> None:
    done = tradeoff(*words, cwd=workplace)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == status
    assert done.stdout == ""


def test_debug_shows_where(tradeoff: Tradeoff, workplace: Path) -> None:
    done = tradeoff("run", "nothing", "--debug", cwd=workplace)
    assert "Traceback" in done.stderr
    assert "UnknownName" in done.stderr


def test_failed_trials_are_named_and_the_rest_is_shown(tradeoff: Tradeoff, tmp_path: Path) -> None:
    done = tradeoff(*RUN, "smoke", "--set", "fail_at=4", "--set", "crash_at=2", "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert "failed: rounding bits=4 seed=0: ValueError: 4 bits are not supported" in done.stderr
    assert "failed: cutting bits=2 seed=1: TrialFailed: the worker process ended with status 7" in done.stderr
    assert json.loads(done.stdout)["outcomes"] == []


def test_long_runs_are_announced(tradeoff: Tradeoff, tmp_path: Path) -> None:
    done = tradeoff(*RUN, "smoke", "--set", "minutes=20", "--set", "bits=[1]", cwd=tmp_path)
    assert "4 of 4 trials to run, about 20 minutes on 2 cores" in done.stderr


def test_doctor(tradeoff: Tradeoff, tmp_path: Path) -> None:
    done = tradeoff("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0
    areas = {finding["area"] for finding in json.loads(done.stdout)["findings"]}
    assert areas == {"machine", "extra", "native", "tool", "sandbox", "data"}
    assert "sandbox" in tradeoff("doctor", cwd=tmp_path).stdout


def test_version(tradeoff: Tradeoff, tmp_path: Path) -> None:
    import tradeoff as package

    assert tradeoff("--version", cwd=tmp_path).stdout.strip() == package.__version__


def test_bars_on_a_terminal(tradeoff: Tradeoff, tmp_path: Path) -> None:
    """Standard error is a terminal here: progress is drawn there, and standard output stays clean."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tradeoff", *RUN, "smoke", "--json"],
        cwd=tmp_path,
        env={**tradeoff.environment, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    drawn = b""
    while chunk := _read(ours):
        drawn += chunk
    stdout, _ = process.communicate(timeout=120)
    assert len(json.loads(stdout)["outcomes"]) == 8
    assert b"trials" in drawn


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux reports the end of a terminal so
        return b""
