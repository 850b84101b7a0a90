"""The Triton kernels beside the reference, under Triton's interpreter; run by test_triton.py in its own
process."""

import os
from dataclasses import replace

import pytest
import torch

from tradeoff.methods.language_models.mlra.triton_decode import TritonKernels, absorbed_decode
from tradeoff.nn.decoder import TORCH, Decoder, DecoderConfig, InvalidInput, Padded

assert os.environ.get("TRITON_INTERPRET") == "1", "the interpreter is chosen before triton is imported"


def draw(batch: int, groups: int, rows: int, slots: int, rank: int, rope: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(slots)
    shapes = (
        (batch, groups, rows, rank),
        (batch, groups, slots, rank),
        (batch, groups, rows, rope),
        (batch, slots, rope),
    )
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def reference(query, latents, rope_query, rope_key, lengths, scale):  # type: ignore[no-untyped-def]
    out = torch.zeros_like(query)
    for row, length in enumerate(lengths):
        scores = query[row] @ latents[row, :, :length].mT + rope_query[row] @ rope_key[row, :length].mT
        out[row] = (scores * scale).softmax(-1) @ latents[row, :, :length]
    return out


@pytest.mark.parametrize("splits", [1, 3, 8])
@pytest.mark.parametrize("slots", [1, 64, 213])
def test_equals_the_reference(splits: int, slots: int) -> None:
    """Splits beyond the last block are empty; lengths are no multiples of the block."""
    given = draw(2, 2, 3, slots, 24, 6)
    lengths = torch.tensor([slots, max(1, slots // 2)])
    out = absorbed_decode(*given, lengths, 0.3, splits)
    torch.testing.assert_close(out, reference(*given, lengths, 0.3), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rows", "rank", "rope"), [(1, 16, 2), (8, 128, 64), (17, 40, 10)])
def test_shapes_and_views_of_a_cache(rows: int, rank: int, rope: int) -> None:
    query, _, rope_query, _ = draw(1, 2, rows, 150, rank, rope)
    latents = torch.randn(3, 1, 2, 400, rank, dtype=torch.float64)[1].narrow(-2, 0, 150)
    rope_key = torch.randn(3, 1, 400, rope, dtype=torch.float64)[1].narrow(-2, 0, 150)
    out = absorbed_decode(query, latents, rope_query, rope_key, torch.tensor([150]), 0.1, 3)
    expected = reference(query, latents, rope_query, rope_key, [150], 0.1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float16, 4e-3)])
def test_types(dtype: torch.dtype, atol: float) -> None:
    """The interpreter multiplies bfloat16 as if it were integers: that type is compiled only."""
    given = [tensor.to(dtype) for tensor in draw(1, 1, 4, 130, 32, 8)]
    out = absorbed_decode(*given, torch.tensor([130]), 0.2, 3)
    assert out.dtype == dtype
    expected = reference(*(tensor.double() for tensor in given), [130], 0.2)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)


def test_large_scores_do_not_overflow() -> None:
    query, latents, rope_query, rope_key = draw(1, 1, 2, 100, 16, 4)
    out = absorbed_decode(1e3 * query, latents, rope_query, rope_key, torch.tensor([100]), 1.0, 3)
    expected = reference(1e3 * query, latents, rope_query, rope_key, [100], 1.0)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["mla", "gla2", "mlra2", "mlra4"])
def test_a_decoder_decodes_with_it(variant: str) -> None:
    config = DecoderConfig(dim=32, layers=1, heads=4, attention="mla", kv_rank=16, nope_dim=8, rope_dim=4)
    model = Decoder(
        replace(config, attention=variant, init_std=0.3), torch.Generator().manual_seed(0)
    ).double()
    ids = torch.randint(256, (2, 7), generator=torch.Generator().manual_seed(1))
    expected = model(ids)
    model.kernels = TritonKernels()
    cache = model.new_cache(batch=2, max_len=16)
    model(ids[:, :5], mask=Padded((5, 3)), cache=cache)
    rows = model(ids[:, 5:6], cache=cache)
    torch.testing.assert_close(rows[0], expected[0, 5:6], rtol=0, atol=1e-10)
    shorter = torch.cat((ids[1:, :3], ids[1:, 5:6]), 1)
    model.kernels = TORCH
    torch.testing.assert_close(rows[1], model(shorter)[0, 3:], rtol=0, atol=1e-10)


def test_bad_input() -> None:
    given = draw(2, 1, 2, 10, 16, 4)
    with pytest.raises(InvalidInput, match=r"lengths \[3, 11\] for a batch of 2 with 10 slots"):
        absorbed_decode(*given, torch.tensor([3, 11]), 1.0)
    with pytest.raises(InvalidInput, match="0 parts"):
        absorbed_decode(*given, torch.tensor([3, 4]), 1.0, 0)
    strided = given[1].transpose(-1, -2).contiguous().transpose(-1, -2)
    with pytest.raises(InvalidInput, match="the last must be 1"):
        absorbed_decode(given[0], strided, *given[2:], torch.tensor([3, 4]), 1.0)
