"""Folding is exact, levels and operations are those of the formulas, ciphertexts give the same logits."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core.errors import DataError
from tradeoff.engines import ckks
from tradeoff.engines.ckks.backends import evaluator, secret
from tradeoff.engines.ckks.execution import Execution
from tradeoff.methods.private_inference.lingcn import STGCN, Shape, StructuralError, fold, to_program
from tradeoff.methods.private_inference.lingcn.encryption import clip_batch
from tradeoff.methods.private_inference.lingcn.inference import infer_encrypted, prepare


def in_the_clear(program: ckks.Program, x: Any) -> Any:
    """The program's reference evaluation of sequences, one batch."""
    layout = ckks.parse_layout(program.input_layout)
    vectors = dict(zip(program.inputs, layout.pack(x), strict=True))
    return ckks.parse_layout(program.output_layout).unpack(ckks.evaluate(program, vectors))


@given(
    seed=st.integers(0, 10**6),
    strides=st.sampled_from([(1,), (2,), (1, 1), (1, 2), (2, 2), (2, 1, 2)]),
    frames=st.integers(5, 17),
    gates=st.sampled_from([None, -0.5, 0.0, 0.5]),
)
@settings(max_examples=40)
def test_folded_networks_equal_torch(
    seed: int,
    strides: Any,
    frames: int,
    gates: Any,
    make_network: Any,
    make_sequences: Any,
    plain_logits: Any,
) -> None:
    channels = tuple(4 if i % 2 else 3 for i in range(len(strides)))
    network = make_network(seed, channels, strides, gates=gates)
    network.layers[0].first.polynomial.w2.data[0] = 0.0  # where its gate is open, a joint is linear
    folded = fold(network, frames, structural=False)
    x = make_sequences(seed, 3, frames)
    wanted = plain_logits(network, x)
    scale = np.abs(wanted).max()
    assert np.abs(folded.evaluate(x) - wanted).max() <= 1e-10 * scale
    program = to_program(folded, batch=3)
    assert np.abs(in_the_clear(program, x) - wanted).max() <= 1e-9 * scale


@pytest.mark.parametrize("seed", range(30))
def test_depth_is_that_of_the_formula(seed: int, make_network: Any) -> None:
    layers = 1 + seed % 3
    network = make_network(seed, (4,) * layers, gates=0.3 * (seed % 5 - 2))
    k = network.effective_layers()
    folded = fold(network, 8)
    assert folded.depth == 2 * layers + k + 1
    assert to_program(folded).depth == 2 * layers + k + 1
    assert to_program(folded, fused=False).depth == 2 * layers + 2 * k + 1


def test_unstructured_gates_are_refused_or_pay_in_full(
    make_network: Any, make_sequences: Any, plain_logits: Any
) -> None:
    network = make_network(3, gates=0.0, rule="unstructured")
    counts = network.gates().sum(1)
    assert (counts.amax(1) != counts.amin(1)).any()
    with pytest.raises(StructuralError, match="layer 0: joints have different numbers"):
        fold(network, 8)
    folded = fold(network, 8, structural=False)
    assert folded.activation_levels == int(counts.amax(1).sum())
    program = to_program(folded, batch=2)
    assert program.depth == folded.depth
    x = make_sequences(0, 2, 8)
    assert np.allclose(in_the_clear(program, x), plain_logits(network, x))


def test_operations_are_those_of_the_formulas(make_network: Any, humanoid: Any) -> None:
    """15 joints, 43 edges, 8 channels, 9 taps, two layers, all activations: counts by the formulas."""
    network = make_network(0, (8, 8), skeleton=humanoid, classes=8)
    program = to_program(fold(network, 32))
    meter = ckks.predicted_counts(program, ckks.plan(program).parameters)
    joints, edges, channels, taps = 15, 43, 8, 9
    layers = {row["layer"]: row for row in meter.rows()}
    for index in (0, 1):
        graph, time = layers[f"{index} graph"], layers[f"{index} time"]
        assert graph["rotate"] == joints * (channels - 1)
        assert graph["ct_pt"] == edges * channels
        assert time["rotate"] == joints * (taps + channels - 2)
        # The identity residual is one more product a joint.
        assert time["ct_pt"] == joints * taps * channels + (joints if index else 0)
        for position in ("first", "second"):
            assert layers[f"{index} {position} activation"]["ct_ct"] == joints
    assert layers["classifier"]["rotate"] == channels - 1 + 5
    assert meter.total("ct_ct") == 60
    assert sum(row["ct_pt"] for name, row in layers.items() if name != "classifier") == 2848 + joints


