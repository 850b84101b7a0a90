"""Configurations of equal size, and what a rank of each reads."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core.errors import UnknownName
from tradeoff.methods.language_models.mlra import (
    VARIANTS,
    convert,
    parameter_count,
    published,
    rank_traffic,
    with_attention,
    with_parameters,
)
from tradeoff.methods.language_models.mlra.study import MLRA
from tradeoff.methods.language_models.mlra.variants import PUBLISHED, document, read
from tradeoff.nn.decoder import CheckpointError, Decoder, DecoderConfig, InvalidConfig, MoEConfig
from tradeoff.nn.decoder.loading.files import write_folder

SMALL = DecoderConfig(dim=64, layers=2, heads=8, hidden=168)


def test_the_published_models_have_equal_parameters() -> None:
    """Within 0.1 % of each other: 2.717 to 2.719 billion without embeddings, 2.87 with."""
    counts = {name: parameter_count(published(name)) for name in VARIANTS}
    embeddings = 50304 * 3072
    assert all(2.717e9 < count - embeddings < 2.719e9 for count in counts.values())
    assert max(counts.values()) / min(counts.values()) < 1.001
    assert counts["mha"] == 2_872_593_408


def test_widths_of_the_published_models_follow_from_mha() -> None:
    """From the first row and the rules, every other row: widths and ranks."""
    for name, row in PUBLISHED.items():
        config = convert(published("mha"), name)
        assert (config.hidden, config.q_rank) == (row.hidden, row.q_rank), name
        assert replace(config, head_dim=None) == published(name)


def test_numbers_per_token_of_the_published_models() -> None:
    numbers = {
        name: [rank_traffic(published(name), ranks).numbers for ranks in (1, 2, 4)] for name in VARIANTS
    }
    assert numbers == {
        "mha": [6144, 3072, 1536],
        "mqa": [256, 256, 256],
        "gqa": [1536, 768, 512],
        "mla": [576, 576, 576],
        "gla2": [576, 320, 320],
        "gla4": [576, 320, 192],
        "mlra2": [576, 320, 192],
        "mlra4": [576, 320, 192],
    }


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(VARIANTS),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([4, 8]),
    st.integers(0, 3),
    st.booleans(),
)
def test_counts_equal_those_of_a_model(name: str, heads: int, width: int, layers: int, tied: bool) -> None:
    config = DecoderConfig(
        vocab=32, dim=32, layers=layers, heads=heads * 4, head_dim=width, hidden=24, tie_embeddings=tied
    )
    config = with_attention(config, name)
    model = Decoder(config)
    assert parameter_count(config) == sum(parameter.numel() for parameter in model.parameters())
    cache = model.new_cache(max_len=1)
    assert rank_traffic(config, 1).numbers * 4 * layers == cache.bytes_per_token()
    for ranks in (2, 4):
        assert rank_traffic(config, ranks).numbers * 4 * layers == cache.bytes_per_token(ranks)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(VARIANTS), st.sampled_from(VARIANTS), st.sampled_from([1, 4, 8]))
def test_converted_models_are_as_near_as_the_multiple_allows(old: str, new: str, multiple: int) -> None:
    before = with_attention(SMALL, old)
    after = convert(before, new, multiple=multiple)
    step = 3 * SMALL.dim * SMALL.layers * multiple
    assert abs(parameter_count(after) - parameter_count(before)) <= step / 2
    assert after.hidden is not None
    assert after.hidden % multiple == 0
    kept = ("vocab", "dim", "layers", "heads", "max_len")
    assert all(getattr(after, name) == getattr(before, name) for name in kept)


def test_experts_make_up_for_attention() -> None:
    mixture = replace(SMALL, layers=3, ffn=MoEConfig(8, active=2, hidden=48, shared=1, dense_layers=1))
    assert parameter_count(mixture) == sum(p.numel() for p in Decoder(mixture).parameters())
    converted = convert(mixture, "gqa", multiple=1)
    assert isinstance(converted.ffn, MoEConfig)
    assert converted.hidden == mixture.hidden
    assert abs(parameter_count(converted) - parameter_count(mixture)) <= 2 * 9 * 3 * SMALL.dim / 2


def test_a_converted_model_runs() -> None:
    ids = torch.zeros(1, 3, dtype=torch.int64)
    for name in VARIANTS:
        assert Decoder(convert(SMALL, name))(ids).shape == (1, 3, 256)


def test_checkpoints_are_read(tmp_path) -> None:
    given = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 160,
        "vocab_size": 100,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
    }
    write_folder(tmp_path, given, {})
    config = read(str(tmp_path))
    assert read(str(tmp_path / "config.json")) == config
    assert (config.attention, config.kv_heads) == ("gqa", 4)
    made = document(convert(config, "mlra4"))
    assert made["norm_eps"] == 1e-5
    assert DecoderConfig(**made) == convert(config, "mlra4")
    write_folder(tmp_path, {**given, "model_type": "gpt2"}, {})
    with pytest.raises(CheckpointError, match="gpt2"):
        read(str(tmp_path))


def test_bad_input() -> None:
    with pytest.raises(UnknownName, match="mlra3"):
        convert(SMALL, "mlra3")
    with pytest.raises(UnknownName, match="no-such-folder"):
        read("no-such-folder")
    with pytest.raises(InvalidConfig, match="kv_rank 30 is no multiple of 4 latents"):
        convert(SMALL, "mlra4", kv_rank=30)
    with pytest.raises(InvalidConfig, match="multiple of 2 heads, not 3"):
        convert(replace(SMALL, dim=96, heads=3), "mlra2")
    with pytest.raises(InvalidConfig, match="it cannot come down to 1,000"):
        with_parameters(SMALL, 1000)
    with pytest.raises(InvalidConfig, match="3 ranks; tensor parallelism is of 1, 2, 4, 8"):
        rank_traffic(SMALL, 3)
    with pytest.raises(InvalidConfig, match="6 heads do not divide among 4 ranks"):
        rank_traffic(replace(SMALL, dim=96, heads=6), 4)


def test_the_card_s_example_runs() -> None:
    page = (MLRA().folder / "card.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code, names)
    assert names["logits"].shape == (1, 1, 256)
    assert rank_traffic(names["config"], 4).numbers == 48
