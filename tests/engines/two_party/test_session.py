"""A small network between simulated parties: results, predicted costs, options."""

import numpy as np
import pytest
from torch import nn

from tradeoff.engines import two_party


@pytest.fixture(scope="module")
def program() -> two_party.Program:
    """The small network of the benchmarks with random weights."""
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 5)]
    return two_party.compile(nn.Sequential(*layers).eval(), (1, 8, 8))


def test_same_structure_with_other_weights_is_another_program(program: two_party.Program) -> None:
    """Parties are kept for a network, not for its digest, which leaves the weights out."""
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8))
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 5)]
    other = two_party.compile(nn.Sequential(*layers).eval(), (1, 8, 8))
    with two_party.Session.simulated() as session:
        for each in (program, other, program):
            assert two_party.agreement(each, x, session.infer(each, x)).largest < 1e-3


def test_logits_agree_and_cost_is_predicted(program: two_party.Program) -> None:
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8))
    with two_party.Session.simulated() as session:
        logits = session.infer(program, x)
        report = session.report()
    assert two_party.agreement(program, x, logits).largest < 1e-3
    predicted = two_party.cost(program, batch=3)
    assert [(r.rounds, r.sent, r.received, r.offline) for r in report.rows] == [
        (r.rounds, r.sent, r.received, r.offline) for r in predicted.rows
    ]


def test_material_without_a_dealer_is_made_ahead(program: two_party.Program) -> None:
    """Two inferences' worth before they run; the one after them makes its own."""
    x = np.random.default_rng(0).standard_normal((1, 1, 8, 8))
    with two_party.Session.simulated("ot") as session:
        for _ in range(2):
            assert session.prepare(program, 1) > 0
        offline = []
        for _ in range(3):
            assert two_party.agreement(program, x, session.infer(program, x)).largest < 1e-3
            offline.append(session.report().total.offline)
    assert offline == [0, 0, two_party.cost(program, offline="ot").total.offline]


def test_large_weights_have_more_bits() -> None:
    """As many transfers as the largest weight needs; the bound is public, so both parties count alike."""
    small, large = nn.Linear(4, 3), nn.Linear(4, 3)
    nn.init.constant_(large.weight, -40.0)
    programs = [two_party.compile(nn.Sequential(each).eval(), (4,)) for each in (small, large)]
    assert [each.options.integer_bits for each in programs] == [4, 7]
    x = np.random.default_rng(0).standard_normal((2, 4))
    with two_party.Session.simulated("ot") as session:
        assert two_party.agreement(programs[1], x, session.infer(programs[1], x)).largest < 2e-2
    costs = [two_party.cost(each, offline="ot", batch=16).row("0").offline_sent for each in programs]
    assert costs == [bits * 12 * 16 * 8 for bits in (20, 23)]
