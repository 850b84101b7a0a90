"""A study that is killed, interrupted, run twice at once, or run on Ray."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Tradeoff

RUN = ("run", "toy-rounding", "--recipe", "smoke", "--json", "--set")
CALM = (*RUN, "pause=0")


def stored(folder: Path) -> list[Path]:
    return list(folder.glob("runs/toy-rounding/*/trials/*.json"))


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def comparable(document: dict[str, Any]) -> list[Any]:
    """Outcomes without what a clock gave."""
    for outcome in document["outcomes"]:
        del outcome["metrics"]["training_seconds"]
    return document["outcomes"]


def test_killed_in_the_middle_of_a_trial(tradeoff: Tradeoff, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    words = (*RUN, "pause=1.5", "--workers", "1")
    first = tradeoff.start(*words, cwd=tmp_path, env={"TOY_TRACE": str(trace)})
    # Three trials stored, the fourth begun.
    wait_for(lambda: len(stored(tmp_path)) == 3 and len(trace.read_text().split()) == 4, first)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.communicate()
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in stored(tmp_path)}
    assert not psutil.wait_procs(workers, timeout=20)[1], "a worker outlived the study"

    second = tradeoff(*words, cwd=tmp_path, env={"TOY_TRACE": str(trace)})
    assert second.returncode == 0, second.stderr
    document = json.loads(second.stdout)
    assert len(document["outcomes"]) == 8
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept} == kept
    runs = Counter(trace.read_text().split())
    assert sorted(runs.values()) == [1] * 7 + [2], "only the trial in flight may run twice"
    assert all(runs[path.stem] == 1 for path in kept)
    assert "ignored" not in second.stderr
    for path in stored(tmp_path):
        json.loads(path.read_text())
    assert not list(tmp_path.glob("runs/toy-rounding/*/locks/*.json"))


def test_interrupted_by_the_user(tradeoff: Tradeoff, tmp_path: Path) -> None:
    words = (*RUN, "pause=1", "--workers", "1")
    process = tradeoff.start(*words, cwd=tmp_path)
    wait_for(lambda: len(stored(tmp_path)) == 2, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 8 trials are stored. To go on:" in stderr
    assert "tradeoff run toy-rounding --recipe smoke" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not psutil.wait_procs(workers, timeout=20)[1]
    assert not list(tmp_path.glob("runs/toy-rounding/*/locks/*.json")), "an interrupted trial stayed claimed"


def test_two_runs_at_once(tradeoff: Tradeoff, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    words = (*RUN, "pause=0.5", "--workers", "2")
    processes = [tradeoff.start(*words, cwd=tmp_path, env={"TOY_TRACE": str(trace)}) for _ in range(2)]
    results = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    runs = Counter(trace.read_text().split())
    assert len(runs) == 8
    assert set(runs.values()) == {1}, "a trial ran twice"
    first, second = (json.loads(stdout) for stdout, _ in results)
    assert first["outcomes"] == second["outcomes"]
    assert len(first["outcomes"]) == 8


@pytest.mark.slow
def test_ray_gives_the_same_outcomes(
    tradeoff: Tradeoff, tmp_path: Path, require: Callable[[object, str], None]
) -> None:
    require(find_spec("ray"), "Ray is not installed: pip install 'tradeoff[distributed]'")
    local = tradeoff(*CALM, "--runs", "local", cwd=tmp_path)
    words = (*CALM, "--runs", "ray", "--executor", "ray")
    on_ray = tradeoff(*words, cwd=tmp_path, env={"RAY_ADDRESS": "", "RAY_DISABLE_IMPORT_WARNING": "1"})
    assert on_ray.returncode == 0, on_ray.stderr
    first, second = json.loads(local.stdout), json.loads(on_ray.stdout)
    assert comparable(first) == comparable(second)
    assert os.path.basename(first["run"]) == os.path.basename(second["run"])
    names = [sorted(path.name for path in tmp_path.glob(f"{runs}/*/*/trials/*")) for runs in ("local", "ray")]
    assert names[0] == names[1]
    # Stored outcomes are taken up by the other executor, and a failed trial is reported by it as well.
    trace = tmp_path / "trace"
    again = tradeoff(*CALM, "--runs", "ray", cwd=tmp_path, env={"TOY_TRACE": str(trace)})
    assert again.returncode == 0
    assert not trace.exists()
