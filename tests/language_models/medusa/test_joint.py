"""Medusa-2: adapters that start as nothing, rates, and what is learned."""

import pytest
import torch

from tradeoff.methods.language_models.medusa import (
    Adapters,
    Distilled,
    MedusaHeads,
    padded_texts,
    train_jointly,
)
from tradeoff.methods.language_models.medusa import joint as module
from tradeoff.nn.decoder import Decoder
from tradeoff.nn.fit import FitConfig

pytest.importorskip("peft")

ADAPTERS = Adapters(rank=4, alpha=8, dropout=0.0)


def test_padded_texts_have_no_prompt_and_no_padding_as_targets(data: Distilled) -> None:
    ids, targets = padded_texts(data).tensors
    for row, (prompt, reply) in enumerate(zip(data.prompts, data.replies, strict=True)):
        assert ids[row, : len(prompt) + len(reply)].tolist() == [*prompt, *reply]
        counted = targets[row] != -100
        assert counted.sum() == len(reply)
        assert targets[row, counted].tolist() == list(reply)


def test_divergence_is_zero_at_the_start(model: Decoder, data: Distilled) -> None:
    heads = MedusaHeads.from_backbone(model)
    module.add_adapters(model, Adapters(rank=4))
    model.eval()
    own, extra = module._Pair(model, heads, 0.8, self_distilled=True)(*padded_texts(data).tensors)
    assert own.item() == 0
    assert extra.item() > 0


def test_adapters_switched_off_give_the_original(model: Decoder, data: Distilled) -> None:
    ids = padded_texts(data).tensors[0]
    with torch.no_grad():
        before = model(ids)
    module.add_adapters(model, ADAPTERS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
        moved = model(ids)
        assert not torch.allclose(moved, before, atol=1e-2)
        assert torch.equal(module.original_logits(model, ids), before)
        assert torch.equal(model(ids), moved)
        module.merge_adapters(model)
        torch.testing.assert_close(model(ids), moved, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_heads_step_four_times_as_far(model: Decoder, data: Distilled) -> None:
    """The first step of Adam is the rate times the sign of the gradient."""
    heads = MedusaHeads.from_backbone(model)
    rate = 1e-3
    config = FitConfig(steps=1, batch_size=12, optimizer="adam", learning_rate=rate, schedule="constant")
    moved: dict[str, float] = {}

    def remember(pair: Decoder) -> None:
        for name, parameter in pair.named_parameters():
            if "lora_B" in name:  # zero before
                moved[name] = parameter.detach().abs().max().item()
        merge(pair)

    merge = module.merge_adapters
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "merge_adapters", remember)
        train_jointly(model, heads, padded_texts(data), config, adapters=ADAPTERS)
    step = max(float(p.detach().abs().max()) for p in heads.blocks.parameters())  # zero before
    assert max(moved.values()) == pytest.approx(rate, rel=1e-3)
    assert step == pytest.approx(4 * rate, rel=1e-3)


@pytest.mark.parametrize("self_distilled", [False, True])
def test_heads_learn_and_belong_to_the_new_backbone(
    model: Decoder, data: Distilled, self_distilled: bool
) -> None:
    heads = MedusaHeads.from_backbone(model, 2)
    texts = padded_texts(data)
    before = module._Pair(model, heads, 0.8, False)(*texts.tensors)
    config = FitConfig(steps=30, batch_size=12, optimizer="adamw", learning_rate=2e-3)
    train_jointly(
        model, heads, texts, config, adapters=ADAPTERS, self_distilled=self_distilled, head_weight=0.5
    )
    after = module._Pair(model, heads, 0.8, False)(*texts.tensors)
    assert after[1].item() < 0.85 * before[1].item()
    assert after[0].item() < before[0].item() + 0.3
    heads.check(model)
