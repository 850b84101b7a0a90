"""Latent attention: absorbed against expanded, and both against a loop over heads, latents and slots."""

from dataclasses import replace

import pytest
import torch

from tradeoff.nn.decoder import Decoder, DecoderConfig
from tradeoff.nn.decoder.attention import LatentAttention
from tradeoff.nn.decoder.layers import Rotary
from tradeoff.nn.decoder.masks import Causal, Visibility

VARIANTS = ("mla", "gla2", "gla4", "mlra2", "mlra4")
BASE = DecoderConfig(
    dim=24, heads=8, attention="mla", q_rank=12, kv_rank=16, nope_dim=6, rope_dim=4, init_std=0.3, max_len=256
)


def layer_and_input(config: DecoderConfig, length: int) -> tuple[LatentAttention, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    model = Decoder(replace(config, layers=1), generator).double()
    x = torch.randn(2, length, config.dim, generator=generator, dtype=torch.float64)
    return model.blocks[0].attention, x, torch.arange(length)[None]


def reference(config: DecoderConfig, layer: LatentAttention, x: torch.Tensor) -> torch.Tensor:
    """Outputs of all heads before the output projection, one row: (length, heads, value)."""
    length, heads = len(x), config.heads
    latents, shares = layer.latents, layer.shares
    rank, served = config.latent_rank // latents, config.heads // shares
    nope, rope = config.nope_dim, config.rope_dim

    def norm(y: torch.Tensor) -> torch.Tensor:
        return y * (y.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * (config.dim / y.shape[-1]) ** 0.5

    def turn(y: torch.Tensor, position: int) -> torch.Tensor:
        half = rope // 2
        angle = position / config.rope_base ** (2 * torch.arange(half, dtype=torch.float64) / rope)
        first, second = y[:half], y[half:]
        return torch.cat(
            (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin())
        )

    query = norm(x @ layer.query_down.weight.T) @ layer.query_up.weight.T
    query = query.view(length, heads, nope + rope)
    down = x @ layer.latent_down.weight.T
    out = torch.zeros(length, heads, config.value_width, dtype=x.dtype)
    for g in range(latents):
        latent = norm(down[:, g * rank : (g + 1) * rank])
        made = (latent @ layer.latent_up[g].T).view(length, served, nope + config.value_width)
        for index in range(served):
            head = (g % shares) * served + index
            for t in range(length):
                scores = torch.stack(
                    [
                        query[t, head, :nope] @ made[s, index, :nope]
                        + turn(query[t, head, nope:], t) @ turn(down[s, latents * rank :], s)
                        for s in range(t + 1)
                    ]
                )
                weights = (scores / (nope + rope) ** 0.5).softmax(0)
                out[t, head] += weights @ made[: t + 1, index, nope:]
    return out / (latents / shares) ** 0.5


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_equals_a_loop(variant: str) -> None:
    config = replace(BASE, attention=variant)
    layer, x, positions = layer_and_input(config, 7)
    expected = torch.stack([reference(config, layer, row) for row in x]).flatten(2)
    expected = expected @ layer.output.weight.T
    rotation = Rotary(config)(positions, x.dtype)
    out = layer(x, rotation, Visibility(Causal(), (0, 0), 7))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 17, 129])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_absorbed_equals_expanded(variant: str, length: int) -> None:
    config = replace(BASE, attention=variant)
    layer, x, positions = layer_and_input(config, length)
    rotation = Rotary(config)(positions, x.dtype)
    visible = Visibility(Causal(), (0, 0), length)
    arguments = (*layer.queries(x, rotation), *layer.compress(x, rotation), visible)
    torch.testing.assert_close(layer.absorbed(*arguments), layer.expanded(*arguments), rtol=0, atol=1e-10)


