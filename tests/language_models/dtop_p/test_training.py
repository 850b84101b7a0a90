"""Trainings of the study: what they measure, and that the controller is what holds the budget."""

import itertools
import math
import statistics

import pytest
import torch

from tradeoff.core import Outcome, Outcomes, Trial, Verdict, measured
from tradeoff.core.errors import RecipeError
from tradeoff.core.registry import load_method
from tradeoff.methods.language_models.dtop_p import ControlError, Controller, ControlWarning
from tradeoff.methods.language_models.dtop_p.routers import RouterChoice
from tradeoff.methods.language_models.dtop_p.tasks import DigitsTask, Switchable, TextTask
from tradeoff.methods.language_models.dtop_p.training import Run, Size, train

TINY = TextTask(
    corpus="python", other="python", length=32, batch=8, steps=120, warmup=70, dim=32, layers=2, heads=2,
    active_width=32, held_out=32, learning_rate=1e-2,
)  # fmt: skip
SHORT = TINY.model_copy(update={"steps": 6, "warmup": 2})
SIZE, EFFECT = Size(8, 2), Size(16, 4)


def run(
    router: str, task: TextTask | DigitsTask = SHORT, scenario="steady", seed: int = 0, size: Size = SIZE
) -> Run:
    torch.set_num_threads(1)
    return train(task, RouterChoice.parse(router), size, scenario, seed)


@pytest.fixture(scope="module")
def trained() -> dict[str, Run]:
    return {router: run(router, TINY, size=EFFECT) for router in ("dtop_p", "topp:0.4")}


def test_the_controller_holds_the_target_and_a_fixed_threshold_does_not(trained):
    ours, fixed = trained["dtop_p"], trained["topp:0.4"]
    assert ours.budget_error < 0.05
    assert ours.budget_excursion < 0.1
    assert fixed.budget_error > 0.1
    assert ours.last_active == pytest.approx(statistics.fmean(ours.active[30:70]), rel=0.1)
    assert ours.losses[-1] < ours.losses[0] - 1
    assert ours.loss < fixed.loss * 1.05
    assert ours.diagnosis.startswith("holding")
    assert ours.flops_per_token == pytest.approx(statistics.fmean(ours.active) * 2 * 2 * 3 * 32 * 8)


def test_a_controller_that_never_steps_loses_the_target(monkeypatch):
    monkeypatch.setattr(Controller, "step", lambda self: None)
    assert run("dtop_p", TINY.model_copy(update={"steps": 60}), size=EFFECT).budget_error > 0.1


def test_a_training_is_the_same_each_time():
    one, two = run("dtop_p"), run("dtop_p")
    assert one.model_copy(update={"step_seconds": 0}) == two.model_copy(update={"step_seconds": 0})
    assert run("dtop_p", seed=1).losses != one.losses


def test_top_k_and_dense_have_the_same_operations():
    top_k, dense = run("topk"), run("dense")
    assert set(top_k.active) == {2.0}
    assert set(top_k.spread) == {0.0}
    assert dense.active == ()
    assert dense.flops_per_token == top_k.flops_per_token == 2 * 3 * 32 * 32 * 2


@pytest.mark.parametrize("router", ["pi", "dtop_p:layer", "expert_choice", "sigmoid"])
def test_every_router_trains(router):
    found = run(router)
    assert math.isfinite(found.loss)
    assert len(found.active) == len(found.losses) == 6
    assert bool(found.threshold) == RouterChoice.parse(router).is_controlled


def test_a_new_target_from_the_middle_on():
    found = run("dtop_p", scenario="retarget")
    assert found.targets == (2, 2, 2, 2, 3, 3)
    assert found.settled_from == 4 + 60


def test_other_data_from_the_middle_on():
    task = SHORT.model_copy(update={"other": __file__})
    found, plain = run("dtop_p", task, "switch"), run("dtop_p", task)
    length = len(task.other_training())
    assert length < len(task.training())
    assert found.settled_from == 4 + 20
    assert found.losses != plain.losses


def test_data_switch_between_batches():
    data = Switchable([[1, 2, 3], [4, 5]])  # type: ignore[list-item]
    assert (len(data), data[1]) == (2, 2)
    data.switch()
    assert (len(data), data[1]) == (2, 5)


def test_high_gains_are_named():
    with pytest.warns(ControlWarning, match="oscillating"):
        found = run("dtop_p", TINY.model_copy(update={"steps": 60}), "high-gains")
    assert found.swings >= 4
    assert found.diagnosis.startswith("oscillating")


