"""Counts against published and hand-made ones."""

import pytest
import torch
from torch import nn

from tradeoff.nn.counters import count
from tradeoff.nn.models import build
from tradeoff.nn.polynomial import MaskedReLU

KNOWN = {
    # arch, classes, input: MACs, ReLU elements, sites
    ("resnet18", 1000, (3, 224, 224)): (1_814_073_344, 2_308_096, 17),
    ("resnet18", 10, (3, 32, 32)): (555_422_720, 557_056, 17),
    ("resnet20", 10, (3, 32, 32)): (40_813_184, 188_416, 19),
    ("wrn22_8", 10, (3, 32, 32)): (2_454_115_328, 1_392_640, 19),
    ("vgg16", 1000, (3, 224, 224)): (15_470_264_320, 13_555_712, 15),
    ("mobilenet_v2", 1000, (3, 224, 224)): (300_774_272, 6_105_792, 35),
    ("pair_cnn", 10, (1, 8, 16)): (272_384, 4_096, 5),
    ("small_cnn", 10, (1, 28, 28)): (313_600 + 2_508_800 + 15_680, 16 * 784 + 32 * 196, 2),
}


@pytest.mark.parametrize(("case", "known"), KNOWN.items(), ids=str)
def test_known_networks(case, known):
    with torch.device("meta"):
        model = build(*case)
    counts = count(model, case[2])
    assert (counts.macs, counts.relus, counts.activation_sites) == known
    assert counts.flops == 2 * counts.macs
    assert counts.parameters == sum(p.numel() for p in model.parameters())


class Functional(nn.Module):
    """Functional calls, a layer used twice, a matrix product, ReLU6, grouped and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.same(x))
        x = torch.relu_(self.same(x))
        x = nn.functional.relu6(self.up(x))
        return self.act(x @ x.transpose(2, 3))


def test_functional_calls_reuse_and_products():
    model = Functional().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counts = count(model, (4, 6, 6))
    rows = {row.name: row for row in counts.layers}
    assert rows["same"].macs == 2 * 36 * 4 * 2 * 9
    assert rows["up"].macs == 36 * 4 * 2 * 4
    assert rows[""].macs == 2 * 12 * 12 * 12
    assert rows[""].relus == 2 * 4 * 36 + 2 * 144
    assert rows["act"].activations == 2 * 144
    assert rows["act"].relus == 0
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.act._forward_hooks


def test_partly_replaced_site_counts_what_it_keeps():
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[0, :2] = True
    model = nn.Sequential(nn.Conv2d(1, 3, 1), MaskedReLU(mask, torch.zeros(3, 3)))
    counts = count(model, (1, 4, 4))
    assert (counts.relus, counts.activations) == (8, 48)


def test_table_has_a_line_per_layer_and_the_sums():
    lines = count(build("pair_cnn", 10, (1, 8, 16)), (1, 8, 16)).table().splitlines()
    assert len(lines) == 1 + 16 + 1
    assert lines[-1].split() == ["total", "272,384", "9,922", "4,096", "4,096"]
    assert len({len(line) for line in lines}) == 1
