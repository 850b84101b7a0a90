"""What a client notices, and what it may hand on."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tradeoff.engines import ckks
from tradeoff.engines.ckks import Client, Keys, Meter, PrecisionLost, Report, Result, WrongKeyOrNoise
from tradeoff.engines.ckks.backends import evaluator
from tradeoff.engines.ckks.client import sharing_deviation
from tradeoff.engines.ckks.execution import Execution


def answered(program: Any, plan: Any, keys: Keys, x: Any) -> list[bytes]:
    engine = evaluator(plan.backend, plan.parameters)
    engine.load_keys(keys.evaluation)
    fresh = [engine.load(data) for data in Client(plan, keys).encrypt(x)]
    outputs, _ = Execution(program, plan, engine).run(fresh)
    return [engine.save(output) for output in outputs]


def test_wrong_keys_are_noticed_and_right_ones_pass(tiny: Any) -> None:
    program, plan = tiny
    assert plan.output_level == 0
    right = Keys.generate(plan)
    result = answered(program, plan, right, np.ones(8))
    caught = 0
    for _ in range(100):
        wrong = replace(right, secret=type(right.secret).generate(plan.parameters))
        try:
            Client(plan, wrong).decrypt(result)
        except WrongKeyOrNoise:
            caught += 1
    assert caught == 100
    generator = np.random.default_rng(0)
    for _ in range(100):
        x = generator.uniform(-1, 1, 8)
        values = Client(plan, right).decrypt(answered(program, plan, right, x))
        assert np.abs(values - ckks.evaluate(program, {"x": x})[0]).max() < 1e-3


def test_results_of_other_parameters_are_refused(tiny: Any) -> None:
    program, plan = tiny
    keys = Keys.generate(plan)
    result = answered(program, plan, keys, np.ones(8))
    with pytest.raises(ckks.CorruptMessage, match="level or scale"):
        Client(replace(plan, output_scale=2 * plan.output_scale), keys).decrypt(result)
    with pytest.raises(ckks.CorruptMessage, match="level or scale"):
        Client(replace(plan, output_level=1), keys).decrypt(result)
    with pytest.raises(ckks.CorruptMessage, match="2 results"):
        Client(plan, keys).decrypt(result * 2)
    with pytest.raises(ckks.CorruptMessage, match="SEAL"):
        Client(plan, keys).decrypt([b"nothing"])
    larger = replace(plan.parameters, log_n=13)
    other = Keys.generate(replace(plan, parameters=larger))
    with pytest.raises(ckks.CorruptMessage):
        Client(plan, replace(keys, secret=other.secret)).decrypt(result)


def test_results_beyond_the_calibrated_range_are_warned_of(tiny: Any, caplog: Any) -> None:
    program, plan = tiny
    keys = Keys.generate(plan)
    result = answered(program, plan, keys, np.ones(8))
    Client(plan, keys).decrypt(result)
    assert not caplog.records
    Client(replace(plan, output_bound=0.01), keys).decrypt(result)
    assert "calibration" in caplog.text


def shared(plan: Any, keys: Keys, values: Any) -> Result:
    return Result(values, Report(plan, Meter(), 0, 0, 0, 0, 0), keys)


def test_shared_results_carry_the_stated_noise(tiny: Any, tmp_path: Any) -> None:
    _, plan = tiny
    keys = Keys.create(plan, tmp_path)
    values = np.full(20_000, 100.0)
    noisy = shared(plan, keys, values).share(tau=1, stat_bits=10, seed=1)
    stated = math.sqrt(12) * 2**5 * plan.noise_bound
    assert sharing_deviation(plan, 1, 10) == pytest.approx(stated)
    assert float(np.std(noisy - values)) == pytest.approx(stated, rel=0.03)
    with pytest.raises(PrecisionLost, match="shared under this key already"):
        shared(plan, Keys.load(plan, tmp_path), values).share(tau=1, stat_bits=10)
    with pytest.raises(PrecisionLost, match="bits of the result"):
        shared(plan, keys, values).share(stat_bits=60)
    with pytest.raises(PrecisionLost, match="no bound"):
        shared(replace(plan, noise_bound=0.0), keys, values).share()


def test_exact_decryptions_give_the_key_away_and_shared_ones_do_not() -> None:
    """Li and Micciancio's attack on a toy CKKS with N = 64: s = (m - c0) / c1 for an exact m."""
    n, q, scale = 64, (1 << 30) - 35, 2.0**20
    generator = np.random.default_rng(0)

    def product(a: Any, b: Any) -> Any:
        full = np.zeros(2 * n, object)
        for i, x in enumerate(a):
            full[i : i + n] += int(x) * b.astype(object)
        return (full[:n] - full[n:]) % q

    def inverse(a: Any) -> Any:
        matrix = np.zeros((n, n + 1), object)
        for j in range(n):
            unit = np.zeros(n, np.int64)
            unit[j] = 1
            matrix[:, j] = product(a, unit)
        matrix[0, n] = 1
        for column in range(n):  # Gauss, modulo a prime
            pivot = next(row for row in range(column, n) if matrix[row, column] % q)
            matrix[[column, pivot]] = matrix[[pivot, column]]
            matrix[column] = matrix[column] * pow(int(matrix[column, column]), -1, q) % q
            for row in range(n):
                if row != column and matrix[row, column]:
                    matrix[row] = (matrix[row] - matrix[row, column] * matrix[column]) % q
        return matrix[:, n]

    secret = generator.integers(-1, 2, n)
    message = np.rint(scale * generator.uniform(-1, 1, n)).astype(np.int64)
    c1 = generator.integers(0, q, n)
    error = np.rint(generator.normal(0, 3.2, n)).astype(np.int64)
    c0 = (message + error - product(c1, secret)) % q
    exact = (c0 + product(c1, secret)) % q  # what an exact decryption gives: message and noise

    def recovered(decrypted: Any) -> Any:
        s = product(
            inverse(c1), np.array([(int(d) - int(c)) % q for d, c in zip(decrypted, c0, strict=True)])
        )
        return np.array([int(v) if v < q // 2 else int(v) - q for v in s])

    assert pow(2, q - 1, q) == 1
    assert np.array_equal(recovered(exact), secret)
    noise = np.rint(generator.normal(0, math.sqrt(12) * 2**5 * 6 * 3.2, n)).astype(np.int64)
    assert not np.array_equal(recovered((exact + noise) % q), secret)
