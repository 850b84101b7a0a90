"""The learning effects at small scale, files and verbs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tradeoff.core.errors import DataError
from tradeoff.data.skeletons import motions
from tradeoff.methods.private_inference.lingcn import STGCN, Shape, linearize, polynomialize, train_teacher
from tradeoff.methods.private_inference.lingcn.commands import app
from tradeoff.methods.private_inference.lingcn.files import load_network, save_network
from tradeoff.methods.private_inference.lingcn.pipeline import Training, train_all
from tradeoff.nn.fit import FitConfig, evaluate


def phase(epochs: int, rate: float) -> FitConfig:
    return FitConfig(epochs=epochs, batch_size=32, optimizer="adam", learning_rate=rate, evaluate_every=99)


@pytest.fixture(scope="module")
def data() -> Any:
    return motions(frames=8, train=300, validation=30, test=150)


@pytest.fixture(scope="module")
def teacher(data: Any) -> STGCN:
    torch.manual_seed(0)
    network = STGCN(data.skeleton, Shape((8, 8), (1, 1), 15, taps=3))
    return train_teacher(network, data.train, data.validation, phase(12, 0.02))


def linearized(teacher: STGCN, data: Any, mu: float, rule: Any = "structural") -> STGCN:
    torch.manual_seed(1)
    split = data.train, data.validation
    return linearize(teacher, *split, phase(4, 0.003), mu=mu, rule=rule, gate_rate=0.002)


def test_learning(teacher: STGCN, data: Any) -> None:
    """Levels fall with the weight of open gates; the last phase wins back what replacing costs."""
    base = evaluate(teacher, data.test)
    assert base > 0.5
    few = linearized(teacher, data, 0.3)
    with pytest.warns(UserWarning, match="network is linear"):
        none = linearized(teacher, data, 30.0)
    assert none.effective_layers() == 0 < few.effective_layers() < 4 == teacher.effective_layers()
    counts = few.gates().sum(1)
    assert torch.equal(counts.amin(1), counts.amax(1))
    split = data.train, data.validation
    final = polynomialize(few, teacher, *split, phase(8, 0.01))
    unlearned = polynomialize(few, teacher, *split, phase(0, 0.01))
    reached = evaluate(final, data.test)
    assert reached > base - 0.15
    assert reached - evaluate(unlearned, data.test) > 0.1
    assert final.effective_layers() == few.effective_layers()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in final.parameters())


def test_without_the_constraint_no_level_goes(teacher: STGCN, data: Any) -> None:
    """The effect test's broken variant: gates of single joints close, and all levels stay."""
    loose = linearized(teacher, data, 0.3, "unstructured")
    assert loose.gates().mean() < 0.99
    assert loose.effective_layers() == 4


def test_networks_survive_files(tmp_path: Path, teacher: STGCN, data: Any) -> None:
    split = data.train, data.validation
    network = polynomialize(teacher, teacher, *split, phase(0, 0.01), shared=True)
    network.layers[0].gates.fixed[0, 3] = 0.0
    save_network(tmp_path, network, frames=8)
    again, frames = load_network(tmp_path)
    assert frames == 8
    assert torch.equal(again(data.test.x[:4]), network(data.test.x[:4]))
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"format": "x"}, {"edges": []}, {"channels": "4"}, {"taps": 4}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(DataError, match="describes no network"):
            load_network(tmp_path)
    with pytest.raises(DataError, match="holds no network"):
        load_network(tmp_path / "nowhere")


def test_the_whole_way_in_one_call(data: Any) -> None:
    said: list[str] = []
    training = Training(channels=(4,), epochs=1)
    trained = train_all(data, 0.1, training, say=said.append)
    assert said == ["training the teacher", "closing gates", "training quadratics"]
    assert trained.network.is_polynomial
    assert 0 <= trained.accuracy <= 1


def test_persons_are_averaged(teacher: STGCN) -> None:
    x = torch.randn(2, 3, 8, 15, 2)
    with torch.no_grad():
        both = teacher(x)
        apart = (teacher(x[..., :1]) + teacher(x[..., 1:])) / 2
    assert torch.allclose(both, apart, atol=1e-5)


@pytest.mark.slow
def test_the_verbs(tmp_path: Path) -> None:
    small = ["--frames", "8", "--windows", "60", "--channels", "2", "--epochs", "1"]
    run = CliRunner()
    told = run.invoke(app, ["train", "--out", str(tmp_path / "net"), "--mu", "0.1", *small])
    assert told.exit_code == 0, told.output + str(told.exception)
    assert "128-bit security" in told.output
    assert (tmp_path / "net" / "program" / "public" / "plan.json").is_file()
    out = tmp_path / "report.json"
    told = run.invoke(app, ["run", "--mu", "0.1", "--encrypt", "1", *small, "--out", str(out)])
    assert told.exit_code == 0, told.output + str(told.exception)
    rows = json.loads(out.read_text())["runs"]
    assert [row["variant"] for row in rows] == ["lingcn"]
    assert all(row["agreement"] == 1.0 and row["predicted_seconds"] > 0 for row in rows)
    told = run.invoke(
        app, ["classify", "--model", str(tmp_path / "net"), "--encrypt", "1", "--preset", "compact"]
    )
    assert told.exit_code == 0, told.output + str(told.exception)
    assert "it is" in told.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["classify", "--model", "{}"], "holds no network"),
        (["convert", "--path", "{}", "--out", "{}/x"], "holds no files"),
        (["run", "--data", "dances"], "no skeletons 'dances'"),
    ],
)
def test_bad_input_of_the_verbs(words: list[str], said: str, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, [word.format(tmp_path) for word in words])
    assert told.exit_code != 0
    assert said in told.output + str(told.exception)
