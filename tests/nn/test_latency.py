"""Latency models against hand numbers and published ones; the scheduler against its bounds."""

import math
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from torch import nn

from tradeoff.core.errors import UnknownName
from tradeoff.data.devices import BOARDS, fpga_latency, latency_model
from tradeoff.nn import plan as op
from tradeoff.nn.latency import FPGALatency, MissingLatency, ReleasedProxy, Task, schedule
from tradeoff.nn.latency.fpga import Stage, comparison
from tradeoff.nn.latency.scheduler import tasks
from tradeoff.nn.models import build
from tradeoff.nn.plan import trace
from tradeoff.nn.search import Architecture, apply_to_plan, insert_gates

IMAGENET = (3, 224, 224)


@pytest.fixture
def no_random_initialization(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights do not matter here, and making them takes seconds."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor.data.fill_(0.01))


def plan_of(arch: str, shape: tuple[int, int, int], activation: str, pooling: str) -> op.Plan:
    network = build(arch, 1000, shape).eval()
    chosen = Architecture.uniform(insert_gates(network, shape), activation, pooling)
    return apply_to_plan(trace(network, shape), chosen)


@pytest.mark.parametrize(
    ("arch", "published", "macs", "sites", "activations", "inputs"),
    [
        ("resnet18", 0.063, 1.814e9, 17, 2_308_096, 2.183e6),
        ("resnet50", 0.228, 4.089e9, 49, 9_608_704, 10.664e6),
    ],
)
@pytest.mark.usefixtures("no_random_initialization")
def test_all_polynomial_resnets_have_the_published_latencies(
    arch: str, published: float, macs: float, sites: int, activations: int, inputs: float
) -> None:
    plan = plan_of(arch, IMAGENET, "poly", "average")
    squares = [operator for operator in plan if isinstance(operator, op.Polynomial)]
    convolutions = [operator for operator in plan if isinstance(operator, op.Convolution)]
    assert len(squares) == sites
    assert sum(math.prod(operator.shape) for operator in squares) == activations
    linear = sum(operator.weight.size for operator in plan if isinstance(operator, op.Linear))
    products = sum(math.prod(c.shape) * c.weight[0].size for c in convolutions)
    assert products + linear == pytest.approx(macs, rel=1e-3)
    opened = sum(math.prod(plan.operator(c.inputs[0]).shape) for c in convolutions)
    assert opened == pytest.approx(inputs, rel=1e-3)
    assert fpga_latency("zcu104").network(plan).seconds == pytest.approx(published, rel=0.05)


def one(operator: op.Operator, shape: tuple[int, ...]) -> op.Plan:
    return op.Plan((op.Input("x", (), shape), operator), shape, operator.name)


SHAPE = (4, 6, 6)
SIZE = 144
WINDOW = ((2, 2), (2, 2), (0, 0))
MASK = np.zeros(SHAPE, bool)
MASK[0] = True


@pytest.mark.parametrize(
    ("operator", "words", "bits", "message_bits", "messages"),
    [
        (op.ReLU("a", ("x",), SHAPE), 0, 5185 * SIZE, 32 + 2561 * SIZE, 4),
        (op.MaxPool("a", ("x",), (4, 3, 3), *WINDOW, (1, 1)), 0, 5185 * SIZE, 32 + 2561 * SIZE, 7),
        (op.Polynomial("a", ("x",), SHAPE, np.ones((3, 4))), 2 * SIZE, 0, 64 * SIZE, 2),
        (op.AveragePool("a", ("x",), (4, 3, 3), *WINDOW, True), 2 * SIZE, 0, 0, 0),
        (
            op.Convolution("a", ("x",), (8, 6, 6), np.ones((8, 4, 3, 3)), None, (1, 1), (1, 1), (1, 1), 1),
            3 * 9 * 36 * 4 * 8,
            0,
            64 * SIZE,
            2,
        ),
        (
            op.Convolution("a", ("x",), SHAPE, np.ones((4, 1, 3, 3)), None, (1, 1), (1, 1), (1, 1), 4),
            3 * 9 * 36 * 4,
            0,
            64 * SIZE,
            2,
        ),
        (
            op.MaskedReLU("a", ("x",), SHAPE, MASK, np.ones((3, 4))),
            2 * 108,
            5185 * 36,
            32 + 2561 * 36 + 64 * 108,
            6,
        ),
        (op.MaskedReLU("a", ("x",), SHAPE, np.zeros(SHAPE, bool), None), 0, 0, 0, 0),
        (op.Flatten("a", ("x",), (SIZE,)), 0, 0, 0, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, op.Operator) else "",
)
def test_formula_of_each_operator(
    operator: op.Operator, words: float, bits: float, message_bits: float, messages: int
) -> None:
    model = FPGALatency(word_rate=3e9, bit_rate=7e9, bandwidth=1e9, base_latency=0.01)
    row = model.network(one(operator, SHAPE)).rows[1]
    assert row.compute == pytest.approx(words / 3e9 + bits / 7e9, rel=1e-12)
    assert row.transfer == pytest.approx(message_bits / 1e9, rel=1e-12)
    assert row.waiting == pytest.approx(messages * 0.01)
    assert row.rounds == messages
    assert row.seconds == pytest.approx(row.sized + row.waiting)


def test_linear_layers_and_sums() -> None:
    plan = op.Plan(
        (
            op.Input("x", (), (5,)),
            op.Linear("a", ("x",), (5,), np.ones((5, 5)), None),
            op.Add("b", ("x", "a"), (5,)),
        ),
        (5,),
        "b",
    )
    rows = FPGALatency(word_rate=1e3, bandwidth=1e3).network(plan).rows
    assert rows[1].compute == pytest.approx(75e-3)
    assert rows[1].transfer == pytest.approx(2 * 32 * 5 / 1e3)
    assert (rows[2].compute, rows[2].transfer) == (pytest.approx(5e-3), 0)


def test_messages_of_the_first_site_of_an_imagenet_resnet() -> None:
    choices, matrix = (stage.work for stage in comparison(802_816)[2:5:2])
    assert (choices + matrix) / 8e9 == pytest.approx(0.2569, rel=1e-3)


def test_batch_multiplies_sizes_and_not_base_latencies() -> None:
    plan = one(op.ReLU("a", ("x",), SHAPE), SHAPE)
    single = FPGALatency(base_latency=0.001).network(plan)
    many = FPGALatency(base_latency=0.001, batch=10).network(plan)
    assert many.sized == pytest.approx(10 * single.sized)
    assert many.waiting == single.waiting == pytest.approx(0.004)


def test_the_published_proxy() -> None:
    proxy = ReleasedProxy()
    for operator, cost in (
        (op.ReLU("a", ("x",), SHAPE), 13.6 * SIZE + 0.4),
        (op.Polynomial("a", ("x",), SHAPE, np.ones((3, 4))), 0.03 * SIZE + 0.2),
        (op.MaxPool("a", ("x",), (4, 3, 3), *WINDOW, (1, 1)), 0.75 * (13.6 * SIZE + 0.4)),
        (op.AveragePool("a", ("x",), (4, 3, 3), *WINDOW, True), 0.01 * SIZE),
        (op.Flatten("a", ("x",), (SIZE,)), 0),
    ):
        assert proxy.network(one(operator, SHAPE)).seconds == pytest.approx(cost)


def test_what_a_model_does_not_know_is_never_zero() -> None:
    cubic = one(op.Polynomial("cube", ("x",), SHAPE, np.ones((4, 4))), SHAPE)
    with pytest.raises(MissingLatency, match=r"no figure for cube \(Polynomial\)"):
        FPGALatency().network(cubic)
    label = one(op.ArgMax("label", ("x",), ()), (5,))
    with pytest.raises(LookupError, match="label"):
        FPGALatency().network(label)


@pytest.mark.parametrize("field", ["word_rate", "bit_rate", "bandwidth"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_rates_are_positive(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        FPGALatency(**{field: value})


def test_other_bad_settings() -> None:
    with pytest.raises(ValueError, match="base_latency"):
        FPGALatency(base_latency=-1e-3)
    with pytest.raises(ValueError, match="batch"):
        FPGALatency(batch=0)
    with pytest.raises(UnknownName, match="did you mean 'zcu104'"):
        fpga_latency("zcu140")
    with pytest.raises(ValueError, match="go together"):
        fpga_latency(clock=2e8)
    with pytest.warns(UserWarning, match="576 32-bit ones do"):
        assert fpga_latency(clock=2e8, words_per_cycle=600).word_rate == 1.2e11
    assert latency_model("pasnet-proxy") == ReleasedProxy()
    assert latency_model("zcu104", batch=3) == FPGALatency(batch=3, name="zcu104")
    assert BOARDS["zcu104"].dsps == 1728


def test_table_tells_shares() -> None:
    text = FPGALatency().network(one(op.ReLU("a", ("x",), SHAPE), SHAPE)).table()
    assert "100.0%" in text
    assert "total" in text


@st.composite
def graphs(draw: st.DrawFn) -> list[Task]:
    found = []
    for index in range(draw(st.integers(1, 8))):
        stages = draw(
            st.lists(
                st.builds(Stage, st.sampled_from(["words", "bits", "link"]), st.floats(0, 1e6)), max_size=5
            )
        )
        inputs = draw(st.sets(st.integers(0, index - 1), max_size=2)) if index else set()
        found.append(Task(f"t{index}", tuple(stages), tuple(sorted(inputs)), draw(st.integers(1, 5))))
    return found


@settings(max_examples=150, deadline=None)
@given(graphs(), st.sampled_from([0.0, 1e-6, 0.01]))
def test_schedules_keep_their_bounds(work: list[Task], base_latency: float) -> None:
    model = FPGALatency(word_rate=1e8, bit_rate=3e7, bandwidth=5e7, base_latency=base_latency)
    found = schedule(work, model)
    total = sum(model.seconds(list(task.stages)) for task in work)
    assert found.sequential == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert max(found.busy.values()) <= found.makespan * (1 + 1e-9) + 1e-12
    tiles = sum(task.tiles for task in work)
    assert found.makespan <= found.sequential * (1 + 1e-9) + tiles * base_latency + 1e-12
    end: dict[str, float] = {}
    for bar in found.bars:
        end[bar.task] = max(end.get(bar.task, 0.0), bar.end)
    for task in work:
        start = min((bar.start for bar in found.bars if bar.task == task.name), default=math.inf)
        for source in task.inputs:
            assert end.get(work[source].name, 0.0) <= start + 1e-12
    for resource in found.busy:
        bars = sorted((bar.start, bar.end) for bar in found.bars if bar.resource == resource)
        assert all(before[1] <= after[0] + 1e-12 for before, after in pairwise(bars))


@pytest.mark.usefixtures("no_random_initialization")
def test_images_in_flight_approach_the_busiest_resource(tmp_path: "object") -> None:
    model = fpga_latency(base_latency=1e-4)
    plan = plan_of("resnet18", (3, 32, 32), "relu", "max")
    found = {images: schedule(tasks(plan, model, images=images), model, images=images) for images in (1, 8)}
    alone, many = found[1], found[8]
    assert alone.sequential == pytest.approx(model.network(plan).seconds, rel=1e-9)
    assert alone.bound <= alone.makespan <= alone.sequential
    assert many.bound == pytest.approx(alone.bound)
    assert many.makespan / 8 < alone.makespan
    assert many.makespan / 8 < 1.25 * many.bound
    assert many.energy(20) == pytest.approx(20 * many.makespan)
    assert many.throughput == pytest.approx(8 / many.makespan)
    assert max(many.utilization().values()) <= 1


def test_a_task_reads_earlier_ones_only() -> None:
    with pytest.raises(ValueError, match="earlier"):
        schedule([Task("a", (), (0,))], FPGALatency())
