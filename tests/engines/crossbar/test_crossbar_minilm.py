"""A BERT encoder of a package in crossbars, beside a twin whose numbers are merely rounded."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tradeoff.core.errors import DataError
from tradeoff.data import checkpoints
from tradeoff.engines.crossbar import CrossbarModel, FaultModel, to_crossbar
from tradeoff.nn.encoders import TextClassifier

CLASSES = 6


class Rounded(nn.Module):
    """A linear layer with rounded weights and inputs, in floating point."""

    def __init__(self, linear: nn.Linear, scale: float) -> None:
        super().__init__()
        peaks = linear.weight.detach().abs().amax(1, keepdim=True)
        step = torch.where(peaks > 0, peaks / 127, 1.0)
        self.weight = (linear.weight.detach() / step).round() * step
        self.bias, self.scale = linear.bias.detach(), scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = (x / self.scale).round().clamp(-127, 127) * self.scale
        return nn.functional.linear(rounded, self.weight, self.bias)


@pytest.fixture(scope="module")
def folder(require: Callable[[object, str], None]) -> Path:
    try:
        return checkpoints.minilm()
    except DataError as error:
        require(False, str(error))
        raise


@pytest.fixture(scope="module")
def ids(folder: Path) -> torch.Tensor:
    """Sentences of the interpreter's own documentation."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    lines = [text.strip().split("\n")[0] for module in (str, list, dict, int, Path) for text in _docs(module)]
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(sorted(set(lines)))])


def _docs(kind: type) -> list[str]:
    return [text for name in dir(kind) if (text := getattr(getattr(kind, name), "__doc__", None))]


@pytest.fixture(scope="module")
def model(folder: Path) -> TextClassifier:
    torch.manual_seed(0)
    return TextClassifier.from_pretrained(folder, CLASSES).eval()


@pytest.fixture(scope="module")
def placed(model: TextClassifier, ids: torch.Tensor) -> CrossbarModel:
    return to_crossbar(model, calibration=[ids[:64]], include=r"encoder\.layer", percentile=99.9)


def test_without_defects_it_is_its_rounded_twin(model, placed, ids):
    twin = copy.deepcopy(model)
    for name, layer in placed.layers():
        assert layer.inputs.signed
        twin.set_submodule(name, Rounded(model.get_submodule(name), layer.inputs.scale))
    assert sum(1 for _ in placed.layers()) == 36
    with torch.no_grad():
        expected, plain = twin(ids), model(ids)
    found = placed(ids)
    assert len(ids) > 150
    assert (found.argmax(1) == expected.argmax(1)).double().mean() >= 0.995
    assert (found.argmax(1) == plain.argmax(1)).double().mean() >= 0.95
    assert (found - expected).abs().max() < 0.1 * (plain - plain.mean(0)).abs().max()


def test_one_layer_cycle_by_cycle_is_the_fast_one_on_a_faulty_chip(placed):
    placed.reprogram(FaultModel.preset("hfo2"))
    layer = placed.model.encoder.encoder.layer[0].output.dense
    x = torch.randn(4, 1536)
    assert layer.fast
    fast = layer(x)
    layer.path = "slow"
    assert torch.equal(layer(x), fast)
    layer.path = "auto"
    placed.reprogram(FaultModel())


def test_crossbars_of_minilm(placed, ids):
    report = placed.report()
    # 384x384 four times and 384x1536 twice in each of six layers: 3 x 24, 3 x 96 and 12 x 24 crossbars.
    assert report.totals["crossbars"].value == 6 * (4 * 72 + 288 + 288)
    placed.reset()
    placed(ids[:2])
    assert report.totals["stuck"].value == 0
    assert placed.report().totals["products"].value == 36 * 2 * 16
