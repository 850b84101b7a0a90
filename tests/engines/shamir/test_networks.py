"""Networks among simulated servers: equal to fixed-point plaintext, and as costly as predicted."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tradeoff.core.errors import DataError
from tradeoff.engines import shamir
from tradeoff.engines.shamir import steps
from tradeoff.engines.shamir.program import Program, load_shares, save_shares
from tradeoff.engines.shamir.reference import evaluate_steps
from tradeoff.engines.transport import measured_row
from tradeoff.nn.fixed_point import FixedPointOverflow
from tradeoff.nn.plan import UnsupportedLayer
from tradeoff.nn.polynomial import MaskedReLU, Polynomial


class Residual(nn.Module):
    """A block with a projection, one with an identity, and a value that is used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.project = nn.Conv2d(4, 6, 1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.conv(x))
        x = torch.relu(self.down(x) + self.project(x))
        return self.head(torch.flatten(self.pool(x), 1))


class Branches(nn.Module):
    """Concatenation of values of different fixed-point scale."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 3, padding=1)
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), torch.relu(self.right(x)), x], dim=1)
        return self.head(torch.flatten(x, 1))


def polynomial(degree: int, channels: int) -> Polynomial:
    rows = 0.3 * torch.randn(degree + 1, channels, generator=torch.Generator().manual_seed(degree))
    return Polynomial(rows / torch.arange(1, degree + 2).reshape(-1, 1) ** 2)


def masked(degree: int, shape: tuple[int, ...], kept: float) -> MaskedReLU:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < kept
    return MaskedReLU(mask, polynomial(degree, shape[0]).coefficients.detach())


def small(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), activation, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    )


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3)), (3, 2, 2)),
    "cnn": (lambda: small(nn.ReLU()), (1, 6, 6)),
    "residual": (Residual, (2, 8, 8)),
    "branches": (Branches, (1, 4, 4)),
    "max pool": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(27, 3)
        ),
        (1, 8, 8),
    ),
    "quadratic": (lambda: small(polynomial(2, 3)), (1, 6, 6)),
    "degree 4": (lambda: small(polynomial(4, 3)), (1, 6, 6)),
    "degree 1": (lambda: small(polynomial(1, 3)), (1, 6, 6)),
    "mixed": (lambda: small(masked(2, (3, 6, 6), 0.3)), (1, 6, 6)),
    "affine, depthwise, odd pool": (
        lambda: nn.Sequential(
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.ReLU(),
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        (4, 7, 7),
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(9, 2)),
        (2, 8),
    ),
}
MODES: dict[str, dict[str, Any]] = {
    "3,1": {},
    "3,1 masked": {"nonlinear": "masked"},
    "3,1 abort": {"security": "abort"},
    "5,2 abort masked": {"servers": 5, "threshold": 2, "security": "abort", "nonlinear": "masked"},
    "5,1 robust": {"servers": 5, "security": "robust", "nonlinear": "masked"},
    "4,1 abort": {"servers": 4, "security": "abort", "nonlinear": "masked"},
    "3,1 public": {"weights": "public", "security": "abort"},
}
CASES = [(model, "3,1 masked") for model in MODELS] + [("mixed", mode) for mode in MODES]
CASES += [
    ("max pool", "3,1 abort"),
    ("degree 4", "3,1 abort"),
    ("residual", "3,1"),
    ("degree 4", "3,1 public"),
]


def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval(), shape


def inputs(shape: tuple[int, ...], count: int = 2) -> Any:
    return np.random.default_rng(1).normal(size=(count, *shape))


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_result_and_cost(program_runner: Any, name: str, mode: str) -> None:
    """Logits near the plaintext's; rounds, bytes and material exactly as predicted, at every party."""
    model, shape = built(name)
    x = inputs(shape)
    program = shamir.compile(model, shape, **MODES[mode])
    options = program.options
    results = program_runner(program, x)
    (logits,), client_stats, _ = results[options.client]
    fixed = shamir.evaluate(program, x)
    assert np.abs(logits - fixed).max() < 2.0**-8
    assert np.abs(logits - program.plan.evaluate(x)).max() < 5e-3
    for party in (*options.scheme.servers, options.client):
        stats = results[party][1]
        predicted = shamir.cost(program, len(x), party=party)
        for row in (predicted.setup, *predicted.rows):
            peers = [p for p in (*options.scheme.servers, options.client) if p != party]
            got = measured_row(stats, {}, row.operator, row.kind, peers=peers, dealer=options.dealer)
            assert (got.rounds, got.sent, got.received) == (row.rounds, row.sent, row.received), row.operator
    total = shamir.cost(program, len(x)).total
    assert client_stats.rounds("online") >= total.rounds - 1
    for party in options.scheme.servers:
        server = results[party][0]
        materials = program.setup_materials() + [m for _, ms in program.materials(len(x)) for m in ms]
        assert server.source.consumed["dealt"] == sum(m.dealt_elements for m in materials)
        assert server.source.consumed["doubles"] == sum(m.doubles for m in materials)


