"""Heads: their start, their files, the layouts of other programs, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tradeoff.methods.language_models.medusa import (
    HeadsMismatch,
    InvalidSetting,
    MedusaHeads,
    export_heads,
    frequent_tokens,
    import_heads,
)
from tradeoff.nn.decoder import Decoder, DecoderConfig

SHAPES = [
    {},
    {"share_lm_head": False, "num_blocks": 2},
    {"num_heads": 2, "draft_tokens": torch.tensor([3, 1, 17, 40, 8])},
    {"share_lm_head": False, "draft_tokens": torch.tensor([3, 1, 17, 40, 8])},
]


def shaken(heads: MedusaHeads) -> MedusaHeads:
    """Heads with random weights."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return heads


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_every_head_starts_as_the_output_layer_bit_for_bit(model: Decoder, share: bool, tied: bool) -> None:
    config = dataclasses.replace(model.config, tie_embeddings=tied, logits_multiplier=0.7)
    backbone = Decoder(config, torch.Generator().manual_seed(0))
    heads = MedusaHeads.from_backbone(backbone, 3, 2, share_lm_head=share)
    hidden = torch.randn(7, config.dim)
    expected = backbone.logits(hidden)
    for k in (1, 2, 3):
        assert torch.equal(heads.head(k, hidden), expected)
    torch.testing.assert_close(heads(hidden), expected.expand(3, -1, -1))


@torch.no_grad()
def test_logits_are_the_papers_formula(model: Decoder) -> None:
    heads = shaken(MedusaHeads.from_backbone(model, 3, 2, share_lm_head=False))
    hidden = torch.randn(4, 32)
    for k in range(3):
        h = hidden
        for block in heads.blocks[k]:
            z = h @ block.linear.weight.T + block.linear.bias
            h = h + z * torch.sigmoid(z)
        torch.testing.assert_close(heads(hidden)[k], h @ heads.table[k].T)
    first, second = heads.blocks[0]
    assert first is not second
    assert not torch.equal(first.linear.weight, second.linear.weight)


@torch.no_grad()
def test_guesses_are_ids_of_the_vocabulary(model: Decoder) -> None:
    tokens = torch.tensor([3, 1, 17, 40, 8])
    heads = shaken(MedusaHeads.from_backbone(model, 2, draft_tokens=tokens))
    hidden = torch.randn(6, 32)
    for guessed, logits in zip(heads.guesses(hidden, [2, 3]), heads(hidden), strict=True):
        assert torch.equal(guessed, tokens[logits.topk(guessed.shape[-1]).indices])
    assert [found.shape[-1] for found in heads.guesses(hidden, [2])] == [2]
    assert heads.draft_ids(torch.tensor([17, 5, -100]), outside=-7).tolist() == [2, -7, -100]


