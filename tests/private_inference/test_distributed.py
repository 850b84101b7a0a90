"""Two processes under torchrun learn the same positions and polynomials."""

import os
import runpy
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

from tradeoff.data import images
from tradeoff.methods.private_inference.autorep import AutoReP, ReplacementConfig
from tradeoff.nn.fit import FitConfig
from tradeoff.nn.models import build

torch.set_num_threads(1)
torch.manual_seed(0)
digits = images.load("digits")
network = build("small_cnn", 10, (1, 8, 8))
config = ReplacementConfig(calib_iters=6, refresh=2, hysteresis=0.1)
method = AutoReP(network, 200, (1, 8, 8), config, penalty=50.0)
first = FitConfig(steps=12, batch_size=100, optimizer="adam", learning_rate=0.002)
method.fit(digits.train, None, first, first, score_learning_rate=0.1)
assert method.relu_count() <= 200
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
save_file(dict(method.network.state_dict()), f"{sys.argv[1]}/{rank}.safetensors")
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the replacement phase")
def test_two_processes_choose_the_same_positions_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(script), str(one)])
    runpy.run_path(str(script))
    launcher = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launcher, str(script), str(two)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]

    alone = load_file(one / "0.safetensors")
    first, second = (load_file(two / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first), "the processes drifted apart"
    for name in alone:
        if name.endswith("mask"):
            assert (alone[name] == first[name]).float().mean() > 0.99, name
        elif name.endswith(("statistics.mean", "statistics.variance")):
            torch.testing.assert_close(alone[name], first[name], rtol=1e-3, atol=1e-3)
