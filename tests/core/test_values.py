"""Quantities, metrics, trials and outcomes."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import tradeoff.core
from tradeoff.core import Metric, MetricKind, Outcome, Outcomes, Trial, counted, measured
from tradeoff.core.errors import MissingOutcome, OutcomeError, TradeoffError, UnknownQuantity
from tradeoff.core.quantities import QUANTITIES, quantity

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


def test_every_public_name_is_where_the_package_says() -> None:
    for name in tradeoff.core.__all__:
        assert getattr(tradeoff.core, name).__name__ == name


def test_quantities_are_described_and_have_a_direction() -> None:
    for name, row in QUANTITIES.items():
        assert name == row.name
        assert row.description
        assert row.better(1, 0) != row.better(0, 1)
    assert quantity("accuracy").better(0.9, 0.8)
    assert quantity("online_bytes").better(10, 20)


def test_unknown_quantity_names_the_nearest() -> None:
    with pytest.raises(UnknownQuantity, match="did you mean 'online_bytes'"):
        quantity("online_byte")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_metrics_are_finite(value: float) -> None:
    with pytest.raises(OutcomeError, match="finite"):
        measured(value)
    with pytest.raises(ValidationError):
        Metric(value=value, kind=MetricKind.MEASURED)


@given(setting=st.dictionaries(st.text(), SCALARS, max_size=4), seed=st.integers(0, 2**40))
def test_a_trial_survives_json_with_its_key(setting: dict[str, object], seed: int) -> None:
    trial = Trial(variant="a", setting=setting, seed=seed)
    again = Trial.model_validate(json.loads(trial.model_dump_json()))
    assert again == trial
    assert again.key == trial.key
    assert hash(again) == hash(trial)
    assert len(trial.key) == 16


def test_trial_keys_tell_values_of_different_types_apart() -> None:
    keys = {Trial(variant="a", setting={"x": x}).key for x in (1, 1.0, True, "1", None)}
    assert len(keys) == 5


def test_numbers_of_numpy_and_torch_in_a_setting_are_pythons() -> None:
    plain = Trial(variant="a", setting={"n": 3, "rate": 0.5, "on": True})
    for numbers in (
        {"n": np.int64(3), "rate": np.float32(0.5), "on": np.bool_(True)},
        {"n": torch.tensor(3), "rate": torch.tensor(0.5), "on": torch.tensor(True)},
    ):
        trial = Trial(variant="a", setting=numbers)
        assert trial.key == plain.key
        assert str(trial) == "a n=3 rate=0.5 on=True seed=0"


def test_trial_settings_are_scalars_only() -> None:
    with pytest.raises(ValidationError):
        Trial(variant="a", setting={"x": [1]})  # type: ignore[dict-item]


def outcome(variant: str, seed: int, accuracy: float, **setting: float) -> Outcome:
    trial = Trial(variant=variant, setting=setting, seed=seed)
    return Outcome(trial=trial, metrics={"accuracy": measured(accuracy), "online_bytes": counted(10)})


@pytest.mark.parametrize("artifact", ["/etc/passwd", "../other", "artifacts/../../x"])
def test_artifacts_are_inside_the_run(artifact: str) -> None:
    with pytest.raises(ValidationError, match="inside the run folder"):
        Outcome(trial=Trial(variant="a"), metrics={}, artifact=artifact)


def test_outcomes_select_and_order_by_seed() -> None:
    outcomes = Outcomes(
        [
            outcome("a", 1, 0.2, b=1),
            outcome("a", 0, 0.1, b=1),
            outcome("a", 0, 0.5, b=2),
            outcome("c", 0, 0.9),
        ]
    )
    assert outcomes.where("a", b=1).values("accuracy") == [0.1, 0.2]
    assert outcomes.where(b=1).mean("accuracy") == pytest.approx(0.15)
    assert [len(cell) for cell in outcomes.cells()] == [2, 1, 1]
    assert outcomes.variants == ["a", "c"]
    assert outcomes.quantities == ["accuracy", "online_bytes"]
    assert isinstance(outcomes[1:], Outcomes)
    with pytest.raises(MissingOutcome):
        outcomes.where("absent").values("accuracy")
    with pytest.raises(MissingOutcome, match="has no rounds"):
        outcomes.values("rounds")
    with pytest.raises(UnknownQuantity):
        outcomes.values("nonsense")


def test_values_are_paired_by_seed_and_not_by_position() -> None:
    a = Outcomes([outcome("a", 0, 0.1), outcome("a", 2, 0.3)])
    b = Outcomes([outcome("b", 2, 0.6), outcome("b", 0, 0.4)])
    assert a.paired(b, "accuracy") == ([0.1, 0.3], [0.4, 0.6])
    other = Outcomes([outcome("b", 0, 0.4), outcome("b", 1, 0.5)])
    with pytest.raises(MissingOutcome, match=r"a has the seeds \[0, 2\], b has \[0, 1\]"):
        a.paired(other, "accuracy")


def test_library_users_catch_builtins() -> None:
    assert issubclass(OutcomeError, ValueError)
    assert issubclass(MissingOutcome, LookupError)
    assert issubclass(UnknownQuantity, TradeoffError)
