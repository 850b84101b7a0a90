"""Two processes under torchrun train as one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tradeoff.data import images
from tradeoff.nn.fit import FitConfig, evaluate, fit

torch.set_num_threads(1)
torch.manual_seed(0)
digits = images.load("digits")
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
config = FitConfig(epochs=2, batch_size=100, learning_rate=0.05, clip_norm=1.0, checkpoint_seconds=0)
history = fit(model, digits.train, digits.validation, config, checkpoint=Path(sys.argv[1]) / "checkpoint")
tensors = dict(model.state_dict())
tensors["accuracy"] = torch.tensor([evaluate(model, digits.test), *history.column("validation_accuracy")])
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
save_file(tensors, f"{sys.argv[1]}/{rank}.safetensors")
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
def test_two_processes_train_as_one(tmp_path):
    run(tmp_path / "one")
    run(tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    one = load_file(tmp_path / "one" / "0.safetensors")
    for rank in range(2):
        two = load_file(tmp_path / "two" / f"{rank}.safetensors")
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    assert one["accuracy"][0] > 0.6
    one_checkpoint = load_file(tmp_path / "one" / "checkpoint")
    two_checkpoint = load_file(tmp_path / "two" / "checkpoint")
    assert one_checkpoint.keys() == two_checkpoint.keys()
