"""The plan itself: consistency checks, reference execution, rewrites, digest, files."""

import contextlib
import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.nn import plan as op
from tradeoff.nn.plan import Plan, PlanError

RANDOM = np.random.default_rng(0)


def sequence(*operators: op.Operator) -> Plan:
    """A plan of operators that read one another in turn."""
    chained = [operators[0]]
    for operator in operators[1:]:
        chained.append(replace(operator, inputs=(chained[-1].name,)))
    return Plan(tuple(chained), chained[0].shape, chained[-1].name)


def convolution(name: str, channels: int, out: int, size: int) -> op.Convolution:
    """A 3x3 convolution that keeps the size."""
    weight, bias = RANDOM.normal(size=(out, channels, 3, 3)), RANDOM.normal(size=out)
    return op.Convolution(name, (), (out, size, size), weight, bias, (1, 1), (1, 1), (1, 1), 1)


def small_plan(mask: np.ndarray | None = None) -> Plan:
    """conv, masked ReLU, average pooling, conv, ReLU, max pooling, polynomial, flatten, linear."""
    mask = np.arange(2 * 64).reshape(2, 8, 8) % 3 == 0 if mask is None else mask
    window = ((2, 2), (2, 2), (0, 0))
    return sequence(
        op.Input("input", (), (1, 8, 8)),
        convolution("conv", 1, 2, 8),
        op.MaskedReLU("act", (), (2, 8, 8), mask, RANDOM.normal(size=(3, 2))),
        op.AveragePool("pool", (), (2, 4, 4), *window, True),
        convolution("conv2", 2, 3, 4),
        op.ReLU("act2", (), (3, 4, 4)),
        op.MaxPool("pool2", (), (3, 2, 2), *window, (1, 1)),
        op.Polynomial("act3", (), (3, 2, 2), RANDOM.normal(size=(3, 3))),
        op.Flatten("flatten", (), (12,)),
        op.Linear("fc", (), (5,), RANDOM.normal(size=(5, 12)), None),
    )


def kinds(plan: Plan) -> list[str]:
    return [type(operator).__name__ for operator in plan]


def test_relu_count_and_lookup() -> None:
    plan = small_plan()
    assert plan.relu_count == 43 + 48
    assert plan.operator("fc").shape == plan.output_shape == (5,)
    assert len(plan) == 10
    with pytest.raises(KeyError):
        plan.operator("nothing")


def test_arrays_are_read_only_copies() -> None:
    weight = np.ones((2, 3), dtype=np.float32)
    linear = op.Linear("fc", ("input",), (2,), weight, None)
    weight[:] = 7
    assert linear.weight.dtype == np.float64
    assert linear.weight.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        linear.weight[0, 0] = 3


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ((), "begins with an Input"),
        ((op.ReLU("a", ("a",), (3,)),), "begins with an Input"),
        ((op.Input("a", (), (3,)), op.Input("b", (), (3,))), "no place"),
        ((op.Input("a", (), (3,)), op.ReLU("a", ("a",), (3,))), "used twice"),
        ((op.Input("a", (), (3,)), op.ReLU("b", ("c",), (3,))), "not an earlier operator"),
        ((op.Input("a", (), (3,)), op.ReLU("b", ("a",), (4,))), "give \\(3,\\)"),
        ((op.Input("a", (), (3,)), op.ReLU("b", ("a", "a"), (3,))), "2 inputs"),
        ((op.Input("a", (), (3,)), op.Add("b", ("a",), (3,))), "1 inputs"),
        ((op.Input("a", (), (3,)), op.Concatenate("b", (), (3,), 0)), "0 inputs"),
        ((op.Input("a", (), (3,)), op.Concatenate("b", ("a",), (3,), 1)), "dim 1"),
        ((op.Input("a", (), (3,)), op.Linear("b", ("a",), (2,), np.ones((2, 4)), None)), "input"),
        ((op.Input("a", (), (3,)), op.Linear("b", ("a",), (2,), np.ones((2, 3)), np.ones(3))), "bias"),
        ((op.Input("a", (), (3,)), op.Affine("b", ("a",), (3,), np.ones(2), np.ones(3))), "input"),
        ((op.Input("a", (), (3,)), op.Polynomial("b", ("a",), (3,), np.ones((2, 4)))), "coefficients"),
        ((op.Input("a", (), (3,)), op.MaskedReLU("b", ("a",), (3,), np.ones(4), np.ones((2, 3)))), "mask"),
        ((op.Input("a", (), (1, 4)), op.MaxPool("b", ("a",), (1, 2), (2,), (0,), (0,), (1,))), "settings"),
        ((op.Input("a", (), (1, 4)), op.AveragePool("b", ("a",), (1, 4), (2,), (2,), (2,), True)), "padding"),
        ((op.Input("a", (), (1, 4)), op.ArgMax("b", ("a",), ())), "input"),
    ],
)
def test_inconsistent_plans_are_refused(operators: tuple[op.Operator, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan(operators, operators[0].shape if operators else (3,), operators[-1].name if operators else "")


def test_output_and_input_shape_are_checked() -> None:
    source = op.Input("a", (), (3,))
    with pytest.raises(PlanError, match="output"):
        Plan((source,), (3,), "b")
    with pytest.raises(PlanError, match="input shape"):
        Plan((source,), (4,), "a")


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (2, 1, 8, 9), (2, 2, 8, 8)])
def test_evaluate_checks_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="expected \\(batch, 1, 8, 8\\)"):
        small_plan().evaluate(np.zeros(shape))


