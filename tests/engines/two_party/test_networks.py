"""Networks between simulated parties: close to the plaintext, and as costly as predicted."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tradeoff.engines import two_party
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


class Shift(nn.Module):
    """A 1x1 convolution that only adds."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.conv.weight)
        nn.init.constant_(self.conv.bias, by)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


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


MODELS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3)), (3, 2, 2), {}),
    "cnn": (lambda: small(nn.ReLU()), (1, 6, 6), {}),
    "residual": (Residual, (2, 8, 8), {}),
    "branches": (Branches, (1, 4, 4), {}),
    "max pool": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(27, 3)
        ),
        (1, 8, 8),
        {},
    ),
    "padded max pool of negative values": (
        lambda: nn.Sequential(Shift(-9.0), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(16, 3)),
        (1, 8, 8),
        {},
    ),
    "max pool layer by layer": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)),
        (1, 8, 8),
        {"optimize": False},
    ),
    "quadratic": (lambda: small(polynomial(2, 3)), (1, 6, 6), {}),
    "quadratic, public coefficients": (
        lambda: small(polynomial(2, 3)),
        (1, 6, 6),
        {"coefficients": "public"},
    ),
    "degree 4": (lambda: small(polynomial(4, 3)), (1, 6, 6), {}),
    "degree 1": (lambda: small(polynomial(1, 3)), (1, 6, 6), {"coefficients": "public"}),
    "mixed": (lambda: small(masked(2, (3, 6, 6), 0.3)), (1, 6, 6), {}),
    "mixed, degree 3": (lambda: small(masked(3, (3, 6, 6), 0.6)), (1, 6, 6), {}),
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
        {},
    ),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, stride=2, dilation=2),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        (2, 30),
        {},
    ),
    "public weights": (lambda: small(nn.ReLU()), (1, 6, 6), {"weights": "public"}),
    "radix 2": (lambda: small(nn.ReLU()), (1, 6, 6), {"radix": 2}),
    "32 bits": (lambda: small(nn.ReLU()), (1, 6, 6), {"ring_bits": 32, "calibration": "test"}),
    "32 bits, radix 2, mixed, max pool": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            masked(2, (3, 6, 6), 0.5),
            nn.MaxPool2d(2, ceil_mode=False),
            nn.Flatten(),
            nn.Linear(27, 4),
        ),
        (1, 6, 6),
        {"ring_bits": 32, "radix": 2, "calibration": "test"},
    ),
    "local truncation": (lambda: small(nn.ReLU()), (1, 6, 6), {"truncation": "local"}),
}


def build(name: str) -> tuple[two_party.Program, np.ndarray]:
    """A compiled model with random weights and statistics, and inputs."""
    make, shape, options = MODELS[name]
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = np.random.default_rng(0).standard_normal((3, *shape))
    if options.get("calibration") == "test":
        options = {**options, "calibration": x}
    return two_party.compile(model.eval(), shape, **options), x


@pytest.mark.parametrize("name", MODELS)
def test_result_and_predicted_cost(name: str) -> None:
    program, x = build(name)
    with two_party.Session.simulated() as session:
        first = session.infer(program, x)
        reports = [session.report(party) for party in (0, 1)]
        second = session.infer(program, x)
    tolerance = 2.0**-3 if program.ring.bits == 32 else 1e-3
    expected = program.plan.evaluate(x)
    for logits in (first, second):
        assert np.abs(logits - expected).max() < tolerance
        assert np.abs(logits - two_party.evaluate(program, x)).max() < tolerance
    for party, report in enumerate(reports):
        predicted = two_party.cost(program, batch=len(x), party=party)
        assert [_counts(row) for row in (report.setup, *report.rows)] == [
            _counts(row) for row in (predicted.setup, *predicted.rows)
        ]


def _counts(row: two_party.Row) -> tuple[Any, ...]:
    offline = row.offline, row.offline_sent, row.offline_rounds
    return row.operator, row.kind, row.rounds, row.sent, row.received, *offline


@pytest.mark.parametrize("name", MODELS)
def test_result_and_predicted_cost_without_a_dealer(name: str) -> None:
    """The online phase is that with a dealer; the offline phase is predicted in both directions."""
    program, x = build(name)
    x = x[:1]
    with two_party.Session.simulated(offline="ot") as session:
        logits = session.infer(program, x)
        reports = [session.report(party) for party in (0, 1)]
    assert np.abs(logits - program.plan.evaluate(x)).max() < (2.0**-3 if program.ring.bits == 32 else 1e-3)
    for party, report in enumerate(reports):
        predicted = two_party.cost(program, batch=len(x), party=party, offline="ot")
        assert [_counts(row) for row in (report.setup, *report.rows)] == [
            _counts(row) for row in (predicted.setup, *predicted.rows)
        ]
        dealt = two_party.cost(program, batch=len(x), party=party)
        online, expected = ([(row.rounds, row.sent) for row in each.rows] for each in (report, dealt))
        assert online == expected


@pytest.mark.parametrize(
    ("name", "offline"), [("cnn", "dealer"), ("mixed", "dealer"), ("residual", "dealer"), ("cnn", "ot")]
)
def test_argmax_reveals_labels(name: str, offline: Any) -> None:
    program, x = build(name)
    with two_party.Session.simulated(offline) as session:
        labels = session.infer(program, x, output="argmax", reveal_to="both")
    assert labels.dtype == np.int64
    assert (labels == program.plan.evaluate(x).argmax(axis=1)).all()


def test_batches_are_split_and_filled_up() -> None:
    program, x = build("mlp")
    with two_party.Session.simulated() as session:
        whole = session.infer(program, x)
        parts = session.infer(program, x, batch=2, reveal_to="server")
        assert session.report().inferences == 2
    assert np.abs(whole - parts).max() < 1e-3


def test_polynomial_rides_in_the_comparison() -> None:
    """A site with both kinds costs the longer of the two chains, and its ReLUs cost what they cost alone."""
    program, _ = build("mixed")
    row = next(row for row in two_party.cost(program, batch=64).rows if row.kind == "activation")
    step = next(step for step in program.steps if step.name == row.operator)
    relus, rest = int(step.mask.sum()), int((~step.mask).sum())
    assert row.rounds == 5
    assert row.sent == 64 * (26.375 * relus + 16 * rest)


def test_network_without_relu_compares_nothing() -> None:
    program, _ = build("quadratic")
    row = next(row for row in two_party.cost(program).rows if row.kind == "activation")
    assert row.rounds == 2


def test_public_view_has_the_same_steps_and_no_weights() -> None:
    program, _ = build("residual")
    public = program.public()
    assert public.digest == program.digest
    assert [step.groups(2) for step in public.steps] == [step.groups(2) for step in program.steps]
    assert all(getattr(step, "weight", None) is None for step in public.steps)


def test_saved_program_is_the_same(tmp_path: Any) -> None:
    program, x = build("mixed")
    program.save(tmp_path)
    loaded = two_party.Program.load(tmp_path)
    assert loaded.digest == program.digest
    assert (two_party.evaluate(loaded, x) == two_party.evaluate(program, x)).all()