def test_digits_report_their_quarters():
    task = DigitsTask(steps=4, batch=8, dim=16, layers=2, heads=2, active_width=16, held_out=8)
    found = run("dtop_p", task)
    assert list(found.group_active) == ["cleanest", "clean", "noisy", "noisiest"]
    assert all(1 <= active <= 8 for active in found.group_active.values())
    assert found.loss == run("dtop_p", task).loss
    batches = task.held_out_batches()
    assert [int(targets[:, 1].min()) // 250 for _, targets in batches] == [0, 1, 2, 3]
    assert math.isfinite(run("dtop_p", task, "switch").loss)


def make(active: list[float], target: float = 4, settled: int = 0) -> Run:
    n = len(active)
    return Run(
        loss=1, group_active={}, losses=(1,) * n, active=tuple(active), spread=(0,) * n,
        per_layer=((1, 2),) * n, threshold=(), imbalance=(1,) * n, targets=(target,) * n, flops_per_token=1,
        diagnosis="", step_seconds=1, settled_from=settled,
    )  # fmt: skip


def test_excursion_drift_and_error_by_hand():
    found = make([9.0] * 30 + [4.0] * 30 + [4.4] * 10 + [4.0] * 30, settled=30)
    assert found.budget_excursion == pytest.approx(0.05)  # ten of the twenty steps a tenth too high
    assert found.budget_error == pytest.approx(0.02)
    assert found.budget_drift == 0
    falling = make([8 - 0.05 * step for step in range(100)], settled=20)
    first, last = 8 - 0.05 * 29.5, 8 - 0.05 * 89.5
    assert falling.budget_drift == pytest.approx(1 - last / first)
    assert falling.budget_excursion == pytest.approx(first / 4 - 1)
    assert make([4.0] * 5, settled=64).budget_excursion == 0


@pytest.mark.parametrize(
    ("text", "words"), [("16a4", "write e16a4"), ("e4a5", "5 active of 4"), ("e4", "write")]
)
def test_bad_sizes(text, words):
    with pytest.raises(ControlError, match=words):
        Size.parse(text)


def test_what_cannot_be_trained():
    with pytest.raises(ControlError, match="topk has no controller that retarget"):
        run("topk", scenario="retarget")
    with pytest.raises(ControlError, match="32 hidden units do not divide"):
        train(SHORT, RouterChoice.parse("topk"), Size(8, 3), "steady", 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("routers=[hash]", "no router 'hash'"),
        ("sizes=[e16a5]", "do not divide over the active experts of e16a5"),
        ("sizes=[]", "sizes"),
        ("disturbed.retarget=[topk]", "topk has no controller"),
        ("disturbed.nap=[dtop_p]", "disturbed"),
        ("task.task=music", "task"),
        ("task.steps=0", "steps"),
    ],
)
def test_bad_recipes(change, words):
    with pytest.raises(RecipeError, match=words):
        load_method("dtop-p").load_recipe("default", [change])


def test_claims_decide_by_the_numbers():
    method = load_method("dtop-p")
    claims = {claim.check.__name__: claim for claim in method.claims}
    assert all(claim.evaluate(Outcomes()).verdict is Verdict.UNDECIDED for claim in method.claims)

    def outcomes(router: str, name: str, values: list[float], run: str = "steady") -> list[Outcome]:
        setting = {"size": "e16a4", "run": run}
        return [
            Outcome(trial=Trial(variant=router, setting=setting, seed=s), metrics={name: measured(value)})
            for s, value in enumerate(values)
        ]

    def verdict(claim: str, *groups: list[Outcome]) -> Verdict:
        return claims[claim].check(Outcomes(itertools.chain(*groups))).verdict

    excursions = "budget_excursion"
    assert verdict("holds_the_target", outcomes("dtop_p", excursions, [0.03, 0.04])) is Verdict.HOLDS
    assert verdict("holds_the_target", outcomes("dtop_p", excursions, [0.03, 0.06])) is Verdict.FAILS
    assert verdict("holds_the_target", outcomes("dtop_p", excursions, [0.03])) is Verdict.UNDECIDED
    drifts = outcomes("topp:0.4", excursions, [0.5, 0.52]), outcomes("topp:0.25", excursions, [0.7, 0.71])
    assert verdict("fixed_top_p_leaves", *drifts) is Verdict.HOLDS
    assert verdict("fixed_top_p_leaves", outcomes("topp:0.4", excursions, [0.1, 0.11])) is Verdict.FAILS
    near, far = (
        outcomes(f"topp:{p}", "budget_error", errors) for p, errors in ((0.4, [0.1, 0.1]), (0.2, [0.2, 0.2]))
    )
    assert verdict("fixed_top_p_misses", near, far) is Verdict.HOLDS
    assert verdict("fixed_top_p_misses", near) is Verdict.FAILS
    for loss, expected in ((1.01, Verdict.HOLDS), (1.03, Verdict.FAILS)):
        pair = outcomes("dtop_p", "loss", [loss, 2 * loss]), outcomes("topk", "loss", [1.0, 2.0])
        assert verdict("as_good_as_top_k", *pair) is expected
        assert verdict("better_than_top_k", *pair) is not Verdict.HOLDS
    swings = outcomes("dtop_p", "swings", [30, 31], "high-gains")
    assert verdict("high_gains_oscillate", swings, outcomes("dtop_p", "swings", [0, 0])) is Verdict.HOLDS
    assert verdict("high_gains_oscillate", swings, outcomes("dtop_p", "swings", [0, 5])) is Verdict.FAILS


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_router(tradeoff, tmp_path):
    words = [
        "--router",
        "topk,dtop_p",
        "--experts",
        "8",
        "--active",
        "2",
        "--steps",
        "3",
        "--corpus",
        "python",
    ]
    done = tradeoff("dtop-p", "train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "MFLOP/token" in done.stdout
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert rows[-2:] == ["topk", "dtop_p"]
    for router, said in (("hash", "no router 'hash'"), (",", "one or more routers")):
        bad = tradeoff("dtop-p", "train", "--router", router, cwd=tmp_path)
        assert bad.returncode == 2
        assert said in bad.stderr
