"""The ResNets that people have: ours, torchvision's style and Hugging Face's, compiled and run."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tradeoff.engines import two_party
from tradeoff.engines.two_party.errors import RangeExceeded
from tradeoff.nn.fixed_point import FixedPointOverflow
from tradeoff.nn.models import build
from tradeoff.nn.plan import UnsupportedLayer


def settle(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Batch-norm statistics as after training, so that activations keep a normal size."""
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(16, *shape))
    return model.eval()


def assert_agrees(program: two_party.Program, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(2, *shape))
    with two_party.Session.simulated() as session:
        logits = session.infer(program, x)
    agreement = two_party.agreement(program, x, logits)
    assert agreement.decided == 1.0
    assert agreement.largest < 5e-3
    assert agreement.mean <= agreement.largest


def test_resnet20() -> None:
    shape = (3, 8, 8)
    assert_agrees(two_party.compile(settle(build("resnet20", 10, shape), shape), shape), shape)


class Block(nn.Module):
    """A residual block as torchvision writes it: one in-place ReLU used twice, and an in-place sum."""

    def __init__(self, inputs: int, planes: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * planes if bottleneck else planes
        sizes = [(inputs, planes, 1), (planes, planes, 3), (planes, outputs, 1)]
        if not bottleneck:
            sizes = [(inputs, planes, 3), (planes, planes, 3)]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, stride if k == 3 and j == bottleneck else 1, k // 2, bias=False)
            for j, (i, o, k) in enumerate(sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in sizes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x
        out = x
        for conv, norm in list(zip(self.convs, self.norms, strict=True))[:-1]:
            out = self.relu(norm(conv(out)))
        out = self.norms[-1](self.convs[-1](out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class TorchvisionStyle(nn.Module):
    """The stem of the ImageNet ResNets and two stages."""

    def __init__(self, bottleneck: bool) -> None:
        super().__init__()
        width = 4 if bottleneck else 1
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(8, 8, 1, bottleneck), Block(8 * width, 8, 1, bottleneck))
        self.layer2 = nn.Sequential(Block(8 * width, 16, 2, bottleneck))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16 * width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


@pytest.mark.parametrize("bottleneck", [False, True], ids=["basic", "bottleneck"])
def test_torchvision_style_resnet(bottleneck: bool) -> None:
    shape = (3, 32, 32)
    model = settle(TorchvisionStyle(bottleneck), shape)
    program = two_party.compile(model, shape)
    assert_agrees(program, shape)
    x = np.random.default_rng(1).normal(size=(4, *shape))
    with torch.no_grad():
        expected = model(torch.from_numpy(x).float()).numpy()
    assert np.abs(program.plan.evaluate(x) - expected).max() < 1e-4


def test_hugging_face_resnet(require: Any) -> None:
    try:
        from transformers import ResNetConfig, ResNetForImageClassification
    except ImportError:
        require(False, "transformers is not installed; run: pip install 'tradeoff[llm]'")
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = ResNetForImageClassification(config)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).logits

    shape = (3, 32, 32)
    assert_agrees(two_party.compile(settle(Logits(), shape), shape), shape)


def test_resnet18_costs_what_its_relus_cost() -> None:
    """CIFAR size: a residual branch is never truncated for its own sake, so a ReLU layer is all there is."""
    model = build("resnet18", 10, (3, 32, 32)).eval()
    program = two_party.compile(model, (3, 32, 32))
    predicted = two_party.cost(program)
    kinds = predicted.by_kind()
    relus = program.plan.relu_count
    assert relus * 26.375 == kinds["relu"].sent
    assert kinds["truncation"].rounds == 1
    assert kinds["relu"].rounds == 5 * sum(step.kind == "relu" for step in program.steps)


@pytest.mark.parametrize("layer", [nn.SiLU(), nn.LayerNorm(4), nn.Softmax(1)])
def test_unsupported_layer_is_named(layer: nn.Module) -> None:
    with pytest.raises(UnsupportedLayer) as error:
        two_party.compile(nn.Sequential(nn.Linear(4, 4), layer), (4,))
    assert type(layer).__name__.lower() in str(error.value).lower()


def test_values_that_leave_the_range_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(RangeExceeded, match="64-bit ring"):
        two_party.compile(model, (4,), ring_bits=32, calibration=np.full((1, 4), 1e4))
    nn.init.constant_(model[0].weight, 1e15)
    with pytest.raises(FixedPointOverflow, match="weight"):
        two_party.compile(model, (4,), calibration=np.zeros((1, 4)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((1, 4), np.nan), "NaN"),
        (np.ones((1, 5)), "shape"),
        (np.ones((0, 4)), "shape"),
        (np.full((1, 4), 1e15), "input reaches"),
    ],
)
def test_wrong_inputs_are_named(x: Any, message: str) -> None:
    program = two_party.compile(nn.Linear(4, 2), (4,))
    with (
        two_party.Session.simulated() as session,
        pytest.raises((ValueError, FixedPointOverflow), match=message),
    ):
        session.infer(program, x)


@pytest.mark.parametrize(
    "options",
    [{"ring_bits": 48}, {"frac_bits": 30}, {"radix": 3}, {"weights": "secret"}, {"truncation": "none"}],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).split("_")[0]):
        two_party.compile(nn.Linear(4, 2), (4,), **options)


def test_insecure_offline_warns_and_says_so_in_the_report() -> None:
    program = two_party.compile(nn.Linear(4, 2), (4,))
    with (
        pytest.warns(UserWarning, match="protects nothing"),
        two_party.Session.simulated("insecure-local") as session,
    ):
        session.infer(program, np.ones((1, 4)))
    assert session.report().secure is False
    assert "NOT SECURE" in str(session.report())


def test_report_as_csv_and_json() -> None:
    program = two_party.compile(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), (4,))
    with two_party.Session.simulated(net="lan") as session:
        session.infer(program, np.ones((1, 4)))
    report = session.report()
    assert two_party.Report.from_json(report.to_json()) == report
    lines = report.to_csv().splitlines()
    assert lines[0].startswith("operator,kind,rounds,sent")
    assert len(lines) == len(report.rows) + 3
    total = report.total
    assert total.total == pytest.approx(total.compute + total.wait)
    assert report.link == "lan"