def test_bytes_from_the_dealer_are_as_predicted(program_runner: Any) -> None:
    model, shape = built("cnn")
    program = shamir.compile(model, shape, security="abort")
    results = program_runner(program, inputs(shape))
    for server in range(3):
        stats = results[server][1]
        predicted = shamir.cost(program, 2, party=server)
        received = stats.total(peer=3, phase="offline").payload_received
        assert received == predicted.setup.offline + predicted.total.offline


def test_automatic_rounds_are_the_marked_ones(program_runner: Any) -> None:
    """The longest chain of messages through the data owner is what the prediction says."""
    model, shape = built("max pool")
    program = shamir.compile(model, shape)
    (_, stats, _) = program_runner(program, inputs(shape), inferences=2)[program.options.client]
    assert stats.rounds("online") == 2 * shamir.cost(program, 2).total.rounds


def test_argmax_reveals_the_label_alone(program_runner: Any) -> None:
    model, shape = built("mlp")
    x = inputs(shape, 9)
    for mode in ({}, {"security": "abort", "nonlinear": "masked"}):
        program = shamir.compile(model, shape, output="argmax", **mode)
        results = program_runner(program, x)
        assert (
            results[program.options.client][0][0].tolist() == program.plan.evaluate(x).argmax(axis=1).tolist()
        )


def test_lowest_index_wins_ties(program_runner: Any) -> None:
    program = shamir.compile(nn.Flatten(), (5, 1, 1), output="argmax", nonlinear="masked")
    x = np.array([[1, 3, 3, 2, 3], [0, 0, 0, 0, 0], [-1, -2, -1, -3, -1]], float).reshape(3, 5, 1, 1)
    assert program_runner(program, x)[program.options.client][0][0].tolist() == [1, 0, 0]


def test_max_pool_equals_numpy(program_runner: Any) -> None:
    program = shamir.compile(nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten()), (2, 7, 7))
    x = np.random.default_rng(0).integers(-400, 400, (3, 2, 7, 7)) / 16.0
    result = program_runner(program, x)[program.options.client][0][0]
    assert np.array_equal(result, program.plan.evaluate(x))


def test_many_windows_give_the_same(program_runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "WINDOW", 50)
    model, shape = built("mixed")
    program = shamir.compile(model, shape, nonlinear="masked")
    results = program_runner(program, inputs(shape))
    assert (
        np.abs(results[program.options.client][0][0] - shamir.evaluate(program, inputs(shape))).max() < 1e-2
    )
    row = shamir.cost(program, 2).row("1")
    assert row.rounds > 10
    got = measured_row(results[0][1], {}, "1", "", peers=[1, 2, 4])
    assert (got.rounds, got.sent) == (row.rounds, row.sent)


