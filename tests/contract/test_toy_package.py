"""A method in another package: found, run, resumed, reported and compared without a change here."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Tradeoff
from tradeoff.core.contract import check_method


def test_keeps_the_contract(toy_class: type[Any]) -> None:
    names = []
    for check in check_method(toy_class()):
        check()
        names.append(check.name)
    assert len(names) == 9


@pytest.fixture(scope="module")
def workplace(tradeoff: Tradeoff, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the toy's smoke study has been run."""
    folder = tmp_path_factory.mktemp("workplace")
    done = tradeoff("run", "toy-rounding", "--recipe", "smoke", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_found(tradeoff: Tradeoff, tmp_path: Path) -> None:
    listed = json.loads(tradeoff("list", "--json", cwd=tmp_path).stdout)
    assert "toy-rounding" in [method["name"] for method in listed["methods"]]
    shown = tradeoff("show", "toy-rounding", cwd=tmp_path)
    facts = ("Journal of Examples", "bits for each number", "list[int]", "smoke (0.01 min)", "is exact")
    for fact in facts:
        assert fact in shown.stdout


def test_run_and_resumed(tradeoff: Tradeoff, workplace: Path) -> None:
    trace = workplace / "trace"
    again = tradeoff(
        "run", "toy-rounding", "--recipe", "smoke", "--json", cwd=workplace, env={"TOY_TRACE": str(trace)}
    )
    assert again.returncode == 0
    assert not trace.exists(), "a stored trial ran again"
    document = json.loads(again.stdout)
    assert list(document) == ["method", "recipe", "run", "seconds", "outcomes", "claims", "frontier"]
    assert document["method"] == "toy-rounding"
    assert document["run"].startswith("runs/toy-rounding/")
    assert len(document["outcomes"]) == 8
    first = document["outcomes"][0]
    assert first["trial"] == {"variant": "rounding", "setting": {"bits": 2}, "seed": 0}
    assert first["metrics"]["model_bytes"] == {"value": 50.0, "kind": "counted"}
    assert (workplace / document["run"] / first["artifact"]).is_file()
    assert [claim["verdict"] for claim in document["claims"]] == ["holds", "fails", "undecided"]
    assert document["frontier"] == [0, 1, 2, 3]
    stored = json.loads(next((workplace / document["run"] / "trials").iterdir()).read_text())
    assert stored["provenance"]["versions"]["toy_rounding"] == "1.2.3"


def test_more_seeds_extend_the_run(tradeoff: Tradeoff, workplace: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    words = ("run", "toy-rounding", "--recipe", "smoke", "--seeds", "3", "--json")
    document = json.loads(tradeoff(*words, cwd=workplace, env={"TOY_TRACE": str(trace)}).stdout)
    assert len(document["outcomes"]) == 12
    assert len(trace.read_text().split()) == 4


def test_reported(tradeoff: Tradeoff, workplace: Path) -> None:
    folder = next((workplace / "runs" / "toy-rounding").iterdir())
    (folder / "report.html").unlink()
    (folder / "report.png").unlink()
    (folder / "trials" / "notes.txt").write_text("mine")
    done = tradeoff("report", "toy-rounding", cwd=workplace)
    assert done.returncode == 0
    assert "notes.txt: not a file of the store" in done.stderr
    (folder / "trials" / "notes.txt").unlink()
    assert "accuracy" in done.stdout
    assert "fails" in done.stdout
    assert (folder / "report.html").stat().st_size > 1e6
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_compared(tradeoff: Tradeoff, workplace: Path) -> None:
    words = ("run", "toy-rounding", "--recipe", "smoke", "--json")
    folders = [
        json.loads(tradeoff(*words, *change, cwd=workplace).stdout)["run"]
        for change in ((), ("--set", "bits=[3]"))
    ]
    done = tradeoff("compare", *folders, cwd=workplace)
    assert done.returncode == 0
    hashes = [Path(folder).name[:6] for folder in folders]
    for shown in ("model_bytes", "rounding", "cutting", *(f"toy-rounding {name}" for name in hashes)):
        assert shown in done.stdout
    document = json.loads(tradeoff("compare", *folders, "--json", cwd=workplace).stdout)
    assert document["quantities"] == ["model_bytes", "accuracy", "training_seconds"]
    assert [study["run"] for study in document["studies"]] == folders


def test_own_verbs(tradeoff: Tradeoff, tmp_path: Path) -> None:
    assert "toy-rounding" in tradeoff("--help", cwd=tmp_path).stdout
    assert tradeoff("toy-rounding", "store", "0.3", "--bits", "1", cwd=tmp_path).stdout == "0.0\n"


def test_strict_makes_a_failed_claim_an_error(tradeoff: Tradeoff, workplace: Path) -> None:
    assert tradeoff("run", "toy-rounding", "--recipe", "smoke", "--strict", cwd=workplace).returncode == 1


def test_broken_package_is_named_and_left_out(tradeoff: Tradeoff, tmp_path: Path) -> None:
    facts = tmp_path / "broken-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[tradeoff.methods]\nbroken = broken_method:Broken\n")
    (tmp_path / "broken_method.py").write_text("raise RuntimeError('half installed')\n")
    env = {"PYTHONPATH": f"{tradeoff.environment['PYTHONPATH']}:{tmp_path}"}
    done = tradeoff("list", "--json", cwd=tmp_path, env=env)
    assert done.returncode == 0
    assert "toy-rounding" in done.stdout
    assert "broken is left out" in done.stderr
    assert "half installed" in done.stderr
    shown = tradeoff("show", "broken", cwd=tmp_path, env=env)
    assert shown.returncode == 2
    assert "MethodError" in shown.stderr
    assert "Traceback" not in shown.stderr
