"""Programs: planned is executed, back ends agree with the reference, scales are exact."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core.errors import DataError
from tradeoff.engines import ckks
from tradeoff.engines.ckks import Builder, Parameters, Program, ScaleMismatch
from tradeoff.engines.ckks.backends import evaluator, secret
from tradeoff.engines.ckks.backends.plain import PlainEvaluator
from tradeoff.engines.ckks.execution import Execution
from tradeoff.engines.ckks.simulation import simulated_error


def random_program(seed: int, period: int = 16, depth: int = 6) -> Program:
    """At most 20 operations on values that stay small."""
    generator = np.random.default_rng(seed)
    build = Builder(period)
    values = [build.input("a"), build.input("b")]
    for index in range(int(generator.integers(1, 12))):
        x, y = (int(generator.choice(values)) for _ in range(2))
        with build.layer(f"layer {index}"):
            room = depth - max(build.consumed(x), build.consumed(y))
            match generator.integers(0, 5 if room > 0 else 3):
                case 0:
                    made = build.rotate(x, int(generator.integers(0, period)))
                case 1:
                    made = build.add_plain(x, generator.uniform(-0.2, 0.2, period))
                case 2:
                    aligned = build.consumed(x) == build.consumed(y)
                    made = build.rotate(y, 1) if not aligned else build.rotate(x, 2)
                case 3:
                    terms = [
                        (x, generator.uniform(-0.5, 0.5, period)),
                        (y, generator.uniform(-0.5, 0.5, period)),
                    ]
                    made = build.rescaled(terms)
                case _:
                    made = build.multiply(x, y)
        values.append(made)
    return build.finish([values[-1]], f"vector({period})", f"vector({period})")


def planned(program: Program, parameters: Parameters, backend: str) -> Any:
    return ckks.plan(program, parameters=parameters, backend=backend)


def inputs(seed: int, period: int = 16) -> list[Any]:
    return list(np.random.default_rng([seed, 1]).uniform(-1, 1, (2, period)))


def tolerance(program: Program, parameters: Parameters, x: list[Any]) -> float:
    """The predicted error of the result: four times the largest of ten simulated ones."""
    plan = planned(program, parameters, "plain")
    sample = dict(zip(program.inputs, x, strict=True))
    return 4 * simulated_error(program, plan, [sample] * 10, seed=1)


def check(program: Program, parameters: Parameters, seed: int, backend: str, runner: Any) -> None:
    x = inputs(seed)
    plan = planned(program, parameters, backend)
    results, meter = runner(program, plan, x)
    expected = ckks.evaluate(program, dict(zip(program.inputs, x, strict=True)))
    for result, wanted in zip(results, expected, strict=True):
        assert np.abs(result[: len(wanted)] - wanted).max() <= tolerance(program, parameters, x)
    assert meter.counts == ckks.predicted_counts(program, parameters).counts


@given(seed=st.integers(0, 10**6))
@settings(max_examples=200)
def test_planned_is_executed_in_the_clear(seed: int, toy_parameters: Any, program_runner: Any) -> None:
    check(random_program(seed), toy_parameters, seed, "plain", program_runner)


@pytest.mark.parametrize("seed", range(50))
def test_random_programs_under_seal(seed: int, toy_parameters: Any, program_runner: Any) -> None:
    check(random_program(seed), toy_parameters, seed, "seal", program_runner)


@pytest.mark.parametrize("seed", range(5))
def test_random_programs_at_full_security(seed: int, program_runner: Any) -> None:
    program = random_program(seed, depth=2)
    parameters = ckks.choose(program.depth, 16, scale_bits=36, first_bits=46, special_bits=56)
    assert parameters.secure
    check(program, parameters, seed, "seal", program_runner)


def rotation_errors(parameters: Parameters, backend: str, keys: int) -> Any:
    """Errors (keys, 8) of the first slots after a rotation, under fresh keys."""
    x, found = np.random.default_rng(5).uniform(-1, 1, 8), []
    for seed in range(keys):
        key = secret(backend, parameters).generate(parameters)
        engine = (
            PlainEvaluator(parameters, seed=seed) if backend == "plain" else evaluator(backend, parameters)
        )
        engine.load_keys(key.evaluation_keys([3], False))
        turned = engine.rotate(engine.load(key.encrypt(x, parameters.scale)), 3)
        slots = key.decrypt(engine.save(turned), parameters.depth, parameters.scale)
        found.append(slots[:8] - np.roll(x, -3))
    return np.array(found)


@pytest.mark.parametrize("special", [38, 43])
def test_noise_of_the_simulation_is_that_of_seal(special: int) -> None:
    """Also where the special prime is no larger than the first, and slot 0 gets far more than the others."""
    parameters = Parameters(12, 1, 28, 38, special)
    seal, plain = (rotation_errors(parameters, backend, 60) for backend in ("seal", "plain"))
    deviations = np.sqrt((seal**2).mean(0)), np.sqrt((plain**2).mean(0))
    assert (np.abs(np.log2(deviations[0] / deviations[1])) < 1).all()
    if special == 38:
        assert deviations[0][0] > 20 * deviations[0][4:].max()


def test_scales_stay_exact_over_twelve_products(program_runner: Any) -> None:
    build = Builder(8)
    x = build.input("x")
    for _ in range(12):
        x = build.rescaled([(x, np.full(8, 0.9))])
    program = build.finish([x], "vector(8)", "vector(8)")
    plan = ckks.plan(program, preset="compact")
    assert plan.parameters.log_n == 14
    assert plan.output_scale == pytest.approx(plan.parameters.scale, rel=1e-12)
    (result,), _ = program_runner(program, plan, [np.linspace(-1, 1, 8)])
    assert np.abs(result[:8] - 0.9**12 * np.linspace(-1, 1, 8)).max() < 1e-3


def test_constant_scales_drift_and_the_sum_is_refused() -> None:
    parameters = Parameters(13, 3, 28, 38, 38)
    key = secret("seal", parameters).generate(parameters)
    engine = evaluator("seal", parameters)
    x = engine.load(key.encrypt(np.ones(4), parameters.scale))
    drifted = engine.rescale(engine.multiply_plain(x, engine.encode(np.ones(4), 3, parameters.scale)))
    assert abs(engine.scale(drifted) / parameters.scale - 1) > 1e-6
    with pytest.raises(ValueError, match="scale mismatch"):
        engine.add(drifted, engine.lower(x, 2))


def test_different_scales_are_refused_when_planned() -> None:
    build = Builder(4)
    x = build.input("x")
    product = build.multiply(x, x)  # has the scale s^2 / q, not s
    program = build.finish([build.add([product, x])], "vector(4)", "vector(4)")
    with pytest.raises(ScaleMismatch, match="scales"):
        ckks.plan(program)


def test_a_product_of_prepared_factors_has_the_nominal_scale() -> None:
    build = Builder(4)
    x = build.input("x")
    half = build.rescaled([(x, np.full(4, 0.5))], for_product=True)
    total = build.add([build.multiply(half, half), build.rescaled([(x, np.ones(4))])])
    program = build.finish([total], "vector(4)", "vector(4)")
    plan = ckks.plan(program)
    assert plan.output_scale == pytest.approx(plan.parameters.scale, rel=1e-12)


def test_levels_that_are_not_there(toy_parameters: Any) -> None:
    build = Builder(4)
    x = build.input("x")
    for _ in range(7):
        x = build.multiply(x, x)
    deep = build.finish([x], "vector(4)", "vector(4)")
    with pytest.raises(ckks.LevelExhausted, match="7 levels but 6"):
        ckks.plan(deep, parameters=toy_parameters)
    for _ in range(33):
        x = build.multiply(x, x)
    deeper = build.finish([x], "vector(4)", "vector(4)")
    with pytest.raises(ckks.LevelExhausted, match="but 19 are there"):
        ckks.plan(deeper)


def test_missing_keys_are_named_before_anything_is_computed(tiny: Any) -> None:
    _, plan = tiny
    key = secret("seal", plan.parameters).generate(plan.parameters)
    engine = evaluator("seal", plan.parameters)
    engine.load_keys(key.evaluation_keys([1], False))
    with pytest.raises(ckks.MissingRotationKey, match="rotation by 3"):
        engine.require_steps(plan.steps, False)
    with pytest.raises(ckks.MissingRotationKey):
        engine.require_steps([1], True)
    x = engine.load(key.encrypt(np.ones(4), plan.parameters.scale))
    with pytest.raises(ckks.MissingRotationKey):  # not put together from the steps that are there
        engine.rotate(x, 2)


def test_encoded_weights_are_kept_within_their_budget(tiny: Any) -> None:
    program, plan = tiny
    engine = evaluator("seal", plan.parameters)
    key = secret("seal", plan.parameters).generate(plan.parameters)
    engine.load_keys(key.evaluation_keys(plan.steps, plan.relinearize))
    fresh = [engine.load(key.encrypt(np.ones(8), plan.parameters.scale))]
    kept, nothing = Execution(program, plan, engine), Execution(program, plan, engine, cache_bytes=0)
    assert [kept.run(fresh)[1].encodings for _ in range(2)] == [4, 0]
    assert [nothing.run(fresh)[1].encodings for _ in range(2)] == [4, 4]


def test_programs_survive_files(tmp_path: Any, tiny: Any) -> None:
    program, plan = tiny
    ckks.save_program(tmp_path, program, plan)
    again, same = ckks.load_program(tmp_path)
    assert same == plan
    assert again.digest == program.digest
    assert all(np.array_equal(a, b) for a, b in zip(again.vectors, program.vectors, strict=True))
    (tmp_path / "program.safetensors").write_bytes(b"no program")
    with pytest.raises(DataError, match="is no program"):
        ckks.load_program(tmp_path)
    with pytest.raises(DataError, match="holds no program"):
        ckks.load_program(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["operations"][1].__setitem__(2, 99), "not there"),
        (lambda s: s["operations"][1].__setitem__(3, 99), "rotates by 99"),
        (lambda s: s["operations"].append(["launch", 0]), "not a program"),
        (lambda s: s["operations"].append(["rotate", 0, 1]), "not a program"),
        (lambda s: s["outputs"].append(99), "no operation 99"),
        (lambda s: s.__setitem__("period", 7), "period"),
        (lambda s: s.pop("layers"), "not a program"),
    ],
)
def test_damaged_programs(change: Any, said: str, tiny: Any) -> None:
    program, _ = tiny
    structure = program.structure()
    change(structure)
    with pytest.raises(DataError, match=said):
        Program.rebuild(structure, program.matrix())
