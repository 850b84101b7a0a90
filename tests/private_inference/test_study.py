"""The study around AutoReP: claims, recipes, files, the verb for a network of one's own."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from tradeoff.cli import main
from tradeoff.core import Outcome, Outcomes, Trial, Verdict, counted, measured
from tradeoff.core.errors import MissingOutcome, RecipeError
from tradeoff.data.images import ImageData, load
from tradeoff.engines import two_party
from tradeoff.engines.two_party.comparison import Comparison
from tradeoff.methods.private_inference.autorep import (
    AutoReP,
    ReplacementConfig,
    claims,
    finalize,
    load_compressed,
    project,
    random_positions,
    relu_count,
    replace_relus,
    save_compressed,
)
from tradeoff.methods.private_inference.autorep.study import AutoRep
from tradeoff.nn.models import ArchMismatch, build, save_weights

SHAPE, TOTAL = (1, 8, 16), 4096


def outcomes(table: dict[tuple[str, int | None], list[float]], **metrics: list[float]) -> Outcomes:
    """Made-up outcomes: accuracies by variant and budget, one for each seed."""
    made = []
    for (variant, budget), accuracies in table.items():
        for seed, accuracy in enumerate(accuracies):
            setting = {} if budget is None else {"budget": budget}
            values = {
                "accuracy": measured(accuracy),
                "relu_count": counted(TOTAL if budget is None else budget),
            }
            values |= {name: measured(column[seed]) for name, column in metrics.items()}
            made.append(Outcome(trial=Trial(variant=variant, setting=setting, seed=seed), metrics=values))
    return Outcomes(made)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.80, 0.82, 0.81], Verdict.HOLDS),
        ([0.60, 0.62, 0.61], Verdict.FAILS),
        ([0.60, 0.82, 0.75], Verdict.UNDECIDED),
    ],
)
def test_claim_over_snl_needs_every_budget(ours: list[float], verdict: Verdict) -> None:
    snl = [0.70, 0.71, 0.72]
    best = [0.9, 0.91, 0.92]
    made = outcomes(
        {("autorep", 410): best, ("snl", 410): snl, ("autorep", 82): ours, ("snl", 82): snl, ("snl", 7): best}
    )
    finding = claims.above_snl(made)
    assert finding.verdict is verdict
    assert {"difference at 82", "difference at 410"} <= finding.numbers.keys()
    assert "6.12" in str(finding.numbers["paper"])


def test_margin_claims_take_the_tightest_budget() -> None:
    made = outcomes(
        {
            ("autorep", 82): [0.80, 0.81, 0.82],
            ("identity", 82): [0.60, 0.62, 0.61],
            ("autorep", 410): [0.80, 0.81, 0.82],
            ("identity", 410): [0.79, 0.80, 0.81],
            ("identity-random", 410): [0.70, 0.71, 0.72],
            ("random", 82): [0.805, 0.815, 0.825],
        }
    )
    assert claims.polynomial_beats_identity(made).verdict is Verdict.HOLDS
    assert claims.learned_beats_random(made).verdict is Verdict.HOLDS
    assert claims.learned_polynomials_not_below_random(made).verdict is Verdict.HOLDS
    assert claims.small_approximation_error(made).verdict is Verdict.HOLDS


def test_hysteresis_claim_needs_fewer_flips_and_equal_accuracy() -> None:
    def made(flips: list[float], accuracy: list[float]) -> Outcomes:
        ours = outcomes({("autorep", 82): accuracy}, mask_flips=flips)
        plain = outcomes({("no-hysteresis", 82): [0.80, 0.81, 0.82]}, mask_flips=[100.0, 110.0, 105.0])
        return Outcomes([*ours, *plain])

    assert claims.hysteresis_calms(made([50, 52, 51], [0.80, 0.812, 0.82])).verdict is Verdict.HOLDS
    assert claims.hysteresis_calms(made([150, 152, 151], [0.80, 0.812, 0.82])).verdict is Verdict.FAILS
    assert claims.hysteresis_calms(made([50, 52, 51], [0.70, 0.712, 0.72])).verdict is Verdict.FAILS


def test_largest_reduction_is_the_tightest_budget_that_keeps_the_accuracy() -> None:
    base = [0.80, 0.81, 0.82]
    worse = [0.70, 0.71, 0.72]
    made = outcomes(
        {("relu", None): base, ("autorep", 0): worse, ("autorep", 16): base, ("autorep", 410): base}
    )
    finding = claims.largest_reduction(made)
    assert finding.numbers["factor"] == 256
    assert finding.verdict is Verdict.HOLDS
    made = outcomes({("relu", None): base, ("autorep", 16): worse, ("autorep", 410): base})
    assert claims.largest_reduction(made).numbers["factor"] == pytest.approx(TOTAL / 410)
    assert claims.largest_reduction(made).verdict is Verdict.FAILS
    assert (
        claims.largest_reduction(outcomes({("relu", None): base, ("autorep", 0): base})).numbers["factor"]
        == "all"
    )


def test_largest_reduction_is_undecided_where_no_budget_is_as_tight_as_the_papers_or_none_is_sure() -> None:
    base, unsure = [0.80, 0.81, 0.82], [0.80, 0.70, 0.90]
    loose = claims.largest_reduction(outcomes({("relu", None): base, ("autorep", 410): base}))
    assert loose.verdict is Verdict.UNDECIDED
    assert loose.numbers["reason"] == "no budget is that tight"
    assert loose.numbers["factor"] == pytest.approx(TOTAL / 410)
    tight = {("relu", None): base, ("autorep", 0): unsure, ("autorep", 16): [0.7, 0.71, 0.72]}
    finding = claims.largest_reduction(outcomes(tight | {("autorep", 410): base}))
    assert finding.verdict is Verdict.UNDECIDED, "a looser budget that holds does not decide a tighter one"
    assert finding.numbers["budget"] == 410


def test_recipes_list_the_cells_that_the_claims_need() -> None:
    method = AutoRep()
    recipe = method.load_recipe("default")
    trials = method.trials(recipe)
    cells = {(trial.variant, trial.setting.get("budget")) for trial in trials}
    assert len(trials) == 3 * len(cells)
    assert {("relu", None), ("autorep", 82), ("autorep", 0), ("snl", 82), ("snl", 410)} <= cells
    with pytest.raises(RecipeError, match="penalty"):
        method.load_recipe("default", ["penalti=3"])
    with pytest.raises(RecipeError, match="autorep"):
        method.load_recipe("default", ["variants={autorep: [many]}"])
    for change, message in (
        ("variants.autorep=[-1]", "greater than or equal to 0"),
        ("variants.autorep=[true]", "valid integer"),
        ("variants.autorep=[82, 82]", r"variants\.autorep lists a budget twice"),
        ("data=digit-pair", "did you mean 'digit-pairs'"),
        ("arch=resnet81", "'resnet81' is none of resnet18"),
        ("finetuning={epochs: 3}", "both have steps, or both epochs"),
    ):
        with pytest.raises(RecipeError, match=message):
            method.load_recipe("default", [change])


def test_claims_without_their_outcomes_say_what_is_missing() -> None:
    base = outcomes({("relu", None): [0.8, 0.8, 0.8], ("autorep", 0): [0.7, 0.7, 0.7]})
    with pytest.raises(MissingOutcome, match="keeps ReLUs"):
        claims.private_inference_is_faster(base)
    made = outcomes({("autorep", 82): [0.8, 0.81, 0.82], ("snl", 82): [0.7, 0.71, 0.72]})
    ours, snl = made.where("autorep"), made.where("snl")
    with pytest.raises(MissingOutcome, match="seeds"):
        claims.above_snl(Outcomes([*ours[:2], *snl[1:]]))


@pytest.mark.parametrize("polynomial", ["dapa", "identity"])
@pytest.mark.parametrize("budget", [0, 300, TOTAL])
def test_saved_network_computes_the_same(
    fresh: nn.Module, tmp_path: Path, budget: int, polynomial: Literal["dapa", "identity"]
) -> None:
    replaced = replace_relus(fresh, SHAPE, ReplacementConfig(polynomial=polynomial))
    project(replaced, budget)
    net = finalize(replaced).eval()
    save_compressed(tmp_path / "out", net, arch="pair_cnn", num_classes=10, input_shape=SHAPE)
    loaded = load_compressed(tmp_path / "out")
    x = torch.randn(4, *SHAPE)
    assert torch.equal(loaded(x), net(x))
    assert relu_count(loaded, SHAPE) == budget


def test_masks_of_another_architecture_are_refused(fresh: nn.Module, tmp_path: Path) -> None:
    net = finalize(replace_relus(fresh, SHAPE))
    save_compressed(tmp_path, net, arch="pair_cnn", num_classes=10, input_shape=SHAPE)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"arch": "small_cnn"}, "not the activations of small_cnn"),
        ({"input_shape": [1, 16, 16]}, "does not fit"),
        ({"arch": "pair_cmm"}, "pair_cnn"),
        ({"format": "other"}, "does not describe"),
        ({"extra": 1}, "does not describe"),
        ({"num_classes": 10**12}, "does not describe"),
        ({"input_shape": [1, 10**6, 10**6]}, "does not describe"),
        ({"extra": "x" * 9 * 2**20}, "larger than"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ArchMismatch, match=message):
            load_compressed(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ArchMismatch):
        load_compressed(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_compressed(tmp_path / "absent")


@pytest.mark.filterwarnings("ignore:the replacement phase")
def test_compress_writes_what_the_two_party_engine_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    save_weights(build("small_cnn", 10, (1, 8, 8)), tmp_path / "m.safetensors")
    words = ["autorep", "compress", "--model", str(tmp_path / "m.safetensors"), "--arch", "small_cnn"]
    words += ["--data", "digits", "--epochs", "2", "--finetuning", "1", "--budget", "100"]
    run(*words, "--out", str(tmp_path / "out"))
    captured = capsys.readouterr()
    printed = captured.out
    assert "of 1,536 ReLUs kept" in printed
    kept = int(printed.split(" of 1,536 ReLUs kept")[0].split()[-1])
    assert ("ReLUs of the budget are not used" in captured.err) == (100 - kept > 10)
    network = load_compressed(tmp_path / "out")
    assert relu_count(network, (1, 8, 8)) <= 100
    owner = two_party.Program.load(tmp_path / "out" / "program")
    public = two_party.Program.load(tmp_path / "out" / "program" / "public")
    assert owner.digest == public.digest
    assert not public.plan.has_weights
    x = load("digits").test.x[:8]
    np.testing.assert_allclose(owner.plan.evaluate(x.numpy()), network(x).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--budget", "-1"), "InvalidBudget"),
        (("--data", "didgits"), "did you mean 'digits'"),
        (("--model", "absent.safetensors"), "absent.safetensors"),
        (("--arch", "pair_cnn"), "ArchMismatch"),
        (("--arch", "pair_cmm"), "InvalidArch: unknown architecture 'pair_cmm'; did you mean 'pair_cnn'?"),
        (("--device", "quantum"), "DeviceError: device 'quantum' cannot be used here"),
        (("--penalty", "inf"), "--penalty"),
        (("--learning-rate", "nan"), "--learning-rate"),
        (("--seed", "99999999999999999999"), "--seed"),
        (("--degree", "5"), "--degree"),
    ],
)
def test_compress_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    save_weights(build("small_cnn", 10, (1, 8, 8)), tmp_path / "m.safetensors")
    options = {"--model": str(tmp_path / "m.safetensors"), "--arch": "small_cnn", "--data": "digits"}
    options |= {"--budget": "100", "--out": str(tmp_path / "out")}
    options[change[0]] = change[1]
    with pytest.raises(SystemExit) as ended:
        main(["autorep", "compress", *(word for pair in options.items() for word in pair)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_compress_warns_in_one_line_where_the_budget_exceeds_the_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(build("small_cnn", 10, (1, 8, 8)), tmp_path / "m.safetensors")
    words = ["autorep", "compress", "--model", str(tmp_path / "m.safetensors"), "--arch", "small_cnn"]
    run(*words, "--data", "digits", "--budget", "9999", "--out", str(tmp_path / "out"))
    printed = capsys.readouterr()
    warned = (
        "warning: the budget of 9999 ReLUs exceeds the 1536 that the network has: nothing will be replaced"
    )
    assert printed.err.splitlines() == [warned]
    assert "1,536 of 1,536 ReLUs kept" in printed.out


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 0


@pytest.mark.filterwarnings("ignore:the replacement phase")
def test_private_inference_gives_the_labels_and_pays_for_the_kept_relus_only(
    trained: nn.Module, pairs: ImageData
) -> None:
    """Comparisons send kept * batch * 26.375 bytes at radix 4, within padding; without any, none is made."""
    x = pairs.test.x[:96].numpy()
    for budget in (0, 82, 410):
        method = AutoReP(trained, budget, SHAPE)
        method.network.train()(pairs.train.x[:256])  # one step of calibration
        net = method.finalize()
        program = two_party.compile(net, SHAPE, calibration=pairs.train.x[:64].numpy())
        with two_party.Session.simulated() as session:
            logits = session.infer(program, x)
            report = session.report()
        agreement = two_party.agreement(program, x, logits)
        assert agreement.decided == 1.0
        assert agreement.largest < 0.05
        assert report.total.sent == two_party.cost(program, len(x)).total.sent
        per_site = comparison_bytes(program, net, len(x))
        assert sum(per_site) == pytest.approx(budget * len(x) * 26.375, abs=5 * 64 * 26.375)
        assert compares(program) == (budget > 0)
        assert report.total.rounds < 20 if budget == 0 else report.total.rounds > 25


def test_positions_that_became_identities_pay_for_the_truncation_only(
    trained: nn.Module, pairs: ImageData
) -> None:
    x = pairs.test.x[:64].numpy()
    positions = random_positions(trained, SHAPE, 410)
    method = AutoReP(trained, 410, SHAPE, ReplacementConfig(polynomial="identity"), positions=positions)
    program = two_party.compile(method.finalize(), SHAPE, calibration=pairs.train.x[:64].numpy())
    with two_party.Session.simulated() as session:
        logits = session.infer(program, x)
        report = session.report()
    assert two_party.agreement(program, x, logits).decided == 1.0
    cost = two_party.cost(program, len(x))
    assert report.total.sent == cost.total.sent
    sent = cost.by_kind()["activation"].sent
    assert sent == pytest.approx(len(x) * (410 * 26.375 + (TOTAL - 410) * 8), abs=5 * 64 * 26.375)


def compares(program: two_party.Program) -> bool:
    """Whether any message of the program is part of a comparison."""
    lanes = [lane for step in program.steps for group in step.groups(1) for lane in group]
    return any(isinstance(part, Comparison) for lane in lanes for part in lane)


def comparison_bytes(program: two_party.Program, net: nn.Module, batch: int) -> list[float]:
    """What each activation sends beyond the 16 bytes of a polynomial at each position without ReLU."""
    counted_bytes = []
    cost = two_party.cost(program, batch)
    for name, module in net.named_modules():
        if hasattr(module, "mask"):
            dropped = int((~module.mask).sum())
            counted_bytes.append(cost.row(name).sent - 16 * dropped * batch)
    return counted_bytes
