"""Neural networks on Shamir shares: n servers compute, any t of which learn nothing.

A data owner and a model owner share inputs and weights among servers; a dealer, who sees neither, supplies
correlated randomness. Threat model, protocols and costs: README.md in this folder.

Example::

    from tradeoff.engines import shamir

    program = shamir.compile(model, (3, 32, 32), servers=3, threshold=1)
    print(shamir.cost(program, batch=8, net="wan").total)
    with shamir.Session.local(net="wan") as session:
        logits = session.infer(program, images)
        print(session.report())
"""

from tradeoff.engines.shamir.compile import compile
from tradeoff.engines.shamir.cost import Cost, cost
from tradeoff.engines.shamir.errors import (
    DealerUnavailable,
    InconsistentShares,
    OfflineExhausted,
    RangeExceeded,
)
from tradeoff.engines.shamir.options import Options
from tradeoff.engines.shamir.program import Program
from tradeoff.engines.shamir.reference import evaluate
from tradeoff.engines.shamir.report import SharedReport
from tradeoff.engines.shamir.session import Session
from tradeoff.engines.shamir.sharing import Scheme
from tradeoff.nn.plan.agreement import Agreement, agreement

__all__ = [
    "Agreement",
    "Cost",
    "DealerUnavailable",
    "InconsistentShares",
    "OfflineExhausted",
    "Options",
    "Program",
    "RangeExceeded",
    "Scheme",
    "Session",
    "SharedReport",
    "agreement",
    "compile",
    "cost",
    "evaluate",
]
