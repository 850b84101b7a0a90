"""A byte model of two layers learns English in some seconds, and does not see what it predicts."""

from dataclasses import replace

import pytest
import torch

from tradeoff.core.errors import DataError
from tradeoff.data import text
from tradeoff.nn.decoder import Decoder, DecoderConfig, MoEConfig

STEPS, BATCH, LENGTH, RATE = 300, 16, 64, 3e-3
CONFIG = DecoderConfig(dim=64, layers=2, heads=4, max_len=LENGTH)


def corpus() -> tuple[torch.Tensor, torch.Tensor]:
    try:
        parts = [text.load("foldoc", split) for split in ("train", "validation")]
    except DataError:
        parts = [text.load("python", split) for split in ("train", "validation")]
    generator = torch.Generator().manual_seed(0)
    found = []
    for part in parts:
        windows = part.windows(LENGTH)
        rows = torch.randperm(len(windows), generator=generator)[: STEPS * BATCH]
        inputs, targets = windows[rows]
        found.append(torch.cat((inputs, targets[:, -1:]), 1))
    return found[0], found[1][:512]


@pytest.mark.parametrize(
    ("config", "steps", "bound"),
    [
        (CONFIG, STEPS, 2.75),
        (replace(CONFIG, ffn=MoEConfig(8, active=2, hidden=48, router="dtop_p", balance=1e-2)), 200, 2.9),
    ],
    ids=["dense", "moe"],
)
def test_bytes_are_learned(config: DecoderConfig, steps: int, bound: float) -> None:
    train, validation = corpus()
    model = Decoder(config, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        batch = train[step * BATCH : (step + 1) * BATCH]
        optimizer.zero_grad()
        (model.loss(batch) + model.aux_loss()).backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        loss = model.eval().loss(validation).item()
    assert 0.8 < loss < bound
