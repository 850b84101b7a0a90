"""The verbs as a user types them."""

import json
import subprocess
import sys

import pytest


def tradeoff(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tradeoff", *arguments], capture_output=True, text=True)


def test_cost_of_matrices():
    done = tradeoff("crossbar", "cost", "--shape", "768x768", "--shape", "768x3072", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [layer["crossbars"]["value"] for layer in document["layers"]] == [288, 1152]
    assert document["totals"]["energy"]["kind"] == "modelled"
    table = tradeoff("crossbar", "cost", "--shape", "768x768")
    assert "modelled (ISAAC 32 nm)" in table.stdout
    assert "288" in table.stdout


@pytest.mark.slow
def test_simulate_writes_what_it_prints(tmp_path):
    out = tmp_path / "run.json"
    words = [
        "crossbar",
        "simulate",
        "--model",
        "lenet_300_100",
        "--task",
        "digits",
        "--seeds",
        "3",
        "--out",
        str(out),
    ]
    done = tradeoff(*words, "--rate", "0", "--rate", "0.2", "--examples", "200")
    assert done.returncode == 0, done.stderr
    assert "floating point" in done.stdout
    document = json.loads(out.read_text())
    clean, broken = (row["accuracy"] for row in document["chips"])
    assert clean == [document["accuracy_without_defects"]["value"]] * 3
    assert sum(broken) / 3 < clean[0] - 0.1
    assert abs(clean[0] - document["accuracy_float"]["value"]) <= 0.02
    assert document["report"]["totals"]["products"]["value"] == 3
    again = tradeoff(*words, "--rate", "0", "--rate", "0.2", "--examples", "200", "--json")
    assert json.loads(again.stdout) == document == json.loads(out.read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fault-preset", "pcm"], "no fault preset 'pcm'"),
        (["--fault-preset", "hfo2", "--rate", "0.1"], "either --fault-preset or --rate"),
        (["--rate", "1.5"], "p_stuck_on is 1.26"),
        (["--adc-bits", "many"], "a number of bits or ideal"),
        (["--cols", "4"], "takes 8 columns"),
        (["--components", "absent.yaml"], "cannot read absent.yaml"),
        (["--encoding", "unary"], "no encoding 'unary'"),
        (["--out", "."], "it is a folder"),
    ],
)
def test_wrong_options_end_with_one_line_before_any_work(words, message):
    from typer.testing import CliRunner

    from tradeoff.engines.crossbar.commands import app

    result = CliRunner().invoke(app, ["simulate", "--model", "lenet_300_100", "--task", "digits", *words])
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
    assert result.exception is not None


def test_matrices_that_are_none():
    done = tradeoff("crossbar", "cost", "--shape", "768")
    assert done.returncode == 2
    assert "OUTPUTSxINPUTS" in done.stderr
    assert "Traceback" not in done.stderr