def test_frequent_tokens_are_filled_up_with_the_lowest_ids() -> None:
    assert frequent_tokens(torch.tensor([9, 9, 4, 7, 7, 7]), 20, 2).tolist() == [7, 9]
    assert frequent_tokens(torch.tensor([9, 9, 4]), 20, 4).tolist() == [0, 1, 4, 9]
    with pytest.raises(InvalidSetting, match="21 of 20"):
        frequent_tokens(torch.tensor([9]), 20, 21)


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_and_loaded_heads_are_bit_identical(model: Decoder, tmp_path: Path, shape: dict) -> None:
    heads = shaken(MedusaHeads.from_backbone(model, **shape))
    heads.save(tmp_path)
    again = MedusaHeads.load(tmp_path, model)
    assert again.config == heads.config
    hidden = torch.randn(3, 32)
    assert torch.equal(again(hidden), heads(hidden))
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("layout", ["vllm", "public"])
@pytest.mark.parametrize("shape", SHAPES)
def test_exported_and_imported_heads_are_bit_identical(
    model: Decoder, tmp_path: Path, layout: str, shape: dict
) -> None:
    heads = shaken(MedusaHeads.from_backbone(model, **shape))
    with pytest.raises(InvalidSetting, match="layouts are vllm, public, not 'onnx'"):
        export_heads(heads, tmp_path, "onnx")  # type: ignore[arg-type]
    if layout == "public" and "draft_tokens" in shape:
        with pytest.raises(InvalidSetting, match="5 tokens"):
            export_heads(heads, tmp_path, "public")
        return
    export_heads(heads, tmp_path, layout)
    again = import_heads(tmp_path, model)
    for ours, theirs in zip(heads.blocks.parameters(), again.blocks.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    hidden = torch.randn(3, 32)
    assert torch.equal(again.head(1, hidden), heads.head(1, hidden))
    assert torch.equal(again.head(2, hidden), heads.head(2, hidden))


def test_names_are_those_that_other_programs_read(model: Decoder, tmp_path: Path) -> None:
    heads = MedusaHeads.from_backbone(model, 2, 2, draft_tokens=torch.tensor([3, 1]))
    export_heads(heads, tmp_path / "vllm", "vllm")
    linears = {f"blocks.{k}.layers.{b}.{x}" for k in (0, 1) for b in (0, 1) for x in ("weight", "bias")}
    assert set(load_file(tmp_path / "vllm/model.safetensors")) == {
        *linears,
        "lm_heads.0.weight",
        "token_map",
    }
    config = json.loads((tmp_path / "vllm/config.json").read_text())
    assert (config["model_type"], config["num_heads"], config["truncated_vocab_size"]) == ("medusa", 2, 2)
    export_heads(MedusaHeads.from_backbone(model, 2), tmp_path / "public", "public")
    names = {f"{k}.{x}" for k in (0, 1) for x in ("0.linear.weight", "0.linear.bias", "1.weight")}
    assert set(load_file(tmp_path / "public/medusa_lm_head.safetensors")) == names


def test_heads_of_another_backbone_are_refused(model: Decoder, tmp_path: Path) -> None:
    MedusaHeads.from_backbone(model).save(tmp_path)
    other = Decoder(model.config, torch.Generator().manual_seed(1))
    with pytest.raises(HeadsMismatch, match="trained for the backbone"):
        MedusaHeads.load(tmp_path, other)
    for change, message in (({"dim": 64}, "dim 32; the backbone has 64"), ({"vocab": 65}, "vocab 64.*65")):
        changed = Decoder(dataclasses.replace(model.config, **change))
        with pytest.raises(HeadsMismatch, match=message):
            MedusaHeads.load(tmp_path, changed)
        with pytest.raises(HeadsMismatch, match=message):
            MedusaHeads.from_backbone(model).check(changed)


def test_damaged_files_are_refused(model: Decoder, tmp_path: Path) -> None:
    with pytest.raises(HeadsMismatch, match=r"config\.json"):
        MedusaHeads.load(tmp_path, model)
    MedusaHeads.from_backbone(model).save(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["blocks.1.0.linear.bias"]
    save_file(tensors, file)
    with pytest.raises(HeadsMismatch, match=r"blocks\.1\.0\.linear\.bias"):
        MedusaHeads.load(tmp_path, model)
    file.write_bytes(b"cut")
    with pytest.raises(HeadsMismatch, match="cannot read"):
        MedusaHeads.load(tmp_path, model)


@pytest.mark.parametrize("number", [10**9, 0, "two"])
def test_numbers_of_a_strangers_file_are_not_believed(model: Decoder, tmp_path: Path, number: object) -> None:
    """A billion heads would be made before their tensors are missed."""
    heads = MedusaHeads.from_backbone(model, 2)
    heads.save(tmp_path / "own")
    export_heads(heads, tmp_path / "vllm")
    for folder in ("own", "vllm"):
        file = tmp_path / folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "num_heads": number}))
    with pytest.raises((HeadsMismatch, InvalidSetting), match=f"{number}"):
        MedusaHeads.load(tmp_path / "own", model)
    with pytest.raises(HeadsMismatch, match=f"{number} heads of 1 blocks in a file of"):
        import_heads(tmp_path / "vllm", model)


def test_foreign_files_that_do_not_fit_are_refused(model: Decoder, tmp_path: Path) -> None:
    export_heads(MedusaHeads.from_backbone(model, 2), tmp_path, "vllm")
    wider = Decoder(dataclasses.replace(model.config, dim=64))
    with pytest.raises(HeadsMismatch, match="hidden_size 32; the backbone has 64"):
        import_heads(tmp_path, wider)
    with pytest.raises(HeadsMismatch, match="not the output matrix"):
        import_heads(tmp_path, Decoder(model.config, torch.Generator().manual_seed(1)))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_heads": 3}))
    with pytest.raises(HeadsMismatch, match=r"blocks\.2"):
        import_heads(tmp_path, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"draft_tokens": torch.tensor([1, 1])}, "different ids"),
        ({"draft_tokens": torch.tensor([64])}, "below 64"),
    ],
)
def test_settings_out_of_range_are_refused(model: Decoder, changes: dict, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        MedusaHeads.from_backbone(model, **changes)


def test_half_precision_backbone() -> None:
    config = DecoderConfig(vocab=64, dim=32, layers=1)
    heads = MedusaHeads.from_backbone(Decoder(config).to(torch.bfloat16))
    assert heads(torch.randn(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
