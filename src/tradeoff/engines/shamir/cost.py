"""What an inference will cost, from the same description of its openings that executes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, prod

from tradeoff.engines.shamir.field import NBYTES
from tradeoff.engines.shamir.materials import Material, Verification
from tradeoff.engines.shamir.options import Options
from tradeoff.engines.shamir.program import VERIFICATION, Program, require_batch
from tradeoff.engines.shamir.steps import Input, Reveal, Step
from tradeoff.engines.transport import LinkShaper, Report, Row, profile
from tradeoff.engines.transport.prg import SEED_BYTES


@dataclass(frozen=True)
class Cost(Report):
    """A predicted :class:`Report` (its times are zero) with the time that the links alone will take.

    Attributes:
        link_seconds: rounds and bytes on this party's links, which carry them side by side, no computing.
    """

    link_seconds: float = 0.0


def cost(program: Program, batch: int = 1, net: str | LinkShaper = "loopback", *, party: int = 0) -> Cost:
    """Predict rounds and bytes of one inference at one party, to the byte, without running it.

    Args:
        batch: images an inference.
        net: link profile for ``link_seconds``.
        party: a server's id, or the data owner's (``program.options.client``).

    Raises:
        ValueError: there is no such party, or no image.
    """
    options = program.options
    if party not in (*options.scheme.servers, options.client):
        raise ValueError(
            f"the party is a server (0 to {options.servers - 1}) or {options.client}, not {party}"
        )
    require_batch(batch)
    rows = [_step_row(program, step, batch, party) for step in program.steps]
    checks = len(program.checkpoints(batch))
    if checks:
        materials = [Verification(options, 1)] * checks if party != options.client else []
        rows.append(_row(VERIFICATION, VERIFICATION, options, materials, party))
    link = profile(net)
    report = Report(tuple(rows), _setup(program, party))
    total = report.total
    peers = max(1, options.readers(options.product_degree))
    seconds = link.seconds(total.rounds, max(total.sent, total.received) // peers)
    return Cost(report.rows, report.setup, party, batch, link=link.name, link_seconds=seconds)


def _step_row(program: Program, step: Step, batch: int, party: int) -> Row:
    options = program.options
    payload = batch * prod(step.shape) * NBYTES
    is_client = party == options.client
    row = _row(step.name, step.kind, options, [] if is_client else step.materials(batch), party)
    if isinstance(step, Input):
        return row + Row("", "", 1, payload * options.servers * is_client, payload * (not is_client))
    if isinstance(step, Reveal):
        sends = not is_client and party < options.revealing
        return row + Row("", "", 1, payload * sends, payload * options.revealing * is_client)
    return row


def _row(name: str, kind: str, options: Options, materials: Sequence[Material], party: int) -> Row:
    openings = [opening for material in materials for opening in material.openings]
    exchanged = sum(o.elements * NBYTES * options.readers(o.degree(options)) for o in openings)
    offline = sum(_offline_bytes(material, party) for material in materials)
    return Row(name, kind, len(openings), exchanged, exchanged, offline)


def _offline_bytes(material: Material, party: int) -> int:
    options = material.options
    elements = material.dealt_elements * (party >= options.threshold)
    if not options.scheme.from_keys:
        drawn = (party < options.threshold) + (party < options.product_degree)
        elements += material.doubles * (2 - drawn)
    return elements * NBYTES


def _setup(program: Program, party: int) -> Row:
    options = program.options
    if party == options.client:
        return Row("setup", "setup")
    row = _row("setup", "setup", options, program.setup_materials(), party)
    scheme = options.scheme
    keys = comb(scheme.n - 1, scheme.t) if scheme.from_keys else 0
    return row + Row("", "", offline=(1 + keys) * SEED_BYTES + NBYTES)
