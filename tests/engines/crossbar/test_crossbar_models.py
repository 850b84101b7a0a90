"""Networks in crossbars: convolutions, calibration, what is shared, what is counted."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from tradeoff.core.metric import MetricKind
from tradeoff.engines.crossbar import (
    ComponentTable,
    CrossbarConfig,
    CrossbarConv2d,
    CrossbarLinear,
    FaultModel,
    InputRange,
    InvalidConfig,
    InvalidOperand,
    NotCalibrated,
    Placement,
    layer_cost,
    to_crossbar,
)

SMALL = CrossbarConfig(rows=16, cols=32)


class Network(nn.Module):
    """A convolution, a norm, a linear layer that is called twice, and two that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Linear(4, 4)
        self.down = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU())
        self.tied = nn.Linear(4, 6)
        self.tied.weight = self.down[0].weight
        self.table = nn.Embedding(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).mean((2, 3))
        x = self.body(torch.relu(self.body(x)))
        return self.down(x) + self.tied(x)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().train()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("path", ["auto", "slow"])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "mode"),
    [
        (1, 1, 1, "zeros"),
        (2, 0, 1, "zeros"),
        ((2, 1), (1, 2), (1, 2), "zeros"),
        (1, "same", 2, "zeros"),
        (1, 1, 1, "reflect"),
    ],
)
def test_convolutions_are_those_of_their_integer_weights(stride, padding, dilation, mode, path):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, (3, 2), stride, padding, dilation, padding_mode=mode)
    x = torch.randn(2, 3, 9, 8)
    inputs = InputRange.covering(-1.0, float(x.abs().max()), 8)
    placed = CrossbarConv2d(conv, SMALL, inputs, path=path)
    twin = copy.deepcopy(conv)
    twin.weight.data = placed.quantized_weight().view_as(conv.weight)
    rounded = (x / inputs.scale).round().clamp(-127, 127) * inputs.scale
    torch.testing.assert_close(placed(x), twin(rounded), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(placed(x[0]), placed(x)[0])
    assert placed.products == (2 + 1 + 2) * placed(x).shape[2:].numel()


def test_the_order_of_windows_is_that_of_the_weights():
    """A kernel with one weight picks one input."""
    conv = nn.Conv2d(2, 1, (2, 3), bias=False)
    x = torch.arange(2 * 4 * 5).float().view(1, 2, 4, 5)
    for position in range(conv.weight.numel()):
        conv.weight.data.zero_().view(-1)[position] = 1.0
        placed = CrossbarConv2d(conv, CrossbarConfig(), InputRange(1.0, False, 8))
        torch.testing.assert_close(placed(x), functional.conv2d(x, conv.weight), rtol=1e-6, atol=1e-6)


def test_a_network_without_defects_is_close_to_the_floating_point_one(network, images):
    placed = to_crossbar(network, SMALL, calibration=[images, (images, None)])
    network.eval()
    placed.eval()
    with torch.no_grad():
        expected = network(images)
    assert float((placed(images) - expected).norm() / expected.norm()) < 0.03


def test_calibration_leaves_the_network_and_its_norms_alone(network, images):
    before = copy.deepcopy(network.state_dict())
    network.norm.eval()
    modes = [module.training for module in network.modules()]
    to_crossbar(network, SMALL, calibration=lambda model: model(images))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_what_is_not_mapped_stays_the_same_object(network, images):
    placed = to_crossbar(network, SMALL, calibration=[images], include="body|conv", exclude="conv")
    assert placed.model is not network
    assert isinstance(placed.model.body, CrossbarLinear)
    assert type(network.body) is nn.Linear
    for name in ("conv", "norm", "down", "tied", "table"):
        assert getattr(placed.model, name) is getattr(network, name)


def test_a_shared_weight_is_mapped_and_counted_once(network, images):
    faults = FaultModel(0.05, 0.05, seed=2)
    placed = to_crossbar(network, SMALL, faults, calibration=[images])
    names = [row.name for row in placed.report().layers]
    assert names == ["conv", "body", "down.0"]
    one, two = placed.model.down[0], placed.model.tied
    assert one is not two
    assert torch.equal(one.effective_codes(), two.effective_codes())
    assert one.bias is None
    assert torch.equal(two.bias, network.tied.bias)
    placed(images)
    body, down = placed.report().layers[1:]
    assert body.products == down.products == 12


def test_adding_a_layer_leaves_the_faults_of_those_before(images):
    torch.manual_seed(0)
    first, second = nn.Linear(20, 12), nn.Linear(12, 3)
    x, faults = torch.randn(4, 20), FaultModel(0.1, 0.1)
    alone = to_crossbar(nn.Sequential(first), SMALL, faults, calibration=[x])
    both = to_crossbar(nn.Sequential(first, second), SMALL, faults, calibration=[x])
    assert torch.equal(alone.model[0].effective_codes(), both.model[0].effective_codes())
    assert both.model[1].placement.first == alone.model[0].placement.crossbars


def test_another_chip_takes_the_same_integer_weights(network, images):
    placed = to_crossbar(network, SMALL, FaultModel(0.1, 0.05, seed=0), calibration=[images]).eval()
    codes = placed.model.body.codes.clone()
    first = placed(images)
    placed.reprogram(seed=1)
    other = placed(images)
    assert not torch.equal(first, other)
    placed.reprogram(seed=0)
    assert torch.equal(placed(images), first)
    placed.reprogram(FaultModel())
    clean = placed(images)
    assert not torch.equal(clean, first)
    assert torch.equal(placed.model.body.codes, codes)
    placed.set_path("slow")
    assert torch.equal(placed(images), clean)


def test_saved_models_keep_integer_codes_through_a_change_of_type(network, images):
    placed = to_crossbar(network, SMALL, calibration=[images]).eval()
    expected = placed(images)
    state = placed.state_dict()
    assert state["model.body.codes"].dtype == torch.int32
    changed = placed.double()
    torch.testing.assert_close(changed(images.double()).float(), expected, rtol=1e-4, atol=1e-5)


def test_defects_lower_accuracy_with_their_rate():
    """A linear teacher's labels: a network that is right everywhere until cells break."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    x = torch.randn(800, 64)
    labels = model(x).argmax(1)
    means = []
    for rate in (0.0, 0.003, 0.03, 0.3):
        placed = to_crossbar(model, calibration=[x], faults=FaultModel.at_rate(rate, 0.84))
        found = []
        for seed in range(5):
            placed.reprogram(seed=seed)
            found.append(float((placed(x).argmax(1) == labels).float().mean()))
        means.append(sum(found) / 5)
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.97
    assert means[-1] < 0.6


def test_costs_of_bert_base_by_hand():
    """A 768x768 matrix in 128x128 crossbars of one-bit cells: 6 row blocks, 48 blocks of 16 outputs."""
    square = layer_cost(Placement(CrossbarConfig(), 768, 768))
    assert square.crossbars == 6 * 48 == 288
    assert square.cells == 768 * 768 * 8 + 768  # and a column of ones for each input
    assert square.array_cells == 288 * 128 * 128
    assert square.conversions == 8 * (768 * 8 + 1) * 6
    assert square.latency == pytest.approx(8 * 100e-9)
    # Power: crossbars 0.3 mW, half a shift-and-add 25 uW, registers 155 + 28.75 uW; DACs, sample and hold.
    power = 288 * (0.3e-3 + 25e-6 + 155e-6 + 28.75e-6)
    power += 768 * 48 * 4e-3 / 1024 + (768 * 8 + 1) * 6 * 10e-6 / 1024
    energy = 800e-9 * power + square.conversions * 2e-3 / 1.28e9
    assert square.energy == pytest.approx(energy)
    unit = 0.00017 + 0.00004 + 0.0096 + 0.0002 + 0.00024 + 0.0021 + 0.00077  # of eight crossbars
    assert square.area == pytest.approx(288 / 8 * unit)
    up, down = (layer_cost(Placement(CrossbarConfig(), *shape)) for shape in ((3072, 768), (768, 3072)))
    assert up.crossbars == 6 * 192
    assert down.crossbars == 24 * 48
    assert 12 * (4 * square.crossbars + up.crossbars + down.crossbars) == 41_472


def test_costs_follow_converters_and_encodings():
    def cost(**changes):
        return layer_cost(Placement(CrossbarConfig(**changes), 64, 128))

    eight, nine = cost(cell_bits=2, adc_bits=8), cost(cell_bits=2, adc_bits=9)
    conversion = eight.conversions * 2e-3 / 1.28e9
    assert nine.energy - eight.energy == pytest.approx(conversion)
    assert cost(adc_bits=None).energy == cost(adc_bits=8).energy
    assert cost(encoding="differential", cell_bits=7, adc_bits=None).cells == 64 * 128 * 2
    assert cost(encoding="twos_complement").conversions == 8 * 64 * 8
    assert cost(dac_bits=2).conversions == cost().conversions // 2
    assert cost(cols=256).latency == 2 * cost().latency


def test_a_report_sums_its_layers_and_says_what_is_modelled(network, images):
    placed = to_crossbar(network, SMALL, FaultModel(0.05, 0.0), calibration=[images])
    placed(images)
    report = placed.report()
    for name, total in report.totals.items():
        assert total.value == pytest.approx(sum(layer.metrics()[name].value for layer in report.layers))
    kinds = {name: metric.kind for name, metric in report.totals.items()}
    assert kinds["energy"] == kinds["area"] == kinds["latency"] == MetricKind.MODELLED
    assert kinds["crossbars"] == kinds["conversions"] == kinds["stuck"] == MetricKind.COUNTED
    assert report.layers[0].products == 6 * 25
    document = report.document()
    assert document["totals"]["total_energy"]["kind"] == "modelled"
    assert [layer["name"] for layer in document["layers"]] == ["conv", "body", "down.0"]
    placed.reset()
    assert placed.report().totals["products"].value == 0


def test_component_tables_can_be_replaced_and_are_checked(tmp_path):
    table = ComponentTable.load()
    assert "ISCA 2016" in table.source
    own = tmp_path / "own.yaml"
    import yaml

    facts = table.model_dump()
    own.write_text(yaml.safe_dump({**facts, "cycle": 50e-9, "name": "own"}))
    fast = layer_cost(Placement(CrossbarConfig(cols=64), 64, 64), ComponentTable.load(own))
    assert fast.latency == pytest.approx(8 * 50e-9)
    for text, message in (
        ("cycle: [", "no YAML"),
        ("cycle: -1", "cycle: Input should be greater than 0"),
        ("- 1", "no table"),
        ("cycle: .nan", "cycle"),
    ):
        own.write_text(text)
        with pytest.raises(InvalidConfig, match=message):
            ComponentTable.load(own)
    with pytest.raises(InvalidConfig, match="cannot read"):
        ComponentTable.load(tmp_path / "absent.yaml")


def test_networks_that_cannot_be_mapped(network, images):
    def mapped(model, data=(), **options):
        return to_crossbar(model, SMALL, calibration=data, **options)

    with pytest.raises(NotCalibrated, match="conv: no calibration data"):
        mapped(network)
    with pytest.raises(InvalidOperand, match="matches 'encoder'"):
        mapped(network, [images], include="encoder")
    with pytest.raises(InvalidOperand, match="regular expressions"):
        mapped(network, [images], include="(")
    with pytest.raises(InvalidOperand, match="percentile"):
        mapped(network, [images], percentile=0.0)
    with pytest.raises(InvalidOperand, match="single layer"):
        mapped(nn.Linear(2, 2), [torch.ones(1, 2)])
    with pytest.raises(InvalidOperand, match="0 has 2 groups"):
        mapped(nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), [images])
    with pytest.raises(InvalidOperand, match="0 is a ConvTranspose2d"):
        mapped(nn.Sequential(nn.ConvTranspose2d(2, 2, 3)), [images])
    with pytest.raises(InvalidOperand, match="out_proj is a NonDynamicallyQuantizableLinear"):
        mapped(nn.Sequential(nn.MultiheadAttention(4, 2)), [images])
    with pytest.raises(InvalidOperand, match="conv: inputs hold NaN"):
        mapped(network, [images * float("nan")])
    network.body.weight.data[0, 0] = float("inf")
    with pytest.raises(InvalidOperand, match="body"):
        mapped(network, [images])
    with pytest.raises(InvalidOperand, match=r"beyond 2\^53"):
        to_crossbar(
            nn.Sequential(nn.Linear(1 << 21, 1)),
            CrossbarConfig(weight_bits=16, act_bits=16),
            calibration=[torch.ones(1, 1 << 21)],
        )


def test_percentiles_ignore_outliers():
    x = torch.ones(1000, 4)
    x[0, 0] = 1000.0
    model = nn.Sequential(nn.Linear(4, 2))
    assert to_crossbar(model, SMALL, calibration=[x]).model[0].inputs.scale == pytest.approx(1000 / 255)
    robust = to_crossbar(model, SMALL, calibration=[x], percentile=99.9)
    assert robust.model[0].inputs.scale == pytest.approx(1 / 255)
    assert not robust.model[0].inputs.signed