def test_verification_in_stretches(program_runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long computations are verified on the way, so that what waits for it stays bounded."""
    from tradeoff.engines.shamir import program as module

    monkeypatch.setattr(module, "VERIFIED_AT_ONCE", 200)
    model, shape = built("max pool")
    program = shamir.compile(model, shape, security="abort", nonlinear="masked")
    assert len(program.checkpoints(2)) > 2
    results = program_runner(program, inputs(shape))
    row = shamir.cost(program, 2).row("verification")
    got = measured_row(results[0][1], {}, "verification", "", peers=[1, 2, 4])
    assert (got.rounds, got.sent) == (row.rounds, row.sent)


def test_costs_of_modes_relate_as_they_should() -> None:
    """Strict against masked comparisons, verification against none, servers against servers."""
    from tradeoff.nn import plan as op

    operators = (op.Input("input", (), (1000,)), op.ReLU("relu", ("input",), (1000,)))
    plan = op.Plan(operators, (1000,), "relu")

    def relu(**options: Any) -> Any:
        return shamir.cost(shamir.compile(plan, **options), 1).row("relu")

    strict, cheap = relu(), relu(nonlinear="masked")
    assert (strict.rounds, cheap.rounds) == (7, 2)
    assert strict.sent >= 10 * cheap.sent
    assert cheap.sent == 1000 * 2 * 2 * 8  # two openings, to two servers
    for nonlinear in ("strict", "masked"):
        checked = relu(nonlinear=nonlinear, security="abort")
        assert 1.6 <= checked.sent / relu(nonlinear=nonlinear).sent <= 2.5
    three, five = relu(), relu(servers=5, threshold=2)
    assert 5 * five.sent / (3 * three.sent) == pytest.approx(20 / 6, rel=0.01)
    network = shamir.compile(*built("cnn"), security="abort", nonlinear="masked")
    plain = network.with_options(security="semi-honest")
    ratio = shamir.cost(network, 32).total.sent / shamir.cost(plain, 32).total.sent
    assert 1.6 <= ratio <= 2.5


def test_reference_in_python_integers_equals_the_plaintext() -> None:
    for name in MODELS:
        model, shape = built(name)
        program = shamir.compile(model, shape)
        assert (
            np.abs(shamir.evaluate(program, inputs(shape)) - program.plan.evaluate(inputs(shape))).max()
            < 5e-3
        )
        assert all(
            isinstance(v.flat[0], int) for v in evaluate_steps(program, inputs(shape)).values() if v.size
        )


def test_values_out_of_range_are_refused_at_compile() -> None:
    scaled = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    nn.init.constant_(scaled[0].weight, 200.0)
    with pytest.raises(shamir.RangeExceeded, match=r"1: values reach .* must stay below 512") as caught:
        shamir.compile(scaled, (4,))
    assert caught.value.name == "1"
    assert caught.value.limit == 512.0
    shamir.compile(scaled, (4,), bound_bits=30)
    pooled = nn.Sequential(nn.MaxPool2d(2), nn.Flatten())
    with pytest.raises(shamir.RangeExceeded, match="must stay below 256"):
        shamir.compile(pooled, (1, 4, 4), calibration=np.full((1, 1, 4, 4), 70.0))
    with pytest.raises(shamir.RangeExceeded):
        shamir.compile(nn.Flatten(), (4,), calibration=np.full((1, 4), 2.0**44))
    huge = nn.Linear(2, 2)
    nn.init.constant_(huge.weight, 2.0**60)
    with pytest.raises(FixedPointOverflow, match="weight"):
        _ = shamir.compile(huge, (2,), calibration=np.zeros((1, 2))).steps


def test_unsupported_layers_are_named() -> None:
    with pytest.raises(UnsupportedLayer, match="1"):
        shamir.compile(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), (4,))
    with pytest.raises(ValueError, match="input_shape"):
        shamir.compile(nn.Linear(4, 4))


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 3, 2)),
        np.zeros((0, 3, 2, 2)),
        np.full((1, 3, 2, 2), np.nan),
        np.full((1, 3, 2, 2), np.inf),
        np.zeros((1, 3, 2, 2), complex),
        np.zeros((3, 2, 2)),
    ],
    ids=["shape", "empty", "nan", "inf", "dtype", "no batch"],
)
def test_bad_inputs_start_nothing(x: Any) -> None:
    model, shape = built("mlp")
    with shamir.Session.simulated() as session:
        with pytest.raises(ValueError, match=r"inputs|NaN"):
            session.infer(shamir.compile(model, shape), x)
        assert session._running is None
        with pytest.raises(FixedPointOverflow, match="input"):
            session.infer(shamir.compile(model, shape), np.full((1, *shape), 2.0**50))
        assert session._running is None


def test_programs_and_shares_on_disk(tmp_path: Any) -> None:
    model, shape = built("mixed")
    program = shamir.compile(model, shape, servers=5, threshold=2, security="abort").shared()
    program.public().save(tmp_path)
    loaded = Program.load(tmp_path)
    assert loaded.digest == program.digest
    assert loaded.steps[0].options == program.options
    assert not loaded.plan.has_weights
    every = program.share_weights()
    save_shares(tmp_path, every[3])
    assert (tmp_path / "shares.safetensors").stat().st_mode & 0o777 == 0o600
    shares = load_shares(tmp_path, loaded)
    assert {f"{step}/{name}" for step, name in shares} == set(every[3])
    with pytest.raises(DataError, match="public view"):
        loaded.share_weights()
    other = shamir.compile(*built("cnn")).shared()
    with pytest.raises(DataError, match=r"lacks a share|another program"):
        load_shares(tmp_path, other)
    (tmp_path / "shares.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="damaged"):
        load_shares(tmp_path, loaded)
    (tmp_path / "options.json").write_text('{"options": {"servers": "3"}, "sharing": ""}')
    with pytest.raises(ValueError, match="servers is '3'"):
        Program.load(tmp_path)
    for broken in ("[]", "{", '{"options": {"bribe": 1}, "sharing": ""}', '{"options": {}, "sharing": 5}'):
        (tmp_path / "options.json").write_text(broken)
        with pytest.raises(ValueError):  # noqa: PT011 - each of its own kind
            Program.load(tmp_path)
    assert program.digest != program.shared().digest
    assert program.with_options(frac_bits=12).digest != program.digest


@pytest.mark.parametrize("options", [{"party": 3}, {"party": -1}, {"party": 9}, {"batch": 0}])
def test_costs_that_there_are_not(options: Any) -> None:
    program = shamir.compile(*built("mlp"))
    with pytest.raises(ValueError, match=r"party|image"):
        shamir.cost(program, **options)
    with pytest.raises(ValueError, match="at least one"), shamir.Session.simulated() as session:
        session.infer(program, inputs((3, 2, 2)), batch=0)
