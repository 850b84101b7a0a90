"""Programs, keys and servers in a few lines."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tradeoff.engines import ckks
from tradeoff.engines.ckks import Builder, Parameters, Plan, Program
from tradeoff.engines.ckks.backends import evaluator, secret
from tradeoff.engines.ckks.execution import Execution


def small_program(period: int = 8) -> Program:
    """Two rotations and a product with known weights: depth 1, so that the smallest secure ring will do."""
    build = Builder(period)
    x = build.input("x")
    with build.layer("mix"):
        weights = np.linspace(0.5, 1.0, period)
        y = build.rescaled([(x, weights), (build.rotate(x, 1), -weights), (build.rotate(x, 3), weights / 2)])
        y = build.add_plain(y, np.ones(period))
    return build.finish([y], f"vector({period})", f"vector({period})")


def run_program(
    program: Program, plan: Plan, inputs: list[Any], *, execution: Any = None, keys: Any = None
) -> tuple[list[Any], Any]:
    """Encrypt, run and decrypt in this process: (slots of each result, meter)."""
    key = keys or secret(plan.backend, plan.parameters).generate(plan.parameters)
    engine = evaluator(plan.backend, plan.parameters)
    engine.load_keys(key.evaluation_keys(plan.steps, plan.relinearize))
    execution = execution or Execution(program, plan, engine)
    fresh = [engine.load(key.encrypt(x, plan.parameters.scale)) for x in inputs]
    outputs, meter = execution.run(fresh)
    saved = [engine.save(output) for output in outputs]
    return [key.decrypt(s, plan.output_level, plan.output_scale) for s in saved], meter


@pytest.fixture(scope="session")
def tiny() -> tuple[Program, Plan]:
    program = small_program()
    plan = ckks.prepare(program, np.random.default_rng(0).uniform(-1, 1, (4, 8)), preset="compact")
    assert plan.parameters.log_n == 12
    return program, plan


@pytest.fixture(scope="session")
def program_runner() -> Callable[..., Any]:
    return run_program


@pytest.fixture(scope="session")
def toy_parameters() -> Parameters:
    """Fast and not secure."""
    return Parameters(11, 6, 30, 45, 50, secure=False)


@pytest.fixture(scope="module")
def session(tiny: Any, tmp_path_factory: Any) -> Iterator[ckks.Session]:
    """A server process and a client of it."""
    folder: Path = tmp_path_factory.mktemp("session")
    with ckks.Session(*tiny, folder=folder) as running:
        yield running
