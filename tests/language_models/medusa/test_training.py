"""Self-distilled text, the loss, and that heads learn while the backbone stays as it is."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tradeoff.methods.language_models.medusa import (
    Distilled,
    InvalidSetting,
    MedusaHeads,
    guess_ranks,
    head_accuracy,
    head_training,
    medusa_loss,
    self_distill,
    train_heads,
)
from tradeoff.methods.language_models.medusa.distillation import IGNORED
from tradeoff.methods.language_models.medusa.training import head_labels
from tradeoff.nn.decoder import Decoder
from tradeoff.nn.fit import FitConfig


@torch.no_grad()
def greedy(model: Decoder, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The slow, obvious continuation: everything anew for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_continuations_are_greedy_with_the_states_behind_them(model: Decoder, data: Distilled) -> None:
    for prompt, reply, (start, end) in zip(data.prompts, data.replies, data.spans(), strict=True):
        assert reply == greedy(model, prompt, 24)
        with torch.no_grad():
            expected = model.hidden(torch.tensor([prompt + reply[:-1]]))[0, len(prompt) - 1 :]
        torch.testing.assert_close(data.hidden[start:end], expected, atol=1e-4, rtol=1e-4)


def test_replies_end_with_the_end_token(model: Decoder, data: Distilled) -> None:
    end = data.replies[0][5]
    cut = self_distill(model, data.prompts, 24, end_tokens=(end,), batch_size=5)
    for whole, reply in zip(data.replies, cut.replies, strict=True):
        expected = whole[: whole.index(end) + 1] if end in whole else whole
        assert reply == expected
    assert len({len(reply) for reply in cut.replies}) > 1
    assert cut.num_tokens == sum(map(len, cut.replies)) == len(cut.tokens)


def test_labels_are_tokens_of_the_same_reply(data: Distilled) -> None:
    labels = data.labels(3)
    for reply, (start, _) in zip(data.replies, data.spans(), strict=True):
        for r in range(len(reply)):
            for k in (1, 2, 3):
                expected = reply[r + k] if r + k < len(reply) else IGNORED
                assert labels[start + r, k - 1] == expected


def test_distilled_text_is_kept_in_a_file(data: Distilled, tmp_path: Path) -> None:
    data.save(tmp_path / "text.safetensors")
    again = Distilled.load(tmp_path / "text.safetensors")
    assert (again.prompts, again.replies, again.groups) == (data.prompts, data.replies, data.groups)
    assert torch.equal(again.hidden, data.hidden)
    part = data.group("b")
    assert part.replies == data.replies[1::3]
    assert torch.equal(part.hidden[:24], data.hidden[24:48])
    assert data.first_tokens(70).groups == ("a", "b", "c")


def test_loss_by_hand() -> None:
    """Two texts of 6 and 4 tokens with prompts of 2 and 1; three tokens, two heads."""
    texts = torch.tensor([[0, 1, 2, 0, 1, 2], [1, 2, 2, 0, 0, 0]])
    targets = texts.clone()
    targets[0, :2] = targets[1, :1] = targets[1, 4:] = IGNORED
    logits = torch.randn(2, 2, 6, 3, dtype=torch.float64)
    total = 0.0
    for k in (1, 2):
        losses = []
        for row, (prompt, length) in enumerate(((2, 6), (1, 4))):
            for t in range(6):
                target = t + k + 1
                if prompt <= target < length:
                    scores = logits[k - 1, row, t]
                    label = int(texts[row, target])
                    losses.append(math.log(sum(math.exp(s) for s in scores)) - float(scores[label]))
        total += 0.8**k * sum(losses) / len(losses)
    found = medusa_loss(logits, head_labels(targets, 2))
    assert float(found) == pytest.approx(total, rel=1e-12)


def test_loss_without_any_label_is_zero() -> None:
    assert float(medusa_loss(torch.randn(1, 4, 3), torch.full((4, 1), IGNORED))) == 0


@pytest.mark.parametrize("share", [True, False])
def test_heads_learn_and_the_backbone_does_not_change(model: Decoder, data: Distilled, share: bool) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heads = MedusaHeads.from_backbone(model, 2, share_lm_head=share)
    untrained = head_accuracy(guess_ranks(heads, data), data)
    train_heads(heads, data, head_training(epochs=80, batch_size=64, learning_rate=2e-2))
    trained = head_accuracy(guess_ranks(heads, data), data)
    assert trained[0] > untrained[0] + 0.3
    assert trained[1] > untrained[1] + 0.2
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_shifted_labels_teach_nothing(
    model: Decoder, data: Distilled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deliberately broken training: labels one place too late."""
    right = Distilled.labels
    monkeypatch.setattr(Distilled, "labels", lambda self, heads: right(self, heads).roll(-1, 0))
    heads = MedusaHeads.from_backbone(model, 1)
    train_heads(heads, data, head_training(epochs=80, batch_size=64, learning_rate=2e-2))
    monkeypatch.undo()
    broken = head_accuracy(guess_ranks(heads, data), data)
    heads = MedusaHeads.from_backbone(model, 1)
    train_heads(heads, data, head_training(epochs=80, batch_size=64, learning_rate=2e-2))
    assert head_accuracy(guess_ranks(heads, data), data)[0] > broken[0] + 0.3


def test_labels_outside_the_draft_vocabulary_are_misses(model: Decoder, data: Distilled) -> None:
    common = data.tokens.bincount().topk(4).indices
    heads = MedusaHeads.from_backbone(model, 2, draft_tokens=common)
    train_heads(heads, data, FitConfig(steps=3, batch_size=16, learning_rate=1e-3))
    ranks, labels = guess_ranks(heads, data, top=10), data.labels(2)
    assert ((ranks >= 0) == torch.isin(labels, common)).all()
    never = torch.tensor([sorted(set(range(64)) - set(data.tokens.tolist()))[0]])
    heads = MedusaHeads.from_backbone(model, 1, draft_tokens=never)
    with pytest.raises(InvalidSetting, match="none of"):
        train_heads(heads, data)


@torch.no_grad()
def test_ranks_against_a_sort(model: Decoder, data: Distilled) -> None:
    heads = MedusaHeads.from_backbone(model, 2)
    ranks, labels = guess_ranks(heads, data, top=7, batch_size=10), data.labels(2)
    order = heads(data.hidden).argsort(-1, descending=True)
    for k in range(2):
        for row in range(0, data.num_tokens, 11):
            label = int(labels[row, k])
            place = order[k, row].tolist().index(label) if label >= 0 else 99
            assert ranks[row, k] == (place if place < 7 else -1)


def test_bad_prompts_are_refused(model: Decoder) -> None:
    with pytest.raises(InvalidSetting, match="needs a token"):
        self_distill(model, [[1], []])
    with pytest.raises(InvalidSetting, match="needs prompts"):
        self_distill(model, [])
    with pytest.raises(InvalidSetting, match="0 new tokens"):
        self_distill(model, [[1]], 0)
    with pytest.raises(InvalidSetting, match="250 tokens and 8 new ones exceed the model's context of 256"):
        self_distill(model, [[1], [1] * 250], 8)
    with pytest.raises(InvalidSetting, match="1 groups for 2 prompts"):
        self_distill(model, [[1], [2]], 4, groups=["a"])


def test_cross_entropy_is_that_of_torch(model: Decoder) -> None:
    logits, labels = torch.randn(1, 9, 5), torch.randint(5, (9, 1))
    expected = 0.8 * functional.cross_entropy(logits[0], labels[:, 0])
    torch.testing.assert_close(medusa_loss(logits, labels), expected)
