"""Schemes behind one interface: SEAL, OpenFHE where it can be imported, and a simulation in the clear."""

from __future__ import annotations

from typing import Any

from tradeoff.engines.ckks.backends.backend import Evaluator, Secret
from tradeoff.engines.ckks.parameters import Parameters

NAMES = ("seal", "plain")

__all__ = ["NAMES", "Evaluator", "Secret", "evaluator", "secret"]


def evaluator(name: str, parameters: Parameters) -> Evaluator[Any, Any]:
    """What computes on ciphertexts; it has no secret key and no way to take one.

    Raises:
        ValueError: an unknown back end. MissingExtra: its package is not installed.
    """
    if name == "seal":
        from tradeoff.engines.ckks.backends.seal import SealEvaluator

        return SealEvaluator(parameters)
    if name == "plain":
        from tradeoff.engines.ckks.backends.plain import PlainEvaluator

        return PlainEvaluator(parameters)
    raise ValueError(f"there is no back end {name!r}; there are {', '.join(NAMES)}")


def secret(name: str, parameters: Parameters) -> type[Secret[Any, Any]]:
    """The key owner's side of a back end."""
    if name == "seal":
        from tradeoff.engines.ckks.backends.seal_secret import SealSecret

        return SealSecret
    if name == "plain":
        from tradeoff.engines.ckks.backends.plain import PlainSecret

        return PlainSecret
    raise ValueError(f"there is no back end {name!r}; there are {', '.join(NAMES)}")
