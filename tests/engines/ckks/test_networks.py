"""Trained networks under encryption: the same labels as in the clear, on every test row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import nn
from typer.testing import CliRunner

from tradeoff.engines import ckks
from tradeoff.engines.ckks.backends import evaluator, secret
from tradeoff.engines.ckks.commands import app
from tradeoff.engines.ckks.execution import Execution
from tradeoff.nn.plan import UnsupportedLayer, save, trace
from tradeoff.nn.polynomial import Polynomial


def square(features: int) -> Polynomial:
    return Polynomial(torch.tensor([[0.1], [0.5], [0.2]]).expand(3, features).clone())


def trained(model: nn.Module, x: Any, y: Any) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(300):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def digits() -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    data = load_digits()
    x = torch.tensor(data.data / 16.0, dtype=torch.float32)
    y = torch.tensor(data.target)
    model = nn.Sequential(nn.Linear(64, 32), square(32), nn.Linear(32, 10))
    return trained(model, x[:1400], y[:1400]), x[1400:], y[1400:]


def cancer() -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    data = load_breast_cancer()
    x = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0), dtype=torch.float32)
    return trained(nn.Linear(30, 2), x[:400], torch.tensor(data.target[:400])), x[400:], data.target[400:]


@pytest.mark.parametrize(("network", "backend"), [(digits, "plain"), (cancer, "plain"), (cancer, "seal")])
def test_labels_are_those_of_the_plaintext(network: Any, backend: str) -> None:
    model, x, y = network()
    program = ckks.compile(model, (x.shape[1],))
    # The simulation at the precision of the compact preset, on every row; the scheme itself on all rows, too.
    plan = ckks.prepare(program, x[:64].numpy(), preset="compact", backend=backend)
    key = secret(backend, plan.parameters).generate(plan.parameters)
    engine = evaluator(backend, plan.parameters)
    engine.load_keys(key.evaluation_keys(plan.steps, plan.relinearize))
    execution, layout = Execution(program, plan, engine), plan.layout_in
    with torch.no_grad():
        plain = model(x).numpy()
    logits = []
    for row in x.numpy().astype(np.float64):
        fresh = [engine.load(key.encrypt(vector, plan.parameters.scale)) for vector in layout.pack(row)]
        outputs, _ = execution.run(fresh)
        slots = [key.decrypt(engine.save(out), plan.output_level, plan.output_scale) for out in outputs]
        logits.append(plan.layout_out.unpack(slots))
    result = np.array(logits)
    top = np.sort(plain, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-2
    assert np.array_equal(result.argmax(1)[clear], plain.argmax(1)[clear])
    assert np.abs(result - plain).max() < 1e-2
    accuracy = float((result.argmax(1) == np.asarray(y)).mean())
    assert accuracy == pytest.approx(float((plain.argmax(1) == np.asarray(y)).mean()), abs=0.01)
    assert accuracy > 0.85


def test_a_square_network_between_two_processes() -> None:
    model, x, _ = digits()
    program = ckks.compile(model, (64,))
    plan = ckks.prepare(program, x[:64].numpy(), preset="compact")
    assert plan.parameters.describe().startswith("N=2^13, depth 4, 193 of 218 bits")
    with ckks.Session(program, plan) as session, torch.no_grad():
        for row in x[:2]:
            result = session.infer(row.numpy())
            assert np.abs(result.values - model(row).numpy()).max() < 1e-2


def test_unsupported_layers_are_named() -> None:
    with pytest.raises(UnsupportedLayer, match="ReLU"):
        ckks.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (4,))
    with pytest.raises(UnsupportedLayer, match="Convolution"):
        ckks.compile(nn.Conv2d(1, 1, 3), (1, 8, 8))


def test_compilation_of_every_supported_operator() -> None:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), square(5), nn.Linear(5, 7), nn.Dropout()]
    model = nn.Sequential(*layers).eval()
    program = ckks.compile(model, (2, 3))
    x = torch.randn(2, 3)
    padded = np.zeros(8)
    padded[:6] = x.reshape(-1).numpy()
    with torch.no_grad():
        assert np.allclose(ckks.evaluate(program, {"x": padded})[0][:7], model(x[None])[0].numpy(), atol=1e-6)


@pytest.mark.slow
def test_the_verbs(tmp_path: Path) -> None:
    model, x, _ = cancer()
    save(trace(model, (30,)), tmp_path / "plan.safetensors")
    np.save(tmp_path / "samples.npy", x[:64].numpy())
    np.save(tmp_path / "x.npy", x[:3].numpy())
    run = CliRunner()

    def say(*words: object) -> Any:
        told = run.invoke(app, [str(word) for word in words])
        assert told.exit_code == 0, told.output + str(told.exception)
        return told

    program = tmp_path / "program"
    say("keys", "--out", tmp_path / "certificates")
    compiled = ("compile", "--plan", tmp_path / "plan.safetensors", "--samples", tmp_path / "samples.npy")
    assert "128-bit security" in say(*compiled, "--out", program, "--preset", "compact").output
    assert "evaluation keys" in say("keygen", "--program", program / "public", "--out", tmp_path / "k").output
    document = json.loads(say("cost", "--program", program, "--json", "--calibrate").output)
    assert document["total_bits"] <= document["limit_bits"]
    assert document["evaluate_seconds"] > 0
    assert "rotate" in say("cost", "--program", program).output
    loaded, plan = ckks.load_program(program)
    with ckks.Session(loaded, plan, folder=tmp_path) as session:
        ckks.session.write_config(tmp_path / "cluster.toml", session.address)
        words = ("query", "--program", program / "public", "--config", tmp_path / "cluster.toml")
        words = (*words, "--keys", tmp_path / "k", "--input", tmp_path / "x.npy")
        say(*words, "--out", tmp_path / "y.npy", "--report", tmp_path / "report.json")
    with torch.no_grad():
        assert np.abs(np.load(tmp_path / "y.npy") - model(x[:3]).numpy()).max() < 1e-2
    assert len(json.loads((tmp_path / "report.json").read_text())) == 3


def test_bench_verb(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["bench", "--logn", "12", "--json", str(tmp_path / "out.json")])
    assert told.exit_code == 0, told.output
    rows = json.loads((tmp_path / "out.json").read_text())
    assert rows[0]["log_n"] == 12
    assert rows[0]["rotate"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["keygen", "--program", "{}", "--out", "{}/k"], "holds no plan"),
        (["cost", "--program", "{}"], "holds no program"),
        (["bench", "--logn", "99"], "not 99"),
        (["compile", "--samples", "{}/x.npy", "--out", "{}/p", "--arch", "small_cnn"], "needs --model"),
    ],
)
def test_bad_input_of_the_verbs(words: list[str], said: str, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, [word.format(tmp_path) for word in words])
    assert told.exit_code != 0
    assert said in told.output + str(told.exception)