@pytest.mark.parametrize(
    ("preset", "bound", "channels", "taps"), [("standard", 1e-4, (4,), 9), ("compact", 2e-2, (4,), 9)]
)
def test_ciphertexts_give_the_same_logits(
    preset: str, bound: float, channels: Any, taps: int, make_network: Any, make_sequences: Any
) -> None:
    """5 joints, 16 frames, 4 channels, 20 sequences in one batch, under SEAL at 128-bit security."""
    network = make_network(11, channels, gates=0.4, calm=True, taps=taps)
    assert network.effective_layers() > 0
    folded = fold(network, 16)
    x = make_sequences(0, 20, 16)
    made = prepare(folded, make_sequences(1, 20, 16), batch=20, preset=preset)
    engine = evaluator("seal", made.plan.parameters)
    key = secret("seal", made.plan.parameters).generate(made.plan.parameters)
    engine.load_keys(key.evaluation_keys(made.plan.steps, made.plan.relinearize))
    vectors = made.plan.layout_in.pack(x)
    fresh = [engine.load(key.encrypt(vector, made.plan.parameters.scale)) for vector in vectors]
    outputs, meter = Execution(made.program, made.plan, engine).run(fresh)
    level, scale = made.plan.output_level, made.plan.output_scale
    slots = [key.decrypt(engine.save(output), level, scale) for output in outputs]
    logits, wanted = made.plan.layout_out.unpack(slots), folded.evaluate(x)
    assert np.abs(logits - wanted).max() < bound * np.abs(wanted).max()
    assert np.array_equal(logits.argmax(1), wanted.argmax(1))
    assert meter.counts == made.meter.counts


def test_two_hundred_sequences_with_simulated_noise(make_network: Any, make_sequences: Any) -> None:
    network = make_network(11, (4, 4), gates=0.4, calm=True)
    folded = fold(network, 16)
    made = prepare(folded, make_sequences(1, 50, 16), batch=50, preset="standard")
    from dataclasses import replace

    plan = replace(made.plan, backend="plain")
    engine, key = (
        evaluator("plain", plan.parameters),
        secret("plain", plan.parameters).generate(plan.parameters),
    )
    engine.load_keys(key.evaluation_keys(plan.steps, plan.relinearize))
    execution, x = Execution(made.program, plan, engine), make_sequences(0, 200, 16)
    logits = []
    for part in np.split(x, 4):
        fresh = [engine.load(key.encrypt(v, plan.parameters.scale)) for v in plan.layout_in.pack(part)]
        logits.append(plan.layout_out.unpack([output.values for output in execution.run(fresh)[0]]))
    found, wanted = np.concatenate(logits), folded.evaluate(x)
    top = np.sort(wanted, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-3 * np.abs(wanted).max()
    assert clear.sum() > 150
    assert np.array_equal(found.argmax(1)[clear], wanted.argmax(1)[clear])


def test_border_frames(make_network: Any, make_sequences: Any, plain_logits: Any) -> None:
    """A change of a border frame alone changes the logits as in torch."""
    network = make_network(5, (4,), gates=None)
    program = to_program(fold(network, 16))
    x = make_sequences(0, 1, 16)
    for frame in (0, 1, 2, 3, 12, 13, 14, 15):
        moved = x.copy()
        moved[:, :, frame] += 1.0
        assert np.allclose(in_the_clear(program, moved), plain_logits(network, moved))


def test_smallest_parameters(make_network: Any, make_sequences: Any) -> None:
    network = make_network(11, (4, 4), gates=0.4, calm=True)
    folded, x = fold(network, 16), make_sequences(1, 8, 16)
    loose, strict = prepare(folded, x, precision=0.9), prepare(folded, x, precision=1e-6)
    assert loose.plan.parameters.slack_bits >= 0
    assert loose.plan.parameters.log_n < strict.plan.parameters.log_n
    unfused = prepare(folded, x, fused=False, precision=0.9)
    assert unfused.plan.parameters.total_bits > loose.plan.parameters.total_bits
    largest = np.abs(folded.evaluate(x)).max()
    assert loose.plan.noise_bound <= 0.9 * largest
    with pytest.raises(ckks.LevelExhausted, match="levels"):
        prepare(folded, x, precision=1e-6, max_log_n=12)
    with pytest.raises(ckks.PrecisionLost, match="no ring"):
        prepare(folded, x, precision=1e-12)


def test_between_two_processes(make_network: Any, make_sequences: Any) -> None:
    network = make_network(2, (2, 2), strides=(1, 2), gates=0.0, calm=True, taps=3)
    made = prepare(fold(network, 4), make_sequences(1, 8, 4), batch=2, precision=0.5)
    done = infer_encrypted(made, make_sequences(0, 2, 4), calibrate=True)
    assert done.agreement == 1.0
    assert done.error < 4 * made.plan.noise_bound
    assert done.report.meter.counts == made.meter.counts
    assert done.predicted_seconds > 0
    assert done.peak_memory > 10_000_000


def test_bad_input(make_network: Any, make_sequences: Any) -> None:
    network = make_network(0)
    with pytest.raises(ValueError, match="4 joints"):
        network(torch.zeros(1, 3, 8, 4, 1, dtype=torch.double))
    with pytest.raises(ValueError, match="frames, not 0"):
        fold(network, 0)
    relus = STGCN(network.skeleton, Shape((4,), (1,), 3))
    with pytest.raises(ValueError, match="has ReLUs"):
        fold(relus, 8)
    with pytest.raises(ValueError, match="3 sequences for a batch of 2"):
        clip_batch(make_sequences(0, 3, 8), 2)
    with pytest.raises(ValueError, match="odd"):
        Shape((4,), (1,), 3, taps=4)
    with pytest.raises(ValueError, match="2 channels and 1 strides"):
        Shape((4, 4), (1,), 3)
    with pytest.raises(DataError, match="at most"):
        to_program(fold(make_network(0, (64,)), 16), batch=128)
    wild = make_network(0)
    wild.classifier.weight.data.mul_(1e9)
    with pytest.raises(ckks.RangeError, match="clip their weights"):
        prepare(fold(wild, 8), make_sequences(0, 4, 8), preset="standard")
