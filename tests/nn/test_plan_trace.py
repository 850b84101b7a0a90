"""Tracing torch models into plans: the plan computes what the model computes."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn import plan as op
from tradeoff.nn.plan import Plan, UnsupportedLayer, UntraceableModel, trace
from tradeoff.nn.polynomial import MaskedReLU, Polynomial, SiteShapeMismatch

TOLERANCE = 1e-4


class Lambda(nn.Module):
    """A module around a function of the input (and optionally of the layers given by keyword)."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class BasicBlock(nn.Module):
    """A residual block as torchvision writes it: one in-place ReLU called twice, ``out += identity``."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class TorchvisionStyleResNet(nn.Module):
    """ResNet-18's forward pass, with a given width."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages = []
        for index in range(4):
            channels = width << index
            first = BasicBlock(max(width, channels // 2), channels, 1 if index == 0 else 2)
            stages.append(nn.Sequential(first, BasicBlock(channels, channels, 1)))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch normalizations statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(-1.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.5, generator=generator)
    return model


def check(model: nn.Module, shape: tuple[int, ...], batch: int = 3) -> Plan:
    """Trace, compare with torch on random inputs, and return the plan."""
    model.train()
    before = copy.deepcopy(model.state_dict())
    plan = trace(model, shape)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x.clone())
    expected = getattr(expected, "logits", expected).numpy()
    result = plan.evaluate(x.numpy())
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=TOLERANCE, atol=TOLERANCE)
    return plan


def kinds(plan: Plan) -> list[str]:
    return [type(operator).__name__ for operator in plan]


def test_plain_network_and_names() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
        nn.BatchNorm1d(10),
    )
    plan = check(randomize(model), (1, 8, 8))
    assert kinds(plan) == ["Input", "Convolution", "ReLU", "AveragePool", "Flatten", "Linear"]
    assert [operator.name for operator in plan] == ["input", "0", "2", "4", "5", "6"]
    assert plan.output == "6"
    assert plan.relu_count == 4 * 64
    assert plan.output_shape == (10,)


def test_torchvision_style_resnet() -> None:
    plan = check(randomize(TorchvisionStyleResNet()), (3, 64, 64))
    names = [operator.name for operator in plan if isinstance(operator, op.ReLU)]
    assert names[:3] == ["relu", "layer1.0.relu", "layer1.0.relu_2"]
    assert len(names) == 17
    assert "Affine" not in kinds(plan)


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_hugging_face_resnet(layer_type: str, require: Callable[[object, str], None]) -> None:
    try:
        from transformers import ResNetConfig, ResNetForImageClassification
    except ImportError:
        require(False, "transformers is not installed; run: pip install 'tradeoff[llm]'")
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32], depths=[2, 1, 2], layer_type=layer_type, num_labels=5
    )
    plan = check(randomize(ResNetForImageClassification(config)), (3, 32, 32))
    assert plan.output == "classifier.1"
    assert "Affine" not in kinds(plan)


def test_hugging_face_resnet_refuses_other_channels(require: Callable[[object, str], None]) -> None:
    try:
        from transformers import ResNetConfig, ResNetForImageClassification
    except ImportError:
        require(False, "transformers is not installed; run: pip install 'tradeoff[llm]'")
    model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(UntraceableModel, match=r"resnet.embedder .*channel dimension"):
        trace(model, (1, 32, 32))


POOLED = {
    "adaptive module": lambda m, x: nn.AdaptiveAvgPool2d(1)(x).flatten(1),
    "adaptive function": lambda m, x: functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1),
    "adaptive pair": lambda m, x: functional.adaptive_avg_pool2d(x, (1, 1)).reshape(x.shape[0], -1),
    "mean": lambda m, x: x.mean((2, 3)),
    "mean list": lambda m, x: x.mean([-2, -1]),
    "torch.mean": lambda m, x: torch.mean(x, dim=(3, 2)),
    "mean, kept": lambda m, x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1),
    "average of all": lambda m, x: functional.avg_pool2d(x, x.shape[2:]).squeeze(),
    "average of size": lambda m, x: torch.flatten(functional.avg_pool2d(x, x.size()[3]), start_dim=1),
    "max": lambda m, x: functional.max_pool2d(x, x.size(-1)).view(len(x.shape) * 0 + x.size()[0], 6),
    "adaptive max": lambda m, x: functional.adaptive_max_pool2d(x, 1).flatten(1),
}


