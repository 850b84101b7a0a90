"""One rank's attention over a cache, and the products that make it quick."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.methods.language_models.mlra import Candidate, DecodeKernels, rank_traffic, time_decoding
from tradeoff.methods.language_models.mlra.decode import attention_shape, decode_step, parse_contexts
from tradeoff.methods.language_models.mlra.variants import VARIANTS, with_attention
from tradeoff.nn.decoder import TORCH, Causal, Decoder, DecoderConfig, InvalidConfig, Padded, Tree, Visibility

MASKS = st.sampled_from(["one", "chunk", "tree", "padded", "rows"])


def visibility(mask: str, batch: int, cached: int) -> Visibility:
    if mask == "one":
        return Visibility(Causal(), (cached,) * batch, 1)
    if mask == "rows":
        return Visibility(Causal(), tuple(range(cached, cached + batch)), 1)
    if mask == "padded":
        return Visibility(Padded((3, *(1,) * (batch - 1))), (cached,) * batch, 3)
    return Visibility(Tree.from_parents([-1, 0, 0]) if mask == "tree" else Causal(), (cached,) * batch, 3)


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 40))
def test_products_equal_the_reference(mask: str, batch: int, groups: int, heads: int, cached: int) -> None:
    visible = visibility(mask, batch, cached)
    generator = torch.Generator().manual_seed(cached)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, rope_query = draw(batch, groups, heads, visible.new, 6), draw(batch, groups, heads, visible.new, 4)
    latents = draw(batch, groups, visible.slots + 5, 6)[:, :, : visible.slots]
    rope_key = draw(batch, visible.slots + 5, 4)[:, : visible.slots]
    arguments = (query, latents, rope_query, rope_key, visible, 0.3)
    ours, expected = (kernels.latent_attention(*arguments) for kernels in (DecodeKernels(), TORCH))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["mla", "gla2", "mlra2", "mlra4"])
def test_a_decoder_decodes_with_them(variant: str) -> None:
    config = with_attention(DecoderConfig(dim=32, heads=4, hidden=40, init_std=0.3), variant)
    model = Decoder(config, torch.Generator().manual_seed(0)).double()
    ids = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = model(ids)
    model.kernels = DecodeKernels()
    cache = model.new_cache(batch=2)
    steps = [model(part, cache=cache) for part in ids.split([4, 1, 1, 3], 1)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_reads_what_is_counted(variant: str, ranks: int) -> None:
    """The tensors that a step hands to the kernels have as many numbers as the count says."""
    seen = []

    class Watch(DecodeKernels):
        def attention(self, query, keys, values, visible, scale):  # type: ignore[no-untyped-def]
            seen.append((keys.numel() + values.numel(), scale, query.shape[1] * 2 * keys.shape[-1]))
            return super().attention(query, keys, values, visible, scale)

        def latent_attention(self, query, latents, rope_query, rope_key, visible, scale):  # type: ignore[no-untyped-def]
            rows = query.shape[1] * query.shape[2]
            seen.append(
                (latents.numel() + rope_key.numel(), scale, rows * (2 * query.shape[-1] + rope_key.shape[-1]))
            )
            return super().latent_attention(query, latents, rope_query, rope_key, visible, scale)

    config = with_attention(DecoderConfig(dim=128, heads=16, layers=1), variant)
    out = decode_step(config, ranks, 7, kernels=Watch())()
    own = rank_traffic(config, ranks)
    ((numbers, scale, products),) = seen
    assert (numbers, products) == (7 * own.numbers, own.multiply_adds)
    assert scale == config.score_scale
    assert out.shape[-1] == own.value_width


def test_scale_is_that_of_the_query_before_absorption() -> None:
    """Not that of a latent's width: 1 / sqrt(128 + 64) for the published model."""
    for variant in ("mla", "mlra4"):
        shape = with_attention(attention_shape(), variant)
        assert shape.score_scale == pytest.approx(192**-0.5)
        assert (shape.latent_rank, shape.rope_dim, shape.nope_dim) == (512, 64, 128)


def test_caches_take_turns() -> None:
    """So that none stays in the processor's memory; all have other numbers."""
    step = decode_step(with_attention(attention_shape(), "mla"), 4, 32)
    outputs = [step() for _ in range(17)]
    assert all(not torch.equal(outputs[0], other) for other in outputs[1:16])
    assert torch.equal(outputs[0], outputs[16])


def test_times_have_counts_and_references() -> None:
    shape = attention_shape(heads=8, head_dim=16, kv_rank=32)
    rows = [Candidate("mlra4", 4), Candidate("mla", 1)]
    times = time_decoding(rows, 64, shape=shape, rounds=2)
    assert list(times) == rows
    ours, theirs = times.values()
    assert (ours.bytes, theirs.bytes) == (64 * (8 + 8) * 4, 64 * (32 + 8) * 4)
    assert theirs.ratio == theirs.data_parallel_ratio == (1.0, 1.0, 1.0)
    assert min(ours.seconds, ours.limit, ours.bandwidth, *ours.ratio) > 0


def test_contexts() -> None:
    assert parse_contexts(["16k", "4096", "1K"]) == [16384, 4096, 1024]
    for wrong in ("", "k", "0", "-4", "1.5k", "16m"):
        with pytest.raises(InvalidConfig, match="is no number of tokens"):
            parse_contexts([wrong])


def test_bad_input() -> None:
    with pytest.raises(InvalidConfig, match="5 ranks"):
        decode_step(attention_shape(), 5, 16)