def test_evaluate_checks_values_and_accepts_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="NaN"):
        small_plan().evaluate(np.full((1, 1, 8, 8), np.nan))
    assert small_plan().evaluate(np.zeros((0, 1, 8, 8))).shape == (0, 5)


def test_convolution_is_the_definition() -> None:
    """Against six nested loops, with groups, stride, padding and dilation all at once."""
    weight, bias = RANDOM.normal(size=(4, 1, 2, 3)), RANDOM.normal(size=4)
    layer = op.Convolution("c", ("x",), (4, 3, 5), weight, bias, (2, 1), (1, 2), (2, 2), 2)
    plan = Plan((op.Input("x", (), (2, 6, 5)), layer), (2, 6, 5), "c")
    x = RANDOM.normal(size=(2, 2, 6, 5))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2)))
    expected = np.zeros((2, 4, 3, 5))
    for n, o, i, j in np.ndindex(expected.shape):
        window = padded[n, o // 2, 2 * i : 2 * i + 3 : 2, j : j + 5 : 2]
        expected[n, o, i, j] = (window * weight[o, 0]).sum() + bias[o]
    np.testing.assert_allclose(plan.evaluate(x), expected, rtol=1e-12)


def test_calibrate_gives_largest_magnitudes() -> None:
    plan, x = small_plan(), RANDOM.normal(size=(6, 1, 8, 8))
    ranges = op.calibrate(plan, x)
    assert set(ranges) == {operator.name for operator in plan}
    assert ranges["input"] == np.abs(x).max()
    assert ranges["fc"] == np.abs(plan.evaluate(x)).max()


def test_swap_relu_maxpool() -> None:
    plan, x = small_plan(), RANDOM.normal(size=(4, 1, 8, 8))
    swapped = op.swap_relu_maxpool(plan)
    assert kinds(swapped)[5:7] == ["MaxPool", "ReLU"]
    assert swapped.relu_count == 43 + 12
    np.testing.assert_array_equal(swapped.evaluate(x), plan.evaluate(x))


def test_swap_of_an_output_and_of_a_chain() -> None:
    pool = op.MaxPool("pool", (), (2, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1))
    chain = sequence(
        op.Input("input", (), (2, 8, 8)),
        op.ReLU("relu", (), (2, 8, 8)),
        pool,
        replace(pool, name="pool2", shape=(2, 2, 2)),
    )
    swapped, x = op.swap_relu_maxpool(chain), RANDOM.normal(size=(3, 2, 8, 8))
    assert [operator.name for operator in swapped] == ["input", "pool", "pool2", "relu"]
    assert swapped.output == "relu"
    np.testing.assert_array_equal(swapped.evaluate(x), chain.evaluate(x))


def test_swap_leaves_a_relu_with_another_reader() -> None:
    plan = Plan(
        (
            op.Input("x", (), (1, 2, 2)),
            op.ReLU("relu", ("x",), (1, 2, 2)),
            op.MaxPool("pool", ("relu",), (1, 2, 2), (3, 3), (1, 1), (1, 1), (1, 1)),
            op.Add("add", ("relu", "pool"), (1, 2, 2)),
        ),
        (1, 2, 2),
        "add",
    )
    assert kinds(op.swap_relu_maxpool(plan)) == kinds(plan)


def test_fold_average_pool() -> None:
    plan, x = small_plan(), RANDOM.normal(size=(4, 1, 8, 8))
    folded = op.fold_average_pool(plan)
    assert kinds(folded)[3] == "SumPool"
    np.testing.assert_allclose(folded.operator("conv2").weight, plan.operator("conv2").weight / 4)
    np.testing.assert_array_equal(folded.operator("conv2").bias, plan.operator("conv2").bias)
    np.testing.assert_allclose(folded.evaluate(x), plan.evaluate(x), rtol=1e-12)


@pytest.mark.parametrize("reader", ["output", "add", "polynomial", "uneven"])
def test_average_pool_stays_where_its_divisor_cannot_move(reader: str) -> None:
    padding = (1, 1) if reader == "uneven" else (0, 0)
    shape = (1, 3, 3) if reader == "uneven" else (1, 2, 2)
    operators: list[op.Operator] = [
        op.Input("x", (), (1, 4, 4)),
        op.AveragePool("pool", ("x",), shape, (2, 2), (2, 2), padding, False),
        op.ReLU("relu", ("pool",), shape),
    ]
    if reader == "add":
        operators.append(op.Add("add", ("relu", "pool"), shape))
    elif reader == "polynomial":
        operators.append(op.Polynomial("poly", ("relu",), shape, np.ones((3, 1))))
    if reader != "output":
        flat = int(np.prod(shape))
        operators.append(op.Flatten("flat", (operators[-1].name,), (flat,)))
        operators.append(op.Linear("fc", ("flat",), (1,), np.ones((1, flat)), None))
    plan = Plan(tuple(operators), (1, 4, 4), operators[-1].name)
    assert kinds(op.fold_average_pool(plan)) == kinds(plan)


def test_average_pool_folds_into_all_of_several_linear_readers() -> None:
    plan = Plan(
        (
            op.Input("x", (), (1, 4, 4)),
            op.AveragePool("pool", ("x",), (1, 2, 2), (2, 2), (2, 2), (0, 0), True),
            op.AveragePool("pool2", ("pool",), (1, 1, 1), (2, 2), (2, 2), (0, 0), True),
            op.Flatten("flat", ("pool2",), (1,)),
            op.Linear("a", ("flat",), (3,), np.ones((3, 1)), np.ones(3)),
            op.Affine("b", ("flat",), (1,), np.full(1, 2.0), np.ones(1)),
            op.Linear("c", ("b",), (3,), np.ones((3, 1)), None),
            op.Add("add", ("a", "c"), (3,)),
        ),
        (1, 4, 4),
        "add",
    )
    folded, x = op.fold_average_pool(plan), RANDOM.normal(size=(2, 1, 4, 4))
    assert kinds(folded).count("SumPool") == 2
    np.testing.assert_allclose(folded.evaluate(x), plan.evaluate(x), rtol=1e-12)
    np.testing.assert_allclose(folded.operator("a").weight, 1 / 16)


def test_fold_batch_norm_keeps_an_affine_of_the_output() -> None:
    """The output of the network may not be renamed away, nor a value that two read be scaled."""
    scale = op.Affine("norm", ("fc",), (2,), np.full(2, 3.0), np.ones(2))
    layer = op.Linear("fc", ("x",), (2,), np.ones((2, 2)), None)
    source = op.Input("x", (), (2,))
    inner = Plan((source, layer, scale), (2,), "fc")
    assert kinds(op.fold_batch_norm(inner)) == kinds(inner)
    outer = Plan((source, layer, scale), (2,), "norm")
    folded = op.fold_batch_norm(outer)
    assert kinds(folded) == ["Input", "Linear"]
    assert folded.output == "fc"
    np.testing.assert_array_equal(folded.evaluate(np.ones((1, 2))), [[7.0, 7.0]])


def test_digest_is_of_the_public_structure() -> None:
    plan = small_plan()
    other_weights = small_plan()
    assert not np.array_equal(plan.operator("conv").weight, other_weights.operator("conv").weight)
    assert plan.digest == other_weights.digest
    assert len(plan.digest) == 64
    mask = np.array(plan.operator("act").mask)
    mask[1, 2, 3] ^= True
    assert small_plan(mask).digest != plan.digest
    assert op.swap_relu_maxpool(plan).digest != plan.digest
    assert json.loads(json.dumps(plan.public())) == plan.public()


@pytest.mark.parametrize("keep", [False, True])
def test_public_view_has_no_weights(keep: bool) -> None:
    plan = small_plan()
    view = plan.without_weights(keep_coefficients=keep)
    for candidate in (view, op.loads(op.dumps(view))):
        assert candidate.digest == plan.digest
        assert not candidate.has_weights
        assert np.isnan(candidate.operator("conv").weight).all()
        assert candidate.operator("conv").weight.shape == (2, 1, 3, 3)
        np.testing.assert_array_equal(candidate.operator("act").mask, plan.operator("act").mask)
        assert np.isnan(candidate.operator("act3").coefficients).all() == (not keep)
        with pytest.raises(PlanError, match="without weights"):
            candidate.evaluate(np.zeros((1, 1, 8, 8)))
        with pytest.raises(PlanError, match="without weights"):
            op.fold_average_pool(candidate)
    data = op.dumps(view)
    assert plan.operator("conv").weight.tobytes()[:16] in op.dumps(plan)
    assert plan.operator("conv").weight.tobytes()[:16] not in data


def test_files_hold_the_plan_exactly(tmp_path: Path) -> None:
    plan, x = small_plan(), RANDOM.normal(size=(2, 1, 8, 8))
    plan_file = tmp_path / "plan.safetensors"
    op.save(plan, plan_file)
    loaded = op.load(plan_file)
    assert loaded.digest == plan.digest
    assert loaded.public() == plan.public()
    np.testing.assert_array_equal(loaded.evaluate(x), plan.evaluate(x))
    with pytest.raises(FileNotFoundError):
        op.load(tmp_path / "absent")


def test_loading_and_evaluating_imports_no_torch(tmp_path: Path) -> None:
    op.save(small_plan(), tmp_path / "plan")
    code = (
        "import sys, numpy; from tradeoff.nn.plan import load; "
        f"load({str(tmp_path / 'plan')!r}).evaluate(numpy.zeros((1, 1, 8, 8))); "
        "import tradeoff.nn.fixed_point; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def edit(data: bytes, **changes: object) -> bytes:
    """Change the structure in a plan's header; keys name ``field`` or ``operator__field``."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    structure = json.loads(header["__metadata__"]["plan"])
    for key, value in changes.items():
        operator, _, name = key.rpartition("__")
        target = structure
        if operator:
            target = next(entry for entry in structure["operators"] if entry["name"] == operator)
        target[name] = value
    header["__metadata__"]["plan"] = json.dumps(structure)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"has_weights": 1},
        {"operators": None},
        {"operators": [1]},
        {"operators": []},
        {"input_shape": [1, 8, -8]},
        {"input_shape": [1, 8.0, 8]},
        {"input_shape": [1] * 9},
        {"output": "nothing"},
        {"output": 3},
        {"conv__kind": "Plan"},
        {"conv__kind": ["Convolution"]},
        {"conv__stride": [0, 1]},
        {"conv__stride": [True, 1]},
        {"conv__stride": None},
        {"conv__groups": 0},
        {"conv__groups": "1"},
        {"conv__padding": [1 << 62, 1]},
        {"conv__padding": [1 << 30, 1]},
        {"conv__weight": None},
        {"conv__weight": {"shape": [2, 1, 3, 4]}},
        {"conv__bias": None},
        {"conv__extra": 1},
        {"conv__inputs": ["fc"]},
        {"conv__inputs": "input"},
        {"conv__inputs": [["input"]]},
        {"conv__name": ""},
        {"pool__count_include_pad": 1},
        {"act__mask": None},
        {"act__mask": {"shape": [2, 8, 8], "sha256": "0" * 64}},
        {"act__shape": [1 << 40, 1 << 40]},
    ],
)
def test_hostile_structures_are_refused(changes: dict[str, object]) -> None:
    data = op.dumps(small_plan())
    assert op.loads(edit(data)).relu_count == 91
    with pytest.raises(PlanError):
        op.loads(edit(data, **changes))


def test_nan_weights_in_a_file_are_refused() -> None:
    plan = small_plan()
    broken = plan.rebuild(
        lambda operator: (
            replace(operator, weight=np.full((5, 12), np.inf)) if operator.name == "fc" else operator
        )
    )
    with pytest.raises(PlanError, match="fc:weight"):
        op.loads(op.dumps(broken))


def test_truncated_files_are_refused() -> None:
    data = op.dumps(small_plan())
    for length in [*range(12), 100, len(data) // 2, len(data) - 1]:
        with pytest.raises(PlanError):
            op.loads(data[:length])
    with pytest.raises(PlanError):
        op.loads(struct.pack("<Q", 1 << 60) + data[8:])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_give_a_plan_or_an_error(data: st.DataObject) -> None:
    original = op.dumps(small_plan().without_weights())
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PlanError):
        op.loads(bytes(damaged))