@pytest.mark.parametrize("form", POOLED)
def test_global_pooling_forms(form: str) -> None:
    function = POOLED[form]
    plan = check(Lambda(function), (6, 4, 4))
    assert kinds(plan) == ["Input", "MaxPool" if "max" in form else "AveragePool", "Flatten"]


ACTIVATIONS = {
    "F.relu": lambda m, x: functional.relu(m.conv(x)),
    "F.relu in place": lambda m, x: functional.relu(m.conv(x), inplace=True),
    "F.relu_": lambda m, x: functional.relu_(m.conv(x)),
    "torch.relu": lambda m, x: torch.relu(m.conv(x)),
    "method": lambda m, x: m.conv(x).relu(),
    "method in place": lambda m, x: m.conv(x).relu_(),
}


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_functional_activations(form: str) -> None:
    plan = check(Lambda(ACTIVATIONS[form], conv=nn.Conv2d(2, 3, 1)), (2, 4, 4))
    assert kinds(plan) == ["Input", "Convolution", "ReLU"]
    assert plan.output == "relu"


SUMS = {
    "operator": lambda m, x: m.a(x) + m.b(x),
    "in place": lambda m, x: m.a(x).add_(m.b(x)),
    "augmented": lambda m, x: _augmented(m.a(x), m.b(x)),
    "torch.add": lambda m, x: torch.add(m.a(x), m.b(x)),
    "method": lambda m, x: m.a(x).add(m.b(x)),
    "alpha": lambda m, x: torch.add(m.a(x), m.b(x), alpha=-0.5),
    "difference": lambda m, x: m.a(x) - m.b(x),
    "twice": lambda m, x: (lambda y: y + y)(m.a(x)),
    "numbers": lambda m, x: 1.5 - (2 * m.a(x) / 3 + 1),
    "concatenation": lambda m, x: torch.cat([m.a(x), m.b(x)], dim=1),
    "concatenation, last": lambda m, x: torch.cat((m.a(x), m.b(x), x[:, :] if False else m.a(x)), -1),
    "one": lambda m, x: torch.cat([m.a(x)], 1),
}


def _augmented(out: Tensor, other: Tensor) -> Tensor:
    out += other
    return out


@pytest.mark.parametrize("form", SUMS)
def test_sums_and_concatenations(form: str) -> None:
    check(Lambda(SUMS[form], a=nn.Conv2d(2, 3, 1), b=nn.Conv2d(2, 3, 3, padding=1)), (2, 4, 4))


@pytest.mark.parametrize("padding", ["same", "valid", 0, (1, 2)])
@pytest.mark.parametrize("kernel", [1, 2, (3, 4), (4, 3)])
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
def test_convolution_padding(padding: str | int, kernel: int, dilation: int) -> None:
    check(nn.Conv2d(2, 4, kernel, padding=padding, dilation=dilation, groups=2), (2, 11, 12))


def test_one_dimensional_network() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 6, 5, stride=2, padding=2, groups=2),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.MaxPool1d(3, 2, 1),
        nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    check(randomize(model), (2, 32))


def test_vector_network() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2))
    assert kinds(check(randomize(model), (6,))) == ["Input", "Linear", "ReLU", "Affine", "Linear"]


def test_batch_norm_that_follows_no_linear_layer() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 1))
    assert kinds(check(randomize(model), (2, 4, 4))) == ["Input", "Affine", "ReLU", "Convolution"]


def test_batch_norm_of_a_convolution_with_two_readers_is_not_folded() -> None:
    model = Lambda(
        lambda m, x: (lambda y: m.bn(y) + y)(m.conv(x)), conv=nn.Conv2d(2, 3, 1), bn=nn.BatchNorm2d(3)
    )
    assert kinds(check(randomize(model), (2, 4, 4))) == ["Input", "Convolution", "Affine", "Add"]


