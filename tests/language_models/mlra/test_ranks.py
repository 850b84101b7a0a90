"""Processes that share a model, and what becomes of them when one dies."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from tradeoff.methods.language_models.mlra import RankFailed, convert, run_ranks
from tradeoff.methods.language_models.mlra.checkpoint import load, save
from tradeoff.nn.decoder import (
    CacheOverflow,
    CheckpointError,
    Decoder,
    DecoderConfig,
    InvalidConfig,
    MoEConfig,
    RopeScaling,
)

SMALL = DecoderConfig(vocab=16, dim=16, layers=2, heads=8, hidden=48)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_ranks_agree_and_add_once_a_layer(count: int) -> None:
    """(r / P + d_r) numbers in a rank's cache; one sum of D numbers a token and attention layer."""
    names = ("mla", "mlra2", "mlra4")
    configs = {
        name: convert(replace(SMALL, dim=32), name, multiple=4, kv_rank=16, rope_dim=4) for name in names
    }
    reports = run_ranks(configs, count, dtype=torch.float64)
    for name, report in reports.items():
        assert report.ranks == count
        assert report.output_error < 1e-12
        assert report.gradient_error < 1e-12
        assert report.attention_bytes == 32 * 8
        shared = 1 if name == "mla" else count
        assert report.cache_bytes == (16 // shared + 4) * 8


@pytest.mark.slow
def test_a_dead_rank_is_named() -> None:
    """A rank is killed as soon as it is there; ranks are children of the server of forks."""
    known = set(psutil.Process().children(recursive=True))

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            servers = psutil.Process().children()
            born = {each for server in servers for each in server.children()} - known
            if born:
                born.pop().kill()
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RankFailed, match=r"rank \d of 2 died: SIGKILL"):
        run_ranks({"mlra4": convert(SMALL, "mlra4", multiple=4)}, 2)
    killer.join()


def test_bad_degrees() -> None:
    with pytest.raises(InvalidConfig, match="3 ranks"):
        run_ranks({"mlra4": convert(SMALL, "mlra4")}, 3)


def test_context_beyond_the_cache() -> None:
    model = Decoder(convert(SMALL, "mlra4"))
    cache = model.new_cache(max_len=4)
    model(torch.zeros(1, 4, dtype=torch.int64), cache=cache)
    with pytest.raises(CacheOverflow, match="1 tokens behind 4 exceed the cache's 4 slots"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    assert cache.length == 4


def test_checkpoints(tmp_path: Path) -> None:
    model = Decoder(convert(SMALL, "mlra4"))
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.config == model.config
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(again(ids), model.eval()(ids))


@pytest.mark.parametrize("change", [{"ffn": MoEConfig(4)}, {"rope_scaling": RopeScaling("llama3", 8.0)}])
def test_nested_configurations_are_read_back(change: dict, tmp_path: Path) -> None:
    model = Decoder(replace(convert(SMALL, "mlra4"), **change))
    save(model, tmp_path)
    assert load(tmp_path).config == model.config
    stored = json.loads((tmp_path / "config.json").read_text())
    stored[next(iter(change))]["size"] = 3
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"config\.json: .*'size'"):
        load(tmp_path)


def test_a_checkpoint_of_another_variant_lists_its_tensors(tmp_path: Path) -> None:
    save(Decoder(convert(SMALL, "mla")), tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, convert(SMALL, "gqa"))
    message = str(caught.value)
    assert "is no checkpoint of gqa" in message
    assert "missing blocks.0.attention.key.weight, blocks.0.attention.query.weight" in message
    assert "unexpected blocks.0.attention.latent_down.weight" in message
    with pytest.raises(CheckpointError, match=r"misshapen .*attention\.latent_up"):
        load(tmp_path, convert(SMALL, "mlra4"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="model_type"):
        load(tmp_path)
