"""A tiny backbone with text of its own."""

import pytest
import torch

from tradeoff.methods.language_models.medusa import Distilled, self_distill
from tradeoff.nn.decoder import Decoder, DecoderConfig

CONFIG = DecoderConfig(
    vocab=64, dim=32, layers=2, heads=4, attention="gqa", kv_heads=2, max_len=256, init_std=0.4
)


@pytest.fixture
def model() -> Decoder:
    """Two layers over 64 tokens."""
    return Decoder(CONFIG, torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def data(model: Decoder) -> Distilled:
    """Twelve continuations of 24 tokens."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(64, (3 + i % 4,), generator=generator).tolist() for i in range(12)]
    return self_distill(model, prompts, 24, groups=["a", "b", "c"] * 4, batch_size=5)
