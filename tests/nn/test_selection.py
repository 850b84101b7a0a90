import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tradeoff.nn.selection import (
    HysteresisGate,
    above,
    hard_tanh_slope,
    hysteresis,
    sigmoid_slope,
    softplus_slope,
    straight_through,
    top_k,
)

TAU = 0.25


@pytest.mark.parametrize(
    ("selected", "score", "expected"),
    [
        (True, -TAU - 0.1, False),
        (True, -TAU, False),  # a selected one leaves at -tau already
        (True, 0.0, True),
        (True, TAU + 0.1, True),
        (False, -TAU - 0.1, False),
        (False, 0.0, False),
        (False, TAU, False),  # another enters strictly above tau
        (False, TAU + 0.1, True),
    ],
)
def test_hysteresis_truth_table(selected: bool, score: float, expected: bool) -> None:
    result = hysteresis(torch.tensor([score]), torch.tensor([selected]), TAU)
    assert result.item() is expected


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30), st.integers(0, 2**30 - 1))
def test_hysteresis_without_a_band_is_the_plain_indicator(values: list[float], bits: int) -> None:
    scores = torch.tensor(values)
    selected = torch.tensor([bool(bits >> i & 1) for i in range(len(values))])
    assert torch.equal(hysteresis(scores, selected, 0.0), above(scores))


def test_gate_remembers_and_counts_flips() -> None:
    gate = HysteresisGate((3,), threshold=0.5)
    with torch.no_grad():
        gate.scores.copy_(torch.tensor([-0.4, -0.6, 1.0]))
    assert gate().tolist() == [1, 1, 1], "reading the gate must not move it"
    assert gate.update() == 1
    assert gate().tolist() == [1, 0, 1]
    with torch.no_grad():
        gate.scores[1] = 0.4
    assert gate.update() == 0
    with pytest.raises(ValueError, match="negative"):
        HysteresisGate((3,), threshold=-1.0)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
def test_top_k_selects_exactly_k_of_the_largest(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    chosen = top_k(torch.tensor(values, dtype=torch.float32), count)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert sorted(torch.nonzero(chosen).flatten().tolist()) == sorted(expected)


def test_top_k_refuses_an_impossible_count() -> None:
    for count in (-1, 4):
        with pytest.raises(ValueError, match="cannot select"):
            top_k(torch.zeros(3), count)


@pytest.mark.parametrize("slope", [softplus_slope, hard_tanh_slope, sigmoid_slope(0.5)])
def test_straight_through_weights_the_gradient_and_keeps_the_choice(slope) -> None:
    scores = torch.linspace(-2, 2, 9, requires_grad=True)
    upstream = torch.arange(1.0, 10.0)
    chosen = straight_through(scores, above(scores), slope)
    assert chosen.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    (chosen * upstream).sum().backward()
    torch.testing.assert_close(scores.grad, upstream * slope(scores.detach()))


def test_sigmoid_slope_is_the_derivative_of_the_sigmoid() -> None:
    scores = torch.linspace(-3, 3, 11, dtype=torch.float64, requires_grad=True)
    torch.sigmoid(scores / 0.3).sum().backward()
    torch.testing.assert_close(sigmoid_slope(0.3)(scores.detach()), scores.grad)
    with pytest.raises(ValueError, match="temperature"):
        sigmoid_slope(0.0)


def test_choice_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        straight_through(torch.zeros(3), torch.ones(2, dtype=torch.bool))
