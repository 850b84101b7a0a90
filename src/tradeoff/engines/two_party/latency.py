"""The engine as a latency model: exact rounds and bytes on a link, computing as it was measured here.

``seconds = rounds * one-way delay + bytes / bandwidth + computing``. Rounds and bytes are those of
:func:`tradeoff.engines.two_party.cost`, to the byte. Computing is linear in a few counts of a step, whose
factors :func:`calibrate` fits to timed inferences between two processes of this host.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pydantic

from tradeoff.core.errors import DataError, StoreError
from tradeoff.core.files import read_json, write_json
from tradeoff.engines.transport import LinkShaper, profile
from tradeoff.engines.two_party import steps
from tradeoff.engines.two_party.compile import compile
from tradeoff.engines.two_party.cost import cost
from tradeoff.engines.two_party.program import Options, Program, require_batch
from tradeoff.nn.latency import MissingLatency, NetworkLatency, OperatorLatency
from tradeoff.nn.plan import Plan, fold_average_pool, swap_relu_maxpool

if TYPE_CHECKING:
    from torch import nn

    from tradeoff.engines.two_party.session import Session

Seconds = pydantic.NonNegativeFloat
PROBE_SHAPE = (4, 16, 16)


class Calibration(pydantic.BaseModel):
    """Seconds of computing, and of what else an exchange costs on a link without delay.

    Attributes:
        exchange: of one round.
        linear: of one multiply-accumulate of a linear layer.
        comparison: of one comparison (a ReLU, a pair of max pooling).
        polynomial: of one position with a polynomial.
        truncation: of one truncated element.
        local: of one element of what sends nothing: sums, input and result.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    format: Literal["tradeoff-calibration-1"] = "tradeoff-calibration-1"
    exchange: Seconds
    linear: Seconds
    comparison: Seconds
    polynomial: Seconds
    truncation: Seconds
    local: Seconds

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, self.model_dump())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read :meth:`save`'s file.

        Raises:
            DataError: there is none, or it is damaged or of another format.
        """
        if not path.is_file():
            raise DataError(f"no calibration {path}: `tradeoff two-party calibrate` makes one")
        try:
            return cls.model_validate(read_json(path))
        except (StoreError, pydantic.ValidationError) as error:
            raise DataError(f"{path} is no calibration of the two-party engine: {error}") from None


class EngineLatency:
    """A latency model of this engine: give it to a search, and it optimizes what the engine will really take.

    Args:
        calibration: of the host that will run it; see :func:`calibrate`.
        net: the link between the parties.
        batch: images an inference.
        options: of the programs; the default ones of :func:`compile` if absent.

    Example:
        >>> import torch
        >>> rates = Calibration(
        ...     exchange=2e-4, linear=1e-9, comparison=5e-7, polynomial=1e-7, truncation=5e-8, local=1e-9
        ... )
        >>> from tradeoff.nn.plan import trace
        >>> plan = trace(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), (1, 2, 2))
        >>> EngineLatency(rates, "wan").network(plan).rounds
        3
    """

    def __init__(
        self,
        calibration: Calibration,
        net: str | LinkShaper = "wan",
        batch: int = 1,
        options: Options | None = None,
    ) -> None:
        self.calibration = calibration
        self.link = profile(net)
        self.batch = require_batch(batch)
        self.options = options or Options()

    @property
    def name(self) -> str:
        """For tables."""
        return f"two-party engine, {self.link.name}, batch {self.batch}"

    def network(self, plan: Plan) -> NetworkLatency:
        """The latency of a plan as :func:`compile` would execute it, step by step.

        Polynomials are taken to fit a single truncation; :meth:`program` knows the calibrated ranges.

        Raises:
            UnsupportedLayer: an operator without a protocol.
        """
        optimized = fold_average_pool(swap_relu_maxpool(plan))
        return self.program(Program(optimized.without_weights(), self.options))

    def program(self, program: Program) -> NetworkLatency:
        """The latency of a compiled program, step by step."""
        rows = cost(program, self.batch, self.link).rows
        return NetworkLatency(
            self.name,
            tuple(
                OperatorLatency(
                    row.operator,
                    row.kind,
                    compute=_computing(self.calibration, step, row.rounds, self.batch),
                    transfer=self.link.seconds(0, max(row.sent, row.received)),
                    waiting=self.link.seconds(row.rounds, 0),
                    rounds=row.rounds,
                    bytes=max(row.sent, row.received),
                )
                for step, row in zip(program.steps, rows, strict=True)
            ),
        )


def counts(step: steps.Step, batch: int) -> dict[str, float]:
    """What a step computes on, by the attributes of :class:`Calibration`.

    Raises:
        MissingLatency: the step has no figure.
    """
    elements = batch * prod(step.shape)
    match step:
        case steps.LinearMap():
            return {"linear": elements * prod(step.weight_shape[1:])}
        case steps.ReLU():
            return {"comparison": elements}
        case steps.MaxPool():
            return {"comparison": elements * (prod(step.kernel) - 1)}
        case steps.ArgMax():
            return {"comparison": batch * (step.features - 1)}
        case steps.Activation():
            compared = int(step.mask.sum()) * batch
            return {"comparison": compared, "polynomial": elements - compared}
        case steps.Truncate():
            return {"truncation": elements}
        case steps.SumPool():
            return {"local": elements * prod(step.kernel)}
        case steps.Input() | steps.Add() | steps.Concatenate() | steps.Flatten() | steps.Reveal():
            return {"local": elements}
    raise MissingLatency("two-party engine", step.name, step.kind)


def _computing(calibration: Calibration, step: steps.Step, rounds: int, batch: int) -> float:
    rates = calibration.model_dump()
    sized = sum(rates[name] * count for name, count in counts(step, batch).items())
    return float(calibration.exchange * rounds + sized)


def calibrate(
    session: Session | None = None, *, batches: tuple[int, ...] = (1, 4, 16, 48), repeats: int = 5
) -> Calibration:
    """Time small networks of all kinds of steps between two processes of this host and fit the model.

    Args:
        session: where to run; two processes on loopback if absent.
        batches: images of the inferences; several, so that fixed and growing costs can be told apart.
        repeats: inferences of each; the median counts.

    Returns:
        factors that minimize the relative error, none below zero.
    """
    from tradeoff.engines.two_party.session import Session

    program = compile(_probe(), PROBE_SHAPE)
    timed: dict[tuple[int, str], list[float]] = defaultdict(list)
    with session or Session.local() as running:
        for batch in batches:
            x = np.random.default_rng(batch).standard_normal((batch, *PROBE_SHAPE))
            for repeat in range(repeats + 1):
                running.prepare(program, batch)
                running.infer(program, x)
                for row in running.report().rows if repeat else ():  # the first one warms up
                    timed[batch, row.operator].append(row.total - row.wait_offline)
    return fit_calibration(program, {key: statistics.median(found) for key, found in timed.items()})


def fit_calibration(program: Program, seconds: dict[tuple[int, str], float]) -> Calibration:
    """The factors that explain the seconds of the steps of a program, by (batch, name of the step).

    Raises:
        ValueError: no time is given.
    """
    from scipy.optimize import nnls

    names = [name for name in Calibration.model_fields if name != "format"]
    by_name = {step.name: step for step in program.steps}
    rounds = {
        (batch, row.operator): row.rounds
        for batch in {batch for batch, _ in seconds}
        for row in cost(program, batch).rows
    }
    matrix, target = [], []
    for (batch, operator), taken in seconds.items():
        found = {"exchange": float(rounds[batch, operator]), **counts(by_name[operator], batch)}
        scale = 1.0 / max(taken, 1e-4)  # relative errors, but for what takes next to nothing
        matrix.append([found.get(name, 0.0) * scale for name in names])
        target.append(taken * scale)
    if not target:
        raise ValueError("a calibration needs at least one timed step")
    # Columns of like size: counts differ by orders of magnitude.
    columns = np.array(matrix)
    sizes = np.maximum(np.abs(columns).max(axis=0), 1e-30)
    factors, _ = nnls(columns / sizes, np.array(target))
    return Calibration(**dict(zip(names, (factors / sizes).tolist(), strict=True)))


def _probe() -> nn.Module:
    """A network with every kind of step."""
    import torch
    from torch import nn

    from tradeoff.nn.polynomial import Polynomial

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 16, 3, padding=1)
            self.relu = nn.ReLU()
            self.second = nn.Conv2d(16, 16, 3, padding=1)
            self.square = Polynomial(torch.tensor([[0.0], [1.0], [0.1]]).repeat(1, 16))
            self.largest = nn.MaxPool2d(2)
            self.third = nn.Conv2d(16, 32, 3, padding=1)
            self.rectified = nn.ReLU()
            self.mean = nn.AvgPool2d(2)
            self.last = nn.Linear(512, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.relu(self.first(x))
            x = self.largest(self.square(self.second(x)) + x)
            x = self.mean(self.rectified(self.third(x)))
            result: torch.Tensor = self.last(x.flatten(1))
            return result

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Probe().eval()
