"""Private inference as the metrics of a study: metered in real runs, or predicted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from tradeoff.core import Metric, counted, measured
from tradeoff.core.memory import peak_memory_of
from tradeoff.engines.two_party.cost import cost
from tradeoff.engines.two_party.program import Program
from tradeoff.engines.two_party.session import Session
from tradeoff.nn.plan.agreement import agreement


def predicted_metrics(program: Program, batch: int) -> dict[str, Metric]:
    """Bytes and rounds of one batch, without running it."""
    total = cost(program, batch).total
    return {
        "online_bytes": counted(total.sent + total.received),
        "offline_bytes": counted(total.offline),
        "rounds": counted(total.rounds),
    }


def measured_metrics(
    program: Program, images: NDArray[Any], link: str, repeats: int, advance: Callable[[], None]
) -> dict[str, Metric]:
    """One batch between two processes and a dealer; the clock starts when correlated randomness is there.

    Args:
        images: the batch.
        link: name of the emulated link; ``latency_LINK`` must be a quantity.
        repeats: inferences, of which the median time counts.
        advance: called after each.
    """
    seconds, offline_seconds = [], []
    with Session.local(net=link) as session:
        for _ in range(repeats):
            offline_seconds.append(session.prepare(program, len(images)))
            started = time.perf_counter()
            logits = session.infer(program, images)
            seconds.append(time.perf_counter() - started)
            advance()
        total = session.report().total
        peaks = [peak for pid in session.pids[:2] if (peak := peak_memory_of(pid)) is not None]
    found = agreement(program, images, logits)
    metrics = {
        f"latency_{link}": measured(statistics.median(seconds)),
        "offline_seconds": measured(statistics.median(offline_seconds)),
        "online_bytes": measured(total.sent + total.received),
        "offline_bytes": counted(cost(program, len(images)).total.offline),
        "rounds": measured(total.rounds),
        "logit_error_max": measured(found.largest),
        "logit_error_mean": measured(found.mean),
        "label_agreement": measured(found.labels),
    }
    return metrics | ({"peak_memory": measured(max(peaks))} if peaks else {})
