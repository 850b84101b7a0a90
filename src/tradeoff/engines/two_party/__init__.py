"""Two-party computation of neural networks on additively shared fixed-point data.

A model owner and a data owner run a network so that neither sees the other's data; a dealer, who sees nothing
of either, supplies correlated randomness. Threat model, protocols and costs: README.md in this folder.

Example::

    from tradeoff.engines import two_party

    program = two_party.compile(model, (3, 32, 32))
    print(two_party.cost(program, batch=8, net="wan").total)
    with two_party.Session.local(net="wan") as session:
        logits = session.infer(program, images)
        print(session.report())
"""

from tradeoff.engines.transport import Report, Row
from tradeoff.engines.two_party.compile import compile
from tradeoff.engines.two_party.cost import Cost, cost
from tradeoff.engines.two_party.errors import (
    DealerUnavailable,
    OfflineExhausted,
    PoolMismatch,
    PoolReused,
    RangeExceeded,
)
from tradeoff.engines.two_party.program import Options, Program
from tradeoff.engines.two_party.reference import evaluate
from tradeoff.engines.two_party.session import Session
from tradeoff.nn.plan.agreement import Agreement, agreement

__all__ = [
    "Agreement",
    "Cost",
    "DealerUnavailable",
    "OfflineExhausted",
    "Options",
    "PoolMismatch",
    "PoolReused",
    "Program",
    "RangeExceeded",
    "Report",
    "Row",
    "Session",
    "agreement",
    "compile",
    "cost",
    "evaluate",
]