def test_shared_convolution_becomes_two() -> None:
    plan = check(Lambda(lambda m, x: m.conv(m.conv(x).relu()), conv=nn.Conv2d(2, 2, 3, padding=1)), (2, 4, 4))
    assert [operator.name for operator in plan] == ["input", "conv", "relu", "conv_2"]


def test_in_place_relu_changes_later_readers() -> None:
    """Pre-activation with an in-place ReLU: the shortcut carries ReLU's output, not its input."""
    model = Lambda(
        lambda m, x: (lambda y: m.conv(m.relu(y)) + y)(m.conv(x)),
        conv=nn.Conv2d(2, 2, 3, padding=1),
        relu=nn.ReLU(inplace=True),
    )
    plan = check(model, (2, 4, 4))
    add = next(operator for operator in plan if isinstance(operator, op.Add))
    assert add.inputs == ("conv_2", "relu")


def test_in_place_change_through_a_view_is_refused() -> None:
    def forward(m: Lambda, x: Tensor) -> Tensor:
        y = m.conv(x)
        flat = y.flatten(1).relu_()
        return flat + y.mean((2, 3)).sum()

    with pytest.raises(UntraceableModel, match="in place"):
        trace(Lambda(forward, conv=nn.Conv2d(2, 2, 1)), (2, 4, 4))


def test_polynomial_and_masked_activations() -> None:
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(3, 4, generator=generator)
    mask = torch.rand(4, 6, 6, generator=generator) < 0.3
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        MaskedReLU(mask, coefficients),
        nn.Conv2d(4, 4, 1),
        Polynomial(0.1 * coefficients),
    )
    plan = check(model, (1, 6, 6))
    assert kinds(plan) == ["Input", "Convolution", "MaskedReLU", "Convolution", "Polynomial"]
    assert plan.relu_count == int(mask.sum())
    with pytest.raises(SiteShapeMismatch, match="1"):
        trace(model, (1, 7, 7))


def test_argmax() -> None:
    plan = check(Lambda(lambda m, x: m.fc(x).argmax(1), fc=nn.Linear(6, 5)), (6,), batch=20)
    assert plan.output_shape == ()


def test_functional_weights() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(3, 2, 3, 3))
            self.weight = nn.Parameter(torch.randn(4, 12))

        def forward(self, x: Tensor) -> Tensor:
            y = functional.conv2d(x, self.kernel, stride=2, padding=1)
            return functional.linear(y.flatten(1), self.weight)

    check(Scaled(), (2, 4, 4))


