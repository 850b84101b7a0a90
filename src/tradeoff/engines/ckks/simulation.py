"""How far a program's results are from exact ones, by running it on simulated ciphertexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tradeoff.engines.ckks.backends.plain import PlainEvaluator, PlainSecret
from tradeoff.engines.ckks.execution import Execution
from tradeoff.engines.ckks.planning import Plan
from tradeoff.engines.ckks.program import Program, Slots
from tradeoff.engines.ckks.reference import evaluate


def simulated_error(
    program: Program, plan: Plan, samples: Sequence[Mapping[str, Slots]], *, seed: int = 0
) -> float:
    """The largest difference of a result's slot from the exact one, over inputs, each with fresh noise."""
    simulated = replace(plan, backend="plain")
    evaluator = PlainEvaluator(plan.parameters, seed=seed)
    secret = PlainSecret(plan.parameters)
    evaluator.load_keys(secret.evaluation_keys(plan.steps, plan.relinearize))
    execution = Execution(program, simulated, evaluator, cache_bytes=0)
    largest = 0.0
    for inputs in samples:
        scale = plan.parameters.scale
        fresh = [evaluator.load(secret.encrypt(inputs[name], scale)) for name in program.inputs]
        results, _ = execution.run(fresh)
        for result, exact in zip(results, evaluate(program, inputs), strict=True):
            largest = max(largest, float(np.abs(result.values - exact).max()))
    return largest
