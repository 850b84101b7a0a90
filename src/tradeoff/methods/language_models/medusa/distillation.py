"""Self-distillation: the backbone's own greedy continuations of prompts, with the hidden states behind them.

Heads guess what this backbone says, so they learn from its own text (Cai et al., 2024, section 2.3.2), and
the states are computed once, since the backbone does not change.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from tradeoff.nn.decoder import Decoder, KVCache, Padded

from .errors import InvalidSetting

IGNORED = -100
"""A label that does not count."""


@dataclass(frozen=True)
class Distilled:
    """Continuations, one behind another.

    Attributes:
        prompts: token ids.
        replies: token ids, with the end token where the backbone wrote one.
        hidden: states ``(all reply tokens, dim)``; the row of a reply's token r is the state that the
            backbone predicts that token from, so that head k predicts token r + k of the reply from it.
        groups: a label for every prompt, such as its kind.
    """

    prompts: tuple[tuple[int, ...], ...]
    replies: tuple[tuple[int, ...], ...]
    hidden: Float[Tensor, "tokens dim"]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_tokens(self) -> int:
        """Tokens of all replies."""
        return len(self.hidden)

    @cached_property
    def tokens(self) -> Int[Tensor, " tokens"]:
        """All replies."""
        return torch.tensor([token for reply in self.replies for token in reply])

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Row where each reply begins, and the number of all rows."""
        ends = [0]
        for reply in self.replies:
            ends.append(ends[-1] + len(reply))
        return tuple(ends)

    def labels(self, num_heads: int) -> Int[Tensor, "tokens heads"]:
        """What each head should guess from each row; :data:`IGNORED` behind the end of a reply."""
        found = torch.full((self.num_tokens, num_heads), IGNORED)
        for start, end in self.spans():
            for k in range(1, num_heads + 1):
                found[start : max(start, end - k), k - 1] = self.tokens[start + k : end]
        return found

    def spans(self) -> Iterator[tuple[int, int]]:
        """First and last row of every reply, the last excluded."""
        return zip(self.starts, self.starts[1:], strict=False)

    def select(self, chosen: Sequence[int]) -> "Distilled":
        """The listed continuations."""
        rows = [self.hidden[self.starts[i] : self.starts[i + 1]] for i in chosen]
        return Distilled(
            prompts=tuple(self.prompts[i] for i in chosen),
            replies=tuple(self.replies[i] for i in chosen),
            hidden=torch.cat(rows) if rows else self.hidden[:0],
            groups=tuple(self.groups[i] for i in chosen),
        )

    def group(self, name: str) -> "Distilled":
        """Continuations with this label."""
        return self.select([i for i, group in enumerate(self.groups) if group == name])

    def first_tokens(self, count: int) -> "Distilled":
        """As many continuations of all groups, by turns, as have ``count`` tokens together; all if fewer."""
        chosen, tokens = [], 0
        for i in self._by_turns():
            if tokens >= count:
                break
            chosen.append(i)
            tokens += len(self.replies[i])
        return self.select(chosen)

    def save(self, file: Path) -> None:
        """Write everything to one safetensors file."""
        names = sorted(set(self.groups))
        tensors = {
            "hidden": self.hidden,
            "replies": self.tokens,
            "prompts": torch.tensor([token for prompt in self.prompts for token in prompt]),
            "reply_lengths": torch.tensor([len(reply) for reply in self.replies]),
            "prompt_lengths": torch.tensor([len(prompt) for prompt in self.prompts]),
            "groups": torch.tensor([names.index(group) for group in self.groups]),
        }
        save_file(tensors, file, {"groups": "\n".join(names)})

    @classmethod
    def load(cls, file: Path) -> "Distilled":
        """Read what :meth:`save` wrote."""
        from safetensors import safe_open

        tensors = load_file(file)
        with safe_open(file, framework="pt") as opened:
            names = opened.metadata()["groups"].split("\n")
        split = {
            name: tuple(
                tuple(part.tolist()) for part in torch.split(tensors[name], tensors[lengths].tolist())
            )
            for name, lengths in (("prompts", "prompt_lengths"), ("replies", "reply_lengths"))
        }
        groups = tuple(names[i] for i in tensors["groups"].tolist())
        return cls(split["prompts"], split["replies"], tensors["hidden"], groups)

    def _by_turns(self) -> list[int]:
        turn: dict[str, int] = {}
        order = []
        for i, group in enumerate(self.groups):
            turn[group] = turn.get(group, -1) + 1
            order.append((turn[group], i))
        return [i for _, i in sorted(order)]


