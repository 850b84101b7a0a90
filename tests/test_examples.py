"""The examples that users are shown run: those of docstrings, of the README and of AutoReP's card."""

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tradeoff.core.registry import PACKAGE
from tradeoff.data.images import load
from tradeoff.nn.fit import FitConfig
from tradeoff.nn.models import build

ROOT = PACKAGE.parents[1]
WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_examples_of_docstrings(path: Path) -> None:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    results = doctest.testmod(module)
    assert results.failed == 0
    assert "# doctest: +SKIP" not in path.read_text(encoding="utf-8"), "an example that does not run"


def example(path: Path, **smaller: str) -> str:
    """The first Python block of a page, with its numbers made smaller so that it takes seconds."""
    found = re.search(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    code = found[1].replace("(3, 32, 32)", "(1, 8, 8)").replace("12_900", "100")
    for old, new in smaller.items():
        assert f"{old}=" in code
        code = re.sub(rf"{old}=[\d.e-]+", f"{old}={new}", code)
    return code


@pytest.fixture
def names() -> dict[str, Any]:
    """What the examples take as given: a trained network, its data, and how to train."""
    torch.manual_seed(0)
    data = load("digits")
    network = build("small_cnn", 10, data.input_shape)
    short = FitConfig(steps=4, optimizer="adam", learning_rate=0.001)
    return {
        "data": data,
        "network": network,
        "model": network,
        "train": data.train,
        "validation": data.validation,
        "replacement": short,
        "finetuning": short,
        "images": data.test.x[:8].numpy(),
    }


@pytest.mark.filterwarnings("ignore:the replacement phase")
def test_example_of_the_card(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    card = PACKAGE / "methods" / "private_inference" / "autorep" / "card.md"
    exec(example(card, epochs="1"), names)
    assert "relu2" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:the replacement phase")
def test_example_of_the_readme(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(example(ROOT / "README.md"), names)
    assert names["logits"].shape == (8, 10)
    assert "reveal" in capsys.readouterr().out
