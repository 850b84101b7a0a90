"""Security table, primes and the choice of parameters."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradeoff.core.errors import DataError
from tradeoff.engines import ckks
from tradeoff.engines.ckks import InsecureParameters, LevelExhausted, Parameters
from tradeoff.engines.ckks.backends.seal import seal_context, sealapi
from tradeoff.engines.ckks.parameters import LIMITS, _is_prime


def test_the_table_is_that_of_seal() -> None:
    api = sealapi()
    for log_n, bits in LIMITS.items():
        assert api.CoeffModulus.MaxBitCount(1 << log_n, api.SEC_LEVEL_TYPE.TC128) == bits


@given(st.integers(3, 10_000))
def test_primality(number: int) -> None:
    assert _is_prime(number) == all(number % d for d in range(2, int(number**0.5) + 1))


@pytest.mark.parametrize("preset", ["standard", "compact"])
def test_primes(preset: str) -> None:
    parameters = ckks.choose(4, 1000, preset=preset)
    assert len(set(parameters.primes)) == len(parameters.primes) == 6
    sizes = [parameters.first_bits, *[parameters.scale_bits] * 4, parameters.special_bits]
    assert [prime.bit_length() for prime in parameters.primes] == sizes
    assert all(prime % (2 * parameters.n) == 1 and _is_prime(prime) for prime in parameters.primes)
    assert seal_context(parameters).parameters_set()


@given(st.integers(0, 16), st.integers(1, 16384), st.integers(26, 45))
def test_the_smallest_secure_ring(depth: int, slots: int, scale: int) -> None:
    try:
        chosen = ckks.choose(depth, slots, scale_bits=scale, first_bits=scale + 10, special_bits=scale + 15)
    except LevelExhausted as error:
        left = error.left
        assert left == (881 - 2 * scale - 25) // scale < depth
        return
    assert chosen.total_bits <= LIMITS[chosen.log_n]
    assert chosen.slots >= slots
    if chosen.log_n > 10:
        smaller = LIMITS[chosen.log_n - 1] < chosen.total_bits or chosen.slots // 2 < slots
        assert smaller


def test_one_bit_over_the_table() -> None:
    assert Parameters(13, 3, 36, 50, 60).slack_bits == 0
    with pytest.raises(InsecureParameters, match=r"219 bits.*allows 218") as caught:
        Parameters(13, 3, 36, 51, 60)
    assert (caught.value.total_bits, caught.value.limit, caught.value.n) == (219, 218, 8192)
    with pytest.raises(InsecureParameters):
        Parameters(13, 3, 36, 50, 60, margin_bits=1)


def test_one_bit_over_the_table_is_refused_by_both_sides(tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    program, plan = tiny
    ckks.save_program(tmp_path, program, plan)
    path = tmp_path / "public" / "plan.json"
    values = json.loads(path.read_text())
    values["parameters"]["first_bits"] += LIMITS[12] - plan.parameters.total_bits + 1
    path.write_text(json.dumps(values))
    with pytest.raises(InsecureParameters):
        ckks.load_plan(tmp_path / "public")
    with pytest.raises(InsecureParameters):
        ckks.load_program(tmp_path)
    # Nor does a flag help that says that security does not matter.
    values["parameters"]["secure"] = False
    path.write_text(json.dumps(values))
    from tradeoff.engines.transport import Config

    with pytest.raises(InsecureParameters):
        ckks.serve_program(*ckks.load_program(tmp_path), Config(("127.0.0.1:0", None)), tmp_path / "keys")


@pytest.mark.parametrize(
    "change",
    [
        {"log_n": 9},
        {"first_bits": 40},
        {"scale_bits": 61},
        {"depth": -1},
        {"margin_bits": -1},
        {"log_n": 13.0},
    ],
)
def test_impossible_parameters(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        Parameters(**{"log_n": 14, "depth": 2, **change})


def test_presets_and_json() -> None:
    with pytest.raises(ValueError, match="standard, compact"):
        ckks.choose(1, 1, preset="huge")
    parameters = Parameters(13, 3, 36, 50, 60)
    assert Parameters.from_json(parameters.to_json()) == parameters
    for broken in ({}, [], {**parameters.to_json(), "depth": "3"}, {**parameters.to_json(), "x": 1}):
        with pytest.raises(DataError):
            Parameters.from_json(broken)


def test_a_plan_survives_json_and_notices_damage(tiny) -> None:  # type: ignore[no-untyped-def]
    _, plan = tiny
    values = json.loads(json.dumps(plan.to_json()))
    assert ckks.Plan.from_json(values) == plan
    assert ckks.Plan.from_json(values).digest == plan.digest
    for name, wrong in {
        "steps": [0],
        "inputs": 3,
        "output_level": 99,
        "input_layout": "vector(99999)",
    }.items():
        with pytest.raises(DataError):
            ckks.Plan.from_json({**values, name: wrong})
    assert dataclasses.replace(plan, output_bound=1.0).digest != plan.digest


def test_ranges(tiny) -> None:  # type: ignore[no-untyped-def]
    program, _ = tiny
    with pytest.raises(ckks.RangeError, match="mix: values reach") as caught:
        ckks.prepare(program, np.full((1, 8), 1e4), preset="compact")
    assert caught.value.limit == pytest.approx(512, rel=1e-3)
