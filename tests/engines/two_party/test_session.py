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