class NormWithActivation(nn.BatchNorm2d):
    """A subclass with a forward of its own, as libraries write them."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        ).relu()


def test_functional_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), NormWithActivation(3))
    assert kinds(check(randomize(model), (2, 4, 4))) == ["Input", "Convolution", "ReLU"]


class WithConstant(nn.Module):
    """A function of the input and of a buffer."""

    def __init__(self, constant: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("constant", constant)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.constant)


CHANNELS = torch.tensor([0.5, -2.0])


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 2, 1, 1), (1, 1, 1, 1), ()])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, c: (x - c) / c,
        lambda x, c: c * x + c,
        lambda x, c: c - x.relu(),
        lambda x, c: x.sub(c).div(c).mul_(c).add_(c),
    ],
)
def test_constants_for_each_channel(shape: tuple[int, ...], function: Callable[..., Tensor]) -> None:
    constant = CHANNELS[: torch.Size(shape).numel()].reshape(shape)
    plan = check(WithConstant(constant, function), (2, 3, 4))
    assert set(kinds(plan)) <= {"Input", "Affine", "ReLU"}
    assert kinds(plan).count("Affine") == 1


def test_weights_computed_in_forward_from_parameters() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            weight = weight / weight.flatten(1).std(1).view(-1, 1, 1, 1)
            assert self.bias is not None
            return functional.conv2d(x, weight, padding=1) + self.bias.view(1, -1, 1, 1)

    assert kinds(check(Standardized(2, 3, 3), (2, 5, 5))) == ["Input", "Convolution"]


@pytest.mark.parametrize("function", [lambda x: x * x, lambda x: x**2, torch.square, lambda x: x.pow(3)])
def test_powers(function: Callable[[Tensor], Tensor]) -> None:
    assert kinds(check(Lambda(lambda m, x: function(x)), (2, 5, 5))) == ["Input", "Polynomial"]


@pytest.mark.parametrize("function", [lambda x, c: x + c, lambda x, c: c * x, lambda x, c: c / x])
def test_other_constants_are_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(UnsupportedLayer, match="constant"):
        trace(WithConstant(torch.ones(2, 3, 4), function), (2, 3, 4))
    with pytest.raises(ValueError, match="constant holds NaN"):
        trace(WithConstant(torch.full((2, 1, 1), float("nan")), lambda x, c: x + c), (2, 3, 4))


def test_parametrized_weights() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    assert kinds(check(nn.Sequential(layer, nn.ReLU()), (2, 5, 5))) == ["Input", "Convolution", "ReLU"]


@pytest.mark.parametrize(
    ("layer", "name", "hint"),
    [
        (nn.ReLU6(), "1 (ReLU6)", "replace it by ReLU"),
        (nn.SiLU(), "1 (SiLU)", "replace it by ReLU"),
        (Lambda(lambda m, x: functional.silu(x)), "1.silu (silu)", "replace it by ReLU"),
        (Lambda(lambda m, x: functional.hardtanh(x)), "1.hardtanh (hardtanh)", "supported are"),
        (nn.Softmax(1), "1 (Softmax)", "logits"),
        (nn.GroupNorm(1, 4), "1 (GroupNorm)", "BatchNorm"),
        (nn.BatchNorm2d(4, track_running_stats=False), "1 (BatchNorm2d)", "track_running_stats"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "1 (Conv2d)", "circular"),
        (nn.MaxPool2d(2, ceil_mode=True), "1 (MaxPool2d)", "ceil_mode"),
        (nn.AvgPool2d(2, divisor_override=3), "1 (AvgPool2d)", "divisor_override"),
        (nn.AdaptiveAvgPool2d(2), "1 (AdaptiveAvgPool2d)", "does not divide"),
        (Lambda(lambda m, x: x[:, :2]), "1.getitem (getitem)", "slicing"),
        (Lambda(lambda m, x: x * x.relu()), "1.mul (mul)", "products of two tensors"),
        (Lambda(lambda m, x: x + x.mean((2, 3), keepdim=True)), "1.add (add)", "differ in shape"),
        (Lambda(lambda m, x: x.transpose(1, 2)), "1.transpose (transpose)", "supported are"),
        (Lambda(lambda m, x: x.view(-1, 2, 10, 5)), "1.view (view)", "only flattening"),
        (Lambda(lambda m, x: functional.pad(x, (1, 1))), "1.pad (pad)", "padding argument"),
        (Lambda(lambda m, x: functional.dropout(x)), "1.dropout (dropout)", "eval mode"),
        (Lambda(lambda m, x: x**5), "1.pow (pow)", "powers 1 to 4"),
        (Lambda(lambda m, x: 1 / x), "1.truediv (truediv)", "by a constant"),
        (nn.Linear(5, 2), "1 (Linear)", "flatten"),
    ],
)
def test_unsupported_layers_are_named_with_a_hint(layer: nn.Module, name: str, hint: str) -> None:
    with pytest.raises(UnsupportedLayer) as caught:
        trace(nn.Sequential(nn.Conv2d(1, 4, 1), layer), (1, 5, 5))
    assert caught.value.name == name
    assert hint in caught.value.hint


def test_ceil_mode_that_changes_nothing_is_accepted() -> None:
    check(nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2, ceil_mode=True)), (1, 8, 8))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: x if x.sum() > 0 else -x, r"inner \(test_plan_trace.py:\d+: .*x.sum\(\) > 0"),
        (lambda m, x: m.missing(x), "missing"),
        (lambda m, x: torch.cat([x, x[:, :, :1]], 1), "cat"),
        (lambda m, x: (x, x), "not one tensor"),
        (lambda m, x: torch.from_numpy(x.numpy()), "inner"),
    ],
)
def test_untraceable_models_are_located(function: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(UntraceableModel, match=message):
        trace(Lambda(lambda m, x: m.inner(x), inner=Lambda(function)), (2, 4, 4))


def test_wrong_input_shape_is_located() -> None:
    with pytest.raises(UntraceableModel, match="at 1: "):
        trace(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), (2, 4, 4))
    with pytest.raises(ValueError, match="input shape"):
        trace(nn.ReLU(), (2, 0, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_weights_are_named(bad: float) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    model[1].running_var[1] = bad
    with pytest.raises(ValueError, match=r"1\.running_var"):
        trace(model, (1, 4, 4))
    model[0].weight.data[0] = bad
    with pytest.raises(ValueError, match=r"0\.weight"):
        trace(model, (1, 4, 4))


class RandomNetwork(nn.Module):
    """A network of layers drawn by hypothesis, with residual and concatenated branches."""

    def __init__(self, draw: Callable[[st.SearchStrategy], object], channels: int, size: int) -> None:
        super().__init__()
        self.steps: list[tuple[str, int]] = []
        self.layers = nn.ModuleList()
        self.relu = nn.ReLU(inplace=draw(st.booleans()))
        self.draw = draw
        for _ in range(int(str(draw(st.integers(1, 6))))):
            channels, size = self._grow(channels, size)
        self.classifier = nn.Linear(channels * size * size, 3)

    def _grow(self, channels: int, size: int) -> tuple[int, int]:
        draw = self.draw
        kind = draw(
            st.sampled_from(
                ["conv", "depthwise", "norm", "relu", "function", "max", "average", "add", "cat", "double"]
            )
        )
        self.steps.append((str(kind), len(self.layers)))
        if kind == "conv":
            kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
            extent = dilation * (kernel - 1)
            padding = max(draw(st.integers(0, 2)), (extent - size + 2) // 2, 0)
            stride, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, channels]))
            out = groups * draw(st.integers(1, 3)) if groups == 1 else groups
            bias = draw(st.booleans())
            self.layers.append(nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias))
            return out, (size + 2 * padding - extent - 1) // stride + 1
        if kind == "depthwise":
            self.layers.append(nn.Conv2d(channels, 2 * channels, 3, padding="same", groups=channels))
            return 2 * channels, size
        if kind in ("norm", "add", "double"):
            self.layers.append(
                nn.BatchNorm2d(channels) if kind == "norm" else nn.Conv2d(channels, channels, 1)
            )
        if kind in ("max", "average"):
            kernel = min(draw(st.integers(1, 3)), size)
            padding, stride = draw(st.integers(0, kernel // 2)), draw(st.integers(1, 2))
            pool = nn.MaxPool2d(kernel, stride, padding)
            if kind == "average":
                pool = nn.AvgPool2d(kernel, stride, padding, count_include_pad=draw(st.booleans()))
            self.layers.append(pool)
            return channels, (size + 2 * padding - kernel) // stride + 1
        return (2 * channels if kind == "cat" else channels), size

    def forward(self, x: Tensor) -> Tensor:
        for kind, index in self.steps:
            if kind == "relu":
                x = self.relu(x)
            elif kind == "function":
                x = functional.relu(x)
            elif kind == "add":
                y = self.layers[index](x)
                y += x
                x = self.relu(y)
            elif kind == "double":
                y = self.relu(x)
                x = self.layers[index](y) + x
            elif kind == "cat":
                x = torch.cat([x, functional.dropout(x, training=self.training)], 1)
            else:
                x = self.layers[index](x)
        return self.classifier(x.flatten(1))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(3, 7))
def test_random_networks(data: st.DataObject, channels: int, size: int) -> None:
    torch.manual_seed(0)
    model = randomize(RandomNetwork(data.draw, channels, size))
    plan = check(model, (channels, size, size), batch=2)
    x = np.random.default_rng(0).normal(size=(2, channels, size, size))
    result = plan.evaluate(x)
    for rewrite in (op.swap_relu_maxpool, op.fold_average_pool, op.fold_batch_norm):
        np.testing.assert_allclose(rewrite(plan).evaluate(x), result, rtol=1e-9, atol=1e-9)
    assert op.loads(op.dumps(plan)).digest == plan.digest
