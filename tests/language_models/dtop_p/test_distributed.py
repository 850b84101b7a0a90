"""Two processes with different data control as one process does on all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys

import torch
from safetensors.torch import save_file
from torch.nn import functional

from tradeoff.methods.language_models.dtop_p import ControlConfig, Controller
from tradeoff.nn.decoder import Decoder, DecoderConfig, MoEConfig
from tradeoff.nn.fit import FitConfig, fit

torch.set_num_threads(1)


class Texts:
    def __len__(self):
        return 64

    def __getitem__(self, positions):
        rows = [torch.randint(16, (13,), generator=torch.Generator().manual_seed(int(p))) for p in positions]
        # Texts of two kinds: what one process sees is not what the other does.
        rows = torch.stack([row if p % 2 else row // 8 for p, row in zip(positions.tolist(), rows)])
        return rows[:, :-1], rows[:, 1:]


results = {}
for control in ("global", "layer"):
    # The balance loss of a rank is that of its own tokens: without it gradients of parts add up exactly.
    mixture = MoEConfig(8, active=3, hidden=6, router="dtop_p", entropy=1e-3)
    config = DecoderConfig(vocab=16, dim=16, layers=2, heads=2, max_len=16, init_std=0.3, ffn=mixture)
    model = Decoder(config, torch.Generator().manual_seed(0)).double()
    controller = Controller(model, 3, ControlConfig(control=control))

    def loss(wrapped, inputs, targets):
        return functional.cross_entropy(wrapped(inputs).flatten(0, 1), targets.flatten()) + model.aux_loss()

    training = FitConfig(steps=50, batch_size=8, optimizer="adamw", learning_rate=0.003)
    fit(model, Texts(), None, training, loss=loss, callbacks=[controller.callback()])
    results[f"{control}.threshold"] = controller.law.threshold
    results[f"{control}.active"] = torch.tensor([one.per_layer for one in controller.history])
    results[f"{control}.thresholds"] = torch.tensor([one.threshold for one in controller.history])
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
save_file(results, f"{sys.argv[1]}/{rank}.safetensors")
"""


def run(folder: Path, *launcher: str) -> None:
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launcher, str(script), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_control_as_one(tmp_path):
    run(tmp_path / "one")
    run(tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    one = load_file(tmp_path / "one" / "0.safetensors")
    first, second = (load_file(tmp_path / "two" / f"{rank}.safetensors") for rank in range(2))
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-6)
    assert len(one["global.active"]) == 50
    assert float(one["global.thresholds"].std()) > 0.01
