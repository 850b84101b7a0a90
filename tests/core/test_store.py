"""The store: atomic, claimed by one process at a time, and unmoved by what does not belong in it."""

import json
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradeoff.core import Outcome, Recipe, Trial, measured
from tradeoff.core.context import cached_folder
from tradeoff.core.errors import StoreError, UnknownName
from tradeoff.core.files import write_atomic
from tradeoff.core.store import Holder, RunFolder, latest_run, parse_outcome

TRIAL = Trial(variant="a", setting={"b": 1}, seed=0)
OUTCOME = Outcome(trial=TRIAL, metrics={"accuracy": measured(0.5)})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "example", Recipe(minutes=1))


def test_save_and_load(folder: RunFolder) -> None:
    assert folder.load(TRIAL) is None
    folder.save(OUTCOME)
    assert folder.load(TRIAL) == OUTCOME
    assert folder.scan() == ({TRIAL.key: OUTCOME}, [])
    assert folder.header == ("example", {"seeds": 3, "minutes": 1.0})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"trial": NaN}',
        b"1" * 5000,
        b" " * (9 * 2**20),
        OUTCOME.model_dump_json().replace('"accuracy"', '"acuracy"').encode(),
        OUTCOME.model_dump_json().replace("0.5", "1e999").encode(),
        OUTCOME.model_dump_json().replace('"a"', '"\\udcff"').encode(),
        OUTCOME.model_dump_json().replace('"artifact":null', '"artifact":"../../x"').encode(),
        OUTCOME.model_dump_json().replace('"seed":0', '"seed":1').encode(),
    ],
    ids=range(13),
)
def test_damaged_files_are_named_ignored_and_kept(folder: RunFolder, content: bytes) -> None:
    path = folder.path / "trials" / f"{TRIAL.key}.json"
    path.parent.mkdir()
    path.write_bytes(content)
    (path.parent / "notes.txt").write_text("mine")
    assert folder.load(TRIAL) is None
    outcomes, problems = folder.scan()
    assert outcomes == {}
    assert len(problems) == 2
    assert path.name in problems[0]
    assert "notes.txt" in problems[1]
    folder.save(OUTCOME)
    assert folder.load(TRIAL) == OUTCOME
    kept = [other.read_bytes() for other in path.parent.iterdir() if "damaged" in other.name]
    assert kept == [content]
    assert (path.parent / "notes.txt").read_text() == "mine"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PARTS = ("trial", "metrics", "artifact", "provenance")


@given(data=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_outcome_or_a_store_error(data: bytes) -> None:
    with suppress(StoreError):
        parse_outcome(data, "fuzz")


@given(part=st.sampled_from(PARTS), value=JSON, key=st.text(max_size=10))
def test_any_changed_outcome_is_one_or_a_store_error(part: str, value: object, key: str) -> None:
    document = json.loads(OUTCOME.model_dump_json())
    if isinstance(document[part], dict):
        document[part][key] = value
    else:
        document[part] = value
    with suppress(StoreError):
        parse_outcome(json.dumps(document).encode(), "fuzz")


def test_unwritable_places_are_store_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_atomic(tmp_path / "file" / "x.json", b"1")


def test_a_claim_is_exclusive_and_ends(folder: RunFolder) -> None:
    with folder.claim(TRIAL) as first:
        assert first
        with folder.claim(TRIAL) as second:
            assert not second
        assert folder.held([TRIAL])[TRIAL].pid == os.getpid()
    assert folder.holder(TRIAL) is None
    with folder.claim(TRIAL) as again:
        assert again


def _write_claim(folder: RunFolder, **changes: object) -> None:
    path = folder.path / "locks" / f"{TRIAL.key}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(Holder.current().model_dump() | changes))


def test_claims_of_the_dead_and_of_a_reused_process_number_are_void(folder: RunFolder) -> None:
    dead = multiprocessing.get_context("spawn").Process(target=time.time)
    dead.start()
    dead.join()
    for changes in (
        {"pid": dead.pid},
        {"start": psutil.Process().create_time() - 3600},
        {"pid": 2**70},
        {"pid": -5},
    ):
        _write_claim(folder, **changes)
        with folder.claim(TRIAL) as claimed:
            assert claimed, changes


def test_claims_of_other_hosts_hold(folder: RunFolder) -> None:
    _write_claim(folder, host="elsewhere", pid=1)
    with folder.claim(TRIAL) as claimed:
        assert not claimed


def test_damaged_claims_are_void(folder: RunFolder) -> None:
    (folder.path / "locks").mkdir()
    (folder.path / "locks" / f"{TRIAL.key}.json").write_text("{")
    with folder.claim(TRIAL) as claimed:
        assert claimed


def _race(folder: RunFolder, wins: Path) -> None:
    with folder.claim(TRIAL) as claimed:
        if claimed and folder.load(TRIAL) is None:
            (wins / str(os.getpid())).touch()
            folder.save(OUTCOME)


def test_one_of_many_processes_takes_over_a_stale_claim(folder: RunFolder, tmp_path: Path) -> None:
    _write_claim(folder, start=1.0)
    wins = tmp_path / "wins"
    wins.mkdir()
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_race, args=(folder, wins)) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(list(wins.iterdir())) == 1


def _die_while_building(root: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)

    cached_folder(root, {"a": 1}, build)


def test_the_cache_builds_once_and_survives_a_kill(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_die_while_building, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    built: list[Path] = []

    def build(folder: Path) -> None:
        assert list(folder.iterdir()) == [], "a dead process's leavings are still there"
        (folder / "whole").write_text("x")
        built.append(folder)

    first = cached_folder(tmp_path, {"a": 1}, build)
    assert cached_folder(tmp_path, {"a": 1}, build) == first
    assert (first / "whole").read_text() == "x"
    assert len(built) == 1
    assert cached_folder(tmp_path, {"a": 2}, build) != first


def test_a_failed_build_is_not_kept(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached_folder(tmp_path, {"a": 1}, fail)
    folder = cached_folder(tmp_path, {"a": 1}, lambda folder: (folder / "whole").touch())
    assert not (folder / "half").exists()


def test_run_folders_are_found(folder: RunFolder, tmp_path: Path) -> None:
    assert latest_run(tmp_path, "example") == folder
    with pytest.raises(UnknownName, match="tradeoff run other"):
        latest_run(tmp_path, "other")
    with pytest.raises(UnknownName, match="not a run folder"):
        RunFolder.open(tmp_path)
    (folder.path / "recipe.json").write_text('{"method": 3}')
    with pytest.raises(StoreError, match="must hold a method"):
        _ = folder.header
