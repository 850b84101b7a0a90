"""The study around LoT: claims, recipes, curves, and the verb for data of one's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tradeoff.cli import main
from tradeoff.core import Outcome, Outcomes, Trial, Verdict, measured
from tradeoff.core.errors import DataError, MissingOutcome, RecipeError
from tradeoff.methods.language_models.lot import claims, comparison
from tradeoff.methods.language_models.lot.comparison import compare_training, is_policy
from tradeoff.methods.language_models.lot.experiment import Curve, LoTSettings, Point
from tradeoff.methods.language_models.lot.study import LoTStudy

Cells = dict[tuple[str, str, int], dict[str, list[float]]]


def outcomes(cells: Cells) -> Outcomes:
    """Made-up outcomes by (variant, task, steps), values by seed."""
    return Outcomes(
        Outcome(
            trial=Trial(variant=variant, setting={"task": task, "steps": steps}, seed=seed),
            metrics={name: measured(values[seed]) for name, values in columns.items()},
        )
        for (variant, task, steps), columns in cells.items()
        for seed in range(len(next(iter(columns.values()))))
    )


def tradeoff(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 0


def text(loss: list[float], flops: float) -> dict[str, list[float]]:
    return {"loss": loss, "training_flops": [flops] * len(loss)}


LOW, HIGH, WIDE = [1.0, 1.01, 1.02], [1.2, 1.21, 1.22], [0.8, 1.4, 1.1]


@pytest.mark.parametrize(
    ("ours", "verdict"), [(LOW, Verdict.HOLDS), ([1.5, 1.51, 1.52], Verdict.FAILS), (WIDE, Verdict.UNDECIDED)]
)
def test_texts_at_equal_updates_and_operations(ours: list[float], verdict: Verdict) -> None:
    made = outcomes(
        {
            ("lot", "kjv", 400): text(LOW, 5),
            ("lot", "kjv", 600): text(ours, 10),
            ("plain", "kjv", 400): text(HIGH, 2),
            ("plain", "kjv", 600): text(HIGH, 3),
            ("plain", "kjv", 2000): text(HIGH, 10),
            ("plain", "kjv", 9000): text([0.1, 0.1, 0.1], 45),
            ("dropout", "kjv", 600): text(HIGH, 3),
        }
    )
    equal = claims.lower_loss_at_equal_updates(made)
    assert equal.verdict is verdict
    assert {"difference on kjv at 400", "difference on kjv at 600"} <= equal.numbers.keys()
    assert claims.lower_loss_at_equal_operations(made).verdict is verdict
    finding = claims.best_regularizer(made)
    assert finding.verdict is verdict
    assert "difference dropout on kjv" in finding.numbers


def test_plain_training_with_fewer_operations_does_not_count() -> None:
    made = outcomes({("lot", "kjv", 600): text(LOW, 10), ("plain", "kjv", 600): text(HIGH, 9)})
    with pytest.raises(MissingOutcome, match="as many operations"):
        claims.lower_loss_at_equal_operations(made)
    with pytest.raises(MissingOutcome, match="no other regularizer"):
        claims.best_regularizer(made)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([0.79, 0.83, 0.80], Verdict.HOLDS), ([0.70, 0.71, 0.72], Verdict.FAILS)],
)
def test_wrong_labels_within_a_standard_error(ours: list[float], verdict: Verdict) -> None:
    def image(accuracy: list[float], flops: float) -> dict[str, list[float]]:
        return text(LOW, flops) | {"accuracy": accuracy}

    plain = [0.80, 0.81, 0.82]
    made = outcomes(
        {
            ("lot", "digits, 30% noise", 360): image(ours, 2),
            ("plain", "digits, 30% noise", 360): image(plain, 1),
            ("plain", "digits, 30% noise", 720): image(plain, 2),
        }
    )
    finding = claims.robust_to_wrong_labels(made)
    assert finding.verdict is verdict
    assert finding.numbers["standard error at equal operations"] > 0
    with pytest.raises(MissingOutcome, match="no text"):
        claims.lower_loss_at_equal_updates(made)


@pytest.mark.parametrize(
    ("after", "noise", "verdict"),
    [(0.03, 0.4, Verdict.HOLDS), (0.9, 3.0, Verdict.FAILS), (0.03, 0.05, Verdict.FAILS)],
)
def test_hypothesis(after: float, noise: float, verdict: Verdict) -> None:
    cells: Cells = {
        ("true-labels", "imitation", 0): {"student_kl": [2.0, 2.2]},
        ("true-labels", "imitation", 20): {"student_kl": [after, after]},
        ("random-labels", "imitation", 0): {"student_kl": [1.0, 1.0]},
        ("random-labels", "imitation", 20): {"student_kl": [noise, noise]},
    }
    assert claims.generalizable_is_imitable(outcomes(cells)).verdict is verdict


@pytest.mark.parametrize(
    ("returns", "kl", "verdict"),
    [
        ([150.0, 130.0], 0.01, Verdict.HOLDS),
        ([50.0, 51.0], 0.01, Verdict.FAILS),
        ([150.0, 130.0], 0.3, Verdict.FAILS),
    ],
)
def test_policies(returns: list[float], kl: float, verdict: Verdict) -> None:
    cells: Cells = {
        ("plain", "CartPole-v1", 10): {"episode_return": [140.0, 141.0]},
        ("lot", "CartPole-v1", 10): {"episode_return": returns, "student_kl": [kl, kl]},
    }
    assert claims.policies_do_not_suffer(outcomes(cells)).verdict is verdict


def test_a_curve_is_read_at_any_length(tmp_path: Path) -> None:
    losses = {50: 2.0, 100: 1.5, 150: 1.7, 200: 1.4}
    points = [Point(step, loss, loss + 1, 0.5, None, step / 10, step) for step, loss in losses.items()]
    Curve(tuple(points), 7).write(tmp_path / "c")
    curve = Curve.read(tmp_path / "c")
    best, end = curve.at(150, "best")
    assert (best.step, end.step, end.flops) == (100, 150, 150)
    assert curve.at(150, "last")[0].step == 150
    assert curve.at(1000, "best")[0].step == 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("texts.0={corpus: kjv}", "texts"),
        ("images=[{data: digits, arch: vgg, every: 1, rows: {}, training: {steps: 1}}]", "small_cnn"),
        (
            "images=[{data: digits, every: 2, rows: {lot: [3]}, training: {steps: 2}}]",
            "no multiple of every=2",
        ),
        ("images=[{data: digits, every: 2, rows: {lot: []}, training: {epochs: 2}}]", "in steps"),
        ("images=[{data: digits, every: 1, rows: {magic: []}, training: {steps: 2}}]", "magic"),
    ],
)
def test_bad_recipes(change: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        LoTStudy().load_recipe("smoke", [change])


def test_recipes_need_something_to_do_and_names_that_differ() -> None:
    with pytest.raises(RecipeError, match="give texts"):
        LoTStudy.Recipe(minutes=1)
    twice = [{"environment": "CartPole-v1"}] * 2
    with pytest.raises(RecipeError, match="one name"):
        LoTStudy.Recipe(minutes=1, policies=twice)


def test_the_verb_prints_a_table_and_keeps_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    words = "lot train --task digits --examples 100 --noise 0.3 --steps 6 --seeds 2 --alpha 0,0.5,1"
    options = ["--out", str(tmp_path / "weights"), "--json", str(tmp_path / "numbers.json")]
    tradeoff(*words.split(), *options)
    printed = capsys.readouterr()
    assert "plain, as many operations" in printed.out
    assert "test accuracy" in printed.out
    rows = json.loads((tmp_path / "numbers.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [
        "plain",
        "LoT, alpha 0.5",
        "LoT, alpha 1",
        "plain, as many operations",
    ]
    per_step = rows[0]["flops"] / 6
    assert 0 <= rows[-1]["flops"] - rows[2]["flops"] < per_step
    assert rows[-1]["flops"] == rows[-1]["steps"] * per_step
    assert rows[0]["peak_memory"] > 0
    weights = load_file(tmp_path / "weights" / "seed-1.safetensors")
    assert "fc.weight" in weights


def test_the_verb_learns_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    arguments: dict[str, Any] = {"alphas": [0.5], "seeds": 1, "batch_size": 4, "learning_rate": 0.004}
    title, rows = compare_training(
        str(file), steps=4, lot=LoTSettings(student_steps=1), train_bytes=1000, **arguments
    )
    assert title == "test loss, nats"
    assert [row.steps for row in rows] == [4, 4, 8]
    with pytest.raises(DataError, match="tokens to train on"):
        compare_training(str(file), steps=4, lot=LoTSettings(), train_bytes=10**6, **arguments)
    with pytest.raises(DataError, match="no data 'nothing'"):
        compare_training("nothing", steps=4, lot=LoTSettings(), **arguments)


def test_policies_are_told_by_their_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert is_policy("CartPole-v1")
    assert not is_policy("digits")
    pytest.importorskip("gymnasium")
    tradeoff(*["lot", "train", "--task", "CartPole-v1", "--steps", "600", "--seeds", "1", "--alpha", "0.5"])
    assert "return of an episode" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"), [("--out file", "cannot write to file"), ("--device tpu9", "'tpu9' cannot be used")]
)
def test_what_cannot_end_well_is_refused_before_the_training(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparison, "run_variant", lambda *_, **__: pytest.fail("trained"))
    Path("file").touch()
    with pytest.raises(SystemExit) as caught:
        main(["lot", "train", "--task", "digits", *words.split()])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("alpha", ["half", "-1", ""])
def test_bad_alphas(alpha: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["lot", "train", "--task", "digits", "--alpha", alpha])
    assert caught.value.code == 2
