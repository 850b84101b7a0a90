"""LoT in a transformers Trainer, and over several processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tradeoff.methods.language_models.lot import LoT

transformers = pytest.importorskip("transformers", reason="pip install 'tradeoff[llm]'")


def make() -> Any:
    config = transformers.GPT2Config(
        vocab_size=16,
        n_positions=8,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    return transformers.GPT2LMHeadModel(config)


def examples() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 16, (12, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(folder: Path) -> dict[str, Any]:
    args = transformers.TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        max_grad_norm=0.0,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )
    return {"args": args, "train_dataset": examples(), "eval_dataset": examples()}


def test_alpha_0_in_the_trainer_is_the_plain_trainer(tmp_path: Path) -> None:
    from tradeoff.methods.language_models.lot.hf import LoTTrainer

    torch.manual_seed(0)
    plain = make()
    transformers.Trainer(plain, **arguments(tmp_path / "plain")).train()
    torch.manual_seed(0)
    lot = LoT(make(), make_student=make, alpha=0.0, student_steps=3)
    before = lot.students[0].lm_head.weight.clone()
    trainer = LoTTrainer(lot, **arguments(tmp_path / "lot"))
    trainer.train()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(lot.teacher.state_dict()[name], tensor)
    assert (lot.steps, lot.extra_batches) == (6, 12)
    assert not torch.equal(before, lot.students[0].lm_head.weight)
    evaluated = trainer.evaluate()["eval_loss"]
    rows = torch.stack([each["input_ids"] for each in examples()])
    with torch.no_grad():
        assert evaluated == pytest.approx(float(lot.teacher(rows, labels=rows).loss), rel=1e-4)


def test_alpha_changes_the_teacher(tmp_path: Path) -> None:
    from tradeoff.methods.language_models.lot.hf import LoTTrainer

    weights = []
    for alpha in (0.0, 1.0):
        torch.manual_seed(0)
        lot = LoT(make(), make_student=make, alpha=alpha)
        LoTTrainer(lot, **arguments(tmp_path / str(alpha))).train()
        weights.append(lot.teacher.lm_head.weight)
    assert not torch.equal(*weights)


SCRIPT = """
import sys
from safetensors.torch import save_file
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tradeoff.methods.language_models.lot import LoT, train
from tradeoff.nn.fit import FitConfig

torch.set_num_threads(1)
torch.manual_seed(0)
data = TensorDataset(torch.randn(64, 4), torch.arange(64) % 3)
lot = LoT(nn.Linear(4, 3), make_student=lambda: nn.Linear(4, 3), student_steps=3, alpha=1.0)
config = FitConfig(epochs=3, batch_size=16, learning_rate=0.1, clip_norm=0.3)
train(lot, data, None, config)
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
save_file(dict(lot.state_dict()), f"{sys.argv[1]}/{rank}.safetensors")
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]}
    for name, launcher in launchers.items():
        folder = tmp_path / name
        folder.mkdir()
        script = folder / "script.py"
        script.write_text(SCRIPT)
        command = [sys.executable, *launcher, str(script), str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one = load_file(tmp_path / "one" / "0.safetensors")
    for rank in range(2):
        two = load_file(tmp_path / "two" / f"{rank}.safetensors")
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
