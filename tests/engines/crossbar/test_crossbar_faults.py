"""Chips: rates, nesting, addresses."""

import numpy as np
import pytest
import torch

from tradeoff.core.errors import UnknownName
from tradeoff.engines.crossbar import (
    FREE,
    STUCK_OFF,
    STUCK_ON,
    CrossbarConfig,
    CrossbarLinear,
    FaultModel,
    InputRange,
    InvalidConfig,
    Placement,
)


def maps(faults: FaultModel, crossbars: int = 62) -> np.ndarray:
    """A million cells."""
    return np.stack([faults.stuck(crossbar, 128, 128) for crossbar in range(crossbars)])


def test_stuck_cells_are_as_frequent_as_asked():
    cells = maps(FaultModel.preset("hfo2", seed=5))
    assert cells.size > 1_000_000
    for kind, p in ((STUCK_ON, 0.0904), (STUCK_OFF, 0.0175)):
        assert abs((cells == kind).mean() - p) < 4 * (p * (1 - p) / cells.size) ** 0.5


def test_faults_of_a_lower_rate_stay_and_keep_their_kind():
    previous = maps(FaultModel.at_rate(0.0, 0.84), 4)
    assert (previous == FREE).all()
    for rate in (0.001, 0.01, 0.03, 0.1, 0.5, 1.0):
        cells = maps(FaultModel.at_rate(rate, 0.84), 4)
        before = previous != FREE
        assert (cells[before] == previous[before]).all()
        assert (cells != FREE).sum() > before.sum()
        previous = cells
    assert (previous != FREE).all()


def test_crossbars_and_seeds_are_independent_and_repeatable():
    faults = FaultModel.at_rate(0.1, 0.5, seed=1)
    assert np.array_equal(faults.stuck(3, 128, 128), faults.stuck(3, 128, 128))
    for other in (faults.stuck(4, 128, 128), faults.chip(2).stuck(3, 128, 128)):
        both = ((faults.stuck(3, 128, 128) != FREE) & (other != FREE)).mean()
        assert abs(both - 0.01) < 4 * (0.01 / 128**2) ** 0.5
    # Variation is drawn from a stream of its own.
    varied = FaultModel(0.05, 0.05, sigma_program=0.3, seed=1)
    assert np.array_equal(varied.stuck(3, 128, 128), faults.stuck(3, 128, 128))
    assert abs(varied.deviations(3, 128, 128).std() - 1) < 0.03


def test_whole_lines_can_be_stuck():
    stuck = FaultModel(0.0, 0.0, p_line=0.1, seed=0).stuck(0, 64, 64) != FREE
    rows, columns = stuck.all(1), stuck.all(0)
    assert 0 < rows.sum() < 20
    assert 0 < columns.sum() < 20
    assert np.array_equal(stuck, rows[:, None] | columns)


def test_every_cell_has_its_own_address_and_the_view_of_a_block_agrees():
    config = CrossbarConfig(rows=4, cols=10, cell_bits=2)  # two outputs a crossbar, two columns unused
    placement = Placement(config, outputs=5, inputs=7, first=3)
    assert (placement.row_blocks, placement.column_blocks, placement.crossbars) == (2, 3, 6)
    seen = set()
    for row_block in range(2):
        crossbars = placement.crossbars_of(row_block)
        numbers = np.array([[[(c * 4 + r) * 10 + k for k in range(10)] for r in range(4)] for c in crossbars])
        view = placement.to_logical(numbers, row_block)
        inputs = placement.inputs_of(row_block)
        for place, polarity, output, input_ in np.ndindex(view.shape):
            crossbar, row, column = placement.address(output, place, polarity, inputs.start + input_)
            assert view[place, polarity, output, input_] == (crossbar * 4 + row) * 10 + column
            seen.add((crossbar, row, column))
    assert len(seen) == 5 * 7 * 4
    assert {address[0] for address in seen} == set(range(3, 9))


def test_a_fault_belongs_to_its_address_and_not_to_what_is_stored_there():
    faults = FaultModel(0.2, 0.1, seed=9)
    config, inputs = CrossbarConfig(rows=16, cols=32), InputRange(1.0, True, 8)
    torch.manual_seed(0)
    one = CrossbarLinear(torch.randn(6, 20), None, config, inputs, faults)
    two = CrossbarLinear(torch.randn(6, 20), None, config, inputs, faults)
    assert np.array_equal(one.fault_map(), two.fault_map())
    assert one.stuck == (one.fault_map() != FREE).sum() == two.stuck
    smaller = CrossbarLinear(torch.randn(3, 20), None, config, inputs, faults)
    first_block = np.s_[:, :, :3, :16]  # of the second one the crossbar has another number
    assert np.array_equal(smaller.fault_map()[first_block], one.fault_map()[first_block])
    other = CrossbarLinear(torch.randn(6, 20), None, config, inputs, faults, first_crossbar=40)
    assert not np.array_equal(one.fault_map(), other.fault_map())


def test_faults_strike_cells_and_not_weights():
    """The part of the weights that are wrong is that of weights with a wrong cell."""
    p = 0.02
    placed = CrossbarLinear(
        torch.randn(256, 256), None, CrossbarConfig(), InputRange(1.0, True, 8), FaultModel(p, 0.0)
    )
    touched = (placed.fault_map() != FREE).any(0).mean()
    expected = 1 - (1 - p) ** 8
    assert abs(touched - expected) < 4 * (expected / 256**2) ** 0.5
    assert touched > 5 * p
    wrong = float((placed.effective_codes() != placed.codes).double().mean())
    assert 0.4 * expected < wrong < touched


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p_stuck_on": 0.7, "p_stuck_off": 0.4}, r"add up to 1\.1"),
        ({"p_stuck_on": -0.1}, "p_stuck_on is -0.1"),
        ({"sigma_program": -1.0}, "sigma_program is -1"),
        ({"sigma_read": float("nan")}, "sigma_read is nan"),
        ({"variation": "uniform"}, "uniform"),
        ({"seed": -1}, "seed is -1"),
        ({"p_line": 2.0}, "p_line is 2"),
    ],
)
def test_statistics_that_are_none(changes, message):
    with pytest.raises(InvalidConfig, match=message):
        FaultModel(**changes)


def test_presets():
    assert FaultModel.preset("hfo2", seed=3) == FaultModel(0.0904, 0.0175, seed=3)
    with pytest.raises(UnknownName, match="hfo2"):
        FaultModel.preset("hf02")
    with pytest.raises(InvalidConfig, match="on_share is 2"):
        FaultModel.at_rate(0.1, 2.0)