@torch.no_grad()
def test_latents_of_mlra4_may_change_places() -> None:
    config = replace(BASE, attention="mlra4")
    layer, x, positions = layer_and_input(config, 9)
    layer.latent_norm.weight.uniform_(0.5, 2.0)
    rotation, visible = Rotary(config)(positions, x.dtype), Visibility(Causal(), (0, 0), 9)
    before = layer(x, rotation, visible)
    order, rank = torch.tensor([2, 0, 3, 1]), layer.rank
    down = layer.latent_down.weight
    down[: 4 * rank] = down[: 4 * rank].view(4, rank, -1)[order].reshape(4 * rank, -1)
    layer.latent_norm.weight.copy_(layer.latent_norm.weight[order])
    layer.latent_up.copy_(layer.latent_up[order])
    torch.testing.assert_close(layer(x, rotation, visible), before, rtol=0, atol=1e-12)


@torch.no_grad()
def test_mlra4_with_values_of_one_quarter_is_half_of_gla4() -> None:
    config = replace(BASE, attention="mlra4")
    mlra, x, positions = layer_and_input(config, 9)
    gla, _, _ = layer_and_input(replace(BASE, attention="gla4"), 9)
    up = mlra.latent_up.view(4, 8, BASE.nope_dim + BASE.value_width, -1)
    for g in range(4):
        others = [head for head in range(8) if head // 2 != g]
        up[g, others, BASE.nope_dim :] = 0
        gla.latent_up[g] = up[g, 2 * g : 2 * g + 2].flatten(0, 1)
    for name in ("query_down", "query_up", "latent_down"):
        getattr(gla, name).weight.copy_(getattr(mlra, name).weight)
    rotation, visible = Rotary(config)(positions, x.dtype), Visibility(Causal(), (0, 0), 9)

    def before_output(layer: LatentAttention) -> torch.Tensor:
        parts = (*layer.queries(x, rotation), *layer.compress(x, rotation), visible)
        return layer.join(layer.expanded(*parts))

    torch.testing.assert_close(before_output(mlra), before_output(gla) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dim", "q_rank", "rank"), [(32, 8, 64), (256, 64, 64), (128, 96, 128), (64, 64, 32)]
)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_scales_keep_the_variance_of_a_full_width_input(
    variant: str, dim: int, q_rank: int, rank: int
) -> None:
    config = DecoderConfig(
        dim=dim, heads=16, attention=variant, q_rank=q_rank, kv_rank=rank, nope_dim=32, rope_dim=4
    )
    torch.manual_seed(0)
    layer = Decoder(replace(config, layers=1)).blocks[0].attention
    x = torch.randn(64, 8, dim)
    unit = dim * config.init_std**2
    query, _ = layer.queries(x, None)
    latents, _ = layer.compress(x, None)
    made = latents @ layer.latent_up.mT
    assert float(query.var() / unit) == pytest.approx(1, abs=0.05)
    for latent in made.unbind(1):
        assert float(latent.var() / unit) == pytest.approx(1, abs=0.05)
    values = made.unflatten(-1, (16 // layer.shares, -1))[..., 32:].transpose(2, 3).contiguous()
    joined = layer.join(values)
    assert float(joined.var() / values.var()) == pytest.approx(1, abs=0.1)


def test_cached_numbers_per_token() -> None:
    model = Decoder(replace(BASE, attention="mlra4", layers=1))
    cache = model.new_cache(max_len=4)
    assert [cache.bytes_per_token(tp) for tp in (1, 2, 4)] == [(16 + 4) * 4, (8 + 4) * 4, (4 + 4) * 4]
    widths = {
        name: replace(
            BASE, dim=3072, heads=24, layers=1, kv_rank=512, nope_dim=128, rope_dim=64, attention=name
        ).cache_entries()
        for name in VARIANTS
    }
    numbers = {
        name: sum((1 if heads is None else -(-heads // 4)) * width for heads, width in entries.values())
        for name, entries in widths.items()
    }
    assert numbers == {"mla": 576, "gla2": 320, "gla4": 192, "mlra2": 192, "mlra4": 192}
