"""A trained network under encryption: its smallest parameters, what it will cost, and a real inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines import ckks
from tradeoff.methods.private_inference.lingcn.encryption import clip_batch, to_program
from tradeoff.methods.private_inference.lingcn.folding import FoldedNetwork

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prepared:
    """A network, its program and plan.

    Attributes:
        meter: what an inference does, counted from the program.
    """

    network: FoldedNetwork
    program: ckks.Program
    plan: ckks.Plan
    batch: int

    @property
    def meter(self) -> ckks.Meter:
        return ckks.predicted_counts(self.program, self.plan.parameters)


def prepare(
    network: FoldedNetwork,
    calibration: Floats,
    *,
    batch: int = 1,
    fused: bool = True,
    precision: float = 0.02,
    preset: str | None = None,
    max_log_n: int = 15,
) -> Prepared:
    """The program of a network with the smallest parameters that keep its results precise.

    Args:
        calibration: sequences (n, channels, frames, joints) from the training.
        batch: sequences in a request.
        fused: False for a level more an activation (:func:`to_program`).
        precision: noise that is allowed, as part of the largest logit in calibration.
        preset: in place of that, ``standard`` or ``compact``.

    Raises:
        LevelExhausted: no ring up to ``2^max_log_n`` has so many levels; it names how many there are.
        RangeError: with a preset, where a value leaves the modulus.
    """
    program = to_program(network, batch=batch, fused=fused)
    chosen = calibration[: batch * max(1, len(calibration) // batch)]
    samples = np.stack(
        [clip_batch(part, batch)[0] for part in np.array_split(chosen, max(1, len(chosen) // batch))]
    )
    if preset is not None:
        return Prepared(network, program, ckks.prepare(program, samples, preset=preset), batch)
    largest = float(np.abs(network.evaluate(chosen)).max())
    plan = ckks.smallest(program, samples, error=precision * largest, max_log_n=max_log_n)
    return Prepared(network, program, plan, batch)


@dataclass(frozen=True)
class EncryptedRun:
    """What one request between two processes gave and took.

    Attributes:
        logits: decrypted (sequences, classes); expected: of the folded network in the clear.
        report: operations, seconds, bytes; setup: keys; peak_memory: of the server, bytes.
        predicted_seconds: evaluation on one core, from timings of single operations; None if not asked for.
    """

    logits: Floats
    expected: Floats
    report: ckks.Report
    setup: ckks.Setup
    peak_memory: int
    predicted_seconds: float | None = None

    @property
    def error(self) -> float:
        """Largest difference of a logit."""
        return float(np.abs(self.logits - self.expected).max())

    @property
    def agreement(self) -> float:
        """Part of the sequences with the same label."""
        return float((self.logits.argmax(1) == self.expected.argmax(1)).mean())


def infer_encrypted(
    prepared: Prepared, clips: Floats, *, folder: Path | None = None, calibrate: bool = False
) -> EncryptedRun:
    """Start a server process with the program, send it one encrypted request over TLS, decrypt the result.

    Args:
        clips: sequences (n, channels, frames, joints), at most the program's batch.
        folder: for the server's files; a temporary one if None.
        calibrate: time single operations first, to predict what the evaluation takes.
    """
    x, n = clip_batch(clips, prepared.batch)
    predicted = None
    if calibrate:
        timings = ckks.measure(prepared.plan.parameters, repeats=3)
        predicted = ckks.predict(prepared.program, prepared.plan, timings)[0]
    with ckks.Session(prepared.program, prepared.plan, folder=folder) as session:
        result = session.infer(x)
        peak = session.peak_memory()
        setup = session.setup
    expected = prepared.network.evaluate(clips)
    return EncryptedRun(result.values[:n], expected, result.report, setup, peak, predicted)
