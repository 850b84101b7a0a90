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

KINDS = (str, list, dict, int, Path)
"""Classes: whose methods a sentence describes."""


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
def sentences(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of sentences of the interpreter's own documentation, and their classes."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(12)
    tokenizer.enable_padding(length=12)
    classes = {text.strip().split("\n")[0]: i for i, kind in enumerate(KINDS) for text in _docs(kind)}
    ids = torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(classes))])
    return ids, torch.tensor(list(classes.values()))


@pytest.fixture(scope="module")
def ids(sentences: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return sentences[0]


def _docs(kind: type) -> list[str]:
    return [text for name in dir(kind) if (text := getattr(getattr(kind, name), "__doc__", None))]


@pytest.fixture(scope="module")
@torch.no_grad()
def model(folder: Path, sentences: tuple[torch.Tensor, torch.Tensor]) -> TextClassifier:
    """The encoder with a head that ridge regression fits."""
    model = TextClassifier.from_pretrained(folder, len(KINDS)).eval()
    ids, classes = sentences
    states: list[torch.Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    model(ids)
    hook.remove()
    x, y = states[0], nn.functional.one_hot(classes).float()
    model.head.weight.copy_(torch.linalg.solve(x.T @ x + 0.1 * torch.eye(384), x.T @ y).T)
    model.head.bias.zero_()
    return model


@pytest.fixture(scope="module")
def placed(model: TextClassifier, ids: torch.Tensor) -> CrossbarModel:
    return to_crossbar(model, calibration=[ids[:64]], include=r"encoder\.layer")


def test_without_defects_it_is_its_rounded_twin(model, placed, sentences):
    ids, classes = sentences
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
    right, right_plain = ((logits.argmax(1) == classes).double().mean() for logits in (found, plain))
    assert right_plain > 0.8
    assert right >= right_plain - 0.01


def test_one_layer_cycle_by_cycle_is_the_fast_one_on_a_faulty_chip(placed):
    layer = placed.model.encoder.encoder.layer[0].output.dense
    x = torch.randn(4, 1536)
    layer.program(FaultModel.preset("hfo2"))
    assert layer.fast
    fast = layer(x)
    layer.path = "slow"
    assert torch.equal(layer(x), fast)
    layer.path = "auto"
    layer.program(FaultModel())


def test_crossbars_of_minilm(placed, ids):
    report = placed.report()
    # 384x384 four times and 384x1536 twice in each of six layers: 3 x 24, 3 x 96 and 12 x 24 crossbars.
    assert report.totals["crossbars"].value == 6 * (4 * 72 + 288 + 288)
    placed.reset()
    placed(ids[:2])
    assert report.totals["stuck"].value == 0
    assert placed.report().totals["products"].value == 36 * 2 * 12
