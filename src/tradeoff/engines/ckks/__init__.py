"""Inference on encrypted data under CKKS: a client encrypts, a server computes, and never has the secret key.

Parameters, levels and costs are planned before anything is encrypted. Threat model, packing, commands and
limits: README.md in this folder.

Example::

    from tradeoff.engines import ckks

    program = ckks.compile(model, (30,))
    plan = ckks.prepare(program, some_inputs)
    print(plan.parameters.describe())
    with ckks.Session(program, plan) as session:  # the server is a process of its own, over TLS
        result = session.infer(x)
        print(result.values, result.report)
"""

from tradeoff.engines.ckks.calibration import Timings, measure, predict
from tradeoff.engines.ckks.client import Client, Connection, Report, Result
from tradeoff.engines.ckks.compile import compile, prepare, smallest
from tradeoff.engines.ckks.errors import (
    CorruptMessage,
    InsecureParameters,
    KeysMismatch,
    LevelExhausted,
    MissingRotationKey,
    PrecisionLost,
    QuotaExceeded,
    RangeError,
    ScaleMismatch,
    WrongKeyOrNoise,
)
from tradeoff.engines.ckks.files import load_plan, load_program, save_program
from tradeoff.engines.ckks.keys import Keys
from tradeoff.engines.ckks.layouts import ChannelTime, Grouped, Layout, Vector, parse_layout
from tradeoff.engines.ckks.meter import Meter
from tradeoff.engines.ckks.parameters import Parameters, choose
from tradeoff.engines.ckks.planning import Plan, plan, predicted_counts
from tradeoff.engines.ckks.program import Builder, Program
from tradeoff.engines.ckks.reference import evaluate
from tradeoff.engines.ckks.server import serve_program
from tradeoff.engines.ckks.session import Session, Setup

__all__ = [
    "Builder",
    "ChannelTime",
    "Client",
    "Connection",
    "CorruptMessage",
    "Grouped",
    "InsecureParameters",
    "Keys",
    "KeysMismatch",
    "Layout",
    "LevelExhausted",
    "Meter",
    "MissingRotationKey",
    "Parameters",
    "Plan",
    "PrecisionLost",
    "Program",
    "QuotaExceeded",
    "RangeError",
    "Report",
    "Result",
    "ScaleMismatch",
    "Session",
    "Setup",
    "Timings",
    "Vector",
    "WrongKeyOrNoise",
    "choose",
    "compile",
    "evaluate",
    "load_plan",
    "load_program",
    "measure",
    "parse_layout",
    "plan",
    "predict",
    "predicted_counts",
    "prepare",
    "save_program",
    "serve_program",
    "smallest",
]