def _cut(flat: Tensor, lengths: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(part.tolist()) for part in torch.split(flat, lengths.tolist()))


@torch.no_grad()
def self_distill(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 96,
    *,
    end_tokens: Sequence[int] = (),
    groups: Sequence[str] | None = None,
    batch_size: int = 96,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Distilled:
    """Continue prompts greedily, many at once, and keep the hidden states.

    What a model writes behind its end token is no text of its own, so a reply ends with that token.

    Args:
        model: the backbone, in evaluation mode.
        prompts: token ids.
        max_new_tokens: length of a reply at most.
        end_tokens: ids that end a reply.
        groups: a label for every prompt.
        batch_size: prompts at once.
        advance: is told how many tokens were written.

    Raises:
        InvalidSetting: an empty prompt, one too long, no prompts, or a number out of range.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise InvalidSetting(f"{max_new_tokens} new tokens in batches of {batch_size}")
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise InvalidSetting("self-distillation needs prompts, and each needs a token")
    longest = max(map(len, prompts))
    if longest + max_new_tokens - 1 > model.config.max_len:
        raise InvalidSetting(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of "
            f"{model.config.max_len}"
        )
    if groups is not None and len(groups) != len(prompts):
        raise InvalidSetting(f"{len(groups)} groups for {len(prompts)} prompts")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding in a batch
    found: dict[int, tuple[list[int], Tensor]] = {}
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        replies = _continue(model, [prompts[i] for i in rows], max_new_tokens, frozenset(end_tokens), advance)
        found |= zip(rows, replies, strict=True)
    return Distilled(
        prompts=tuple(tuple(int(token) for token in prompt) for prompt in prompts),
        replies=tuple(tuple(found[i][0]) for i in range(len(prompts))),
        hidden=torch.cat([found[i][1] for i in range(len(prompts))]),
        groups=tuple(groups) if groups is not None else ("",) * len(prompts),
    )


def _continue(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end_tokens: frozenset[int],
    advance: Callable[[int], None],
) -> list[tuple[list[int], Tensor]]:
    """Tokens of each reply and the states they were predicted from, of one batch."""
    device = model.embedding.weight.device
    lengths = [len(prompt) for prompt in prompts]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    cache = model.new_cache(len(prompts), max(lengths) + max_new_tokens)
    hidden = model.hidden(ids.to(device), mask=Padded(tuple(lengths)), cache=cache)
    state = hidden[torch.arange(len(prompts)), torch.tensor(lengths) - 1]
    tokens: list[list[int]] = [[] for _ in prompts]
    states: list[list[Tensor]] = [[] for _ in prompts]
    live = list(range(len(prompts)))  # prompt of every row of the cache
    for step in range(max_new_tokens):
        chosen = model.logits(state).argmax(-1)
        rows = []
        for row, (i, token) in enumerate(zip(live, chosen.tolist(), strict=True)):
            if tokens[i] and tokens[i][-1] in end_tokens:
                continue
            tokens[i].append(token)
            states[i].append(state[row].cpu())
            if token not in end_tokens:
                rows.append(row)
        advance(len(rows))
        if not rows or step + 1 == max_new_tokens:
            break
        cache, live, chosen = _compact(cache, live, chosen, rows)
        state = model.hidden(chosen[:, None], cache=cache)[:, 0]
    return [(reply, torch.stack(rows)) for reply, rows in zip(tokens, states, strict=True)]


def _compact(
    cache: KVCache, live: list[int], chosen: Tensor, rows: list[int]
) -> tuple[KVCache, list[int], Tensor]:
    """Leave out finished rows where they are many, since the cache is copied for it."""
    if len(rows) > 0.8 * len(live):
        return cache, live, chosen
    return cache.batch_select(rows), [live[row] for row in rows], chosen[rows]
