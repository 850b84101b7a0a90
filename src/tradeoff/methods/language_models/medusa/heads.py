"""The extra heads of a language model: each guesses the token one place further ahead.

Of the hidden state h at position t, behind the final norm, the backbone's own output layer predicts token t+1
and head k predicts token t+k+1 (Cai et al., 2024, section 2.1)::

    logits_k = W2_k (h + SiLU(W1_k h + b1_k)),   k = 1 .. K
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.core.errors import StoreError
from tradeoff.core.files import read_json, write_json
from tradeoff.nn.decoder import TORCH, Decoder, Kernels

from .errors import HeadsMismatch, InvalidSetting

FORMAT = "tradeoff-medusa-1"


@dataclass(frozen=True)
class HeadsConfig:
    """What the heads consist of and which backbone they belong to.

    Attributes:
        dim: width of the hidden state.
        vocab: tokens of the backbone.
        num_heads: K.
        num_blocks: residual blocks of a head, each with its own weights.
        share_lm_head: all heads read the backbone's output matrix, which stays frozen; else each trains a
            copy of it. A copy costs more than it gains where the vocabulary is large and the model small.
        draft_vocab: tokens that heads can guess; None for all.
        backbone: digest of the backbone's weights; see :func:`backbone_digest`.
    """

    dim: int
    vocab: int
    num_heads: int = 3
    num_blocks: int = 1
    share_lm_head: bool = True
    draft_vocab: int | None = None
    backbone: str = ""

    def __post_init__(self) -> None:
        for name in ("dim", "vocab", "num_heads", "num_blocks"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InvalidSetting(f"{name} is {getattr(self, name)!r}; it must be at least 1")
        if self.draft_vocab is not None and not 1 <= self.draft_vocab <= self.vocab:
            raise InvalidSetting(f"a draft vocabulary of {self.draft_vocab} of {self.vocab} tokens")


class ResidualBlock(nn.Module):
    """``h + SiLU(W h + b)``; zero at the start, so that it changes nothing then."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """The same shape."""
        return h + functional.silu(self.linear(h))


class MedusaHeads(nn.Module):
    """K heads over a table of output rows; make them by :meth:`from_backbone`.

    Args:
        config: what they consist of.
        table: output rows ``(n, dim)`` that all heads share, or ``(K, n, dim)`` if each has its own.
        token_map: vocabulary ids ``(n,)`` of the rows; None if row i is token i.
        multiplier: of the logits, the backbone's.

    Attributes:
        table: see above.
        token_map: see above.
        kernels: what multiplies by the table; assign the decoder's to decode with it.
    """

    table: Tensor
    token_map: Tensor | None

    def __init__(
        self, config: HeadsConfig, table: Tensor, token_map: Tensor | None, multiplier: float = 1.0
    ) -> None:
        super().__init__()
        self.config = config
        self.multiplier = multiplier
        self.kernels: Kernels = TORCH
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(config.dim) for _ in range(config.num_blocks)))
            for _ in range(config.num_heads)
        )
        self.blocks.to(table)
        if config.share_lm_head:
            self.register_buffer("table", table.detach(), persistent=False)
        else:
            self.table = nn.Parameter(table.detach().clone())
        self.register_buffer("token_map", token_map)

    @classmethod
    def from_backbone(
        cls,
        model: Decoder,
        num_heads: int = 3,
        num_blocks: int = 1,
        share_lm_head: bool = True,
        draft_tokens: Int[Tensor, " n"] | None = None,
    ) -> Self:
        """Heads that all start as the backbone's own output layer.

        Args:
            model: the backbone.
            num_heads: K, guesses ahead.
            num_blocks: residual blocks of a head.
            share_lm_head: see :class:`HeadsConfig`.
            draft_tokens: ids that heads can guess, such as :func:`frequent_tokens` gives; None for all.

        Raises:
            InvalidSetting: a number is out of range, or a draft token is outside the vocabulary or repeated.
        """
        vocab, dim = model.config.vocab, model.config.dim
        weight = output_weight(model)
        token_map = None
        if draft_tokens is not None:
            token_map = draft_tokens.to(weight.device, torch.int64)
            ids = token_map.tolist()
            if len(set(ids)) < len(ids) or not all(0 <= token < vocab for token in ids):
                raise InvalidSetting(f"draft tokens are different ids below {vocab}")
            weight = weight[token_map]
        config = HeadsConfig(
            dim=dim,
            vocab=vocab,
            num_heads=num_heads,
            num_blocks=num_blocks,
            share_lm_head=share_lm_head,
            draft_vocab=None if token_map is None else len(token_map),
            backbone=backbone_digest(model),
        )
        table = weight if share_lm_head else weight.expand(num_heads, *weight.shape)
        return cls(config, table, token_map, model.config.logits_multiplier)

    @property
    def num_heads(self) -> int:
        """K."""
        return self.config.num_heads

    def forward(self, hidden: Float[Tensor, "*rows dim"]) -> Float[Tensor, "heads *rows drafts"]:
        """Logits of all heads, over the draft vocabulary."""
        features = torch.stack([block(hidden) for block in self.blocks])
        if self.config.share_lm_head:  # one pass over the table for all heads
            return self._scaled(self.kernels.linear(features, self.table, None))
        return self._scaled(
            torch.stack([self.kernels.linear(x, w, None) for x, w in zip(features, self.table, strict=True)])
        )

    def head(self, k: int, hidden: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows drafts"]:
        """Logits of head k = 1 .. K alone."""
        table = self.table if self.config.share_lm_head else self.table[k - 1]
        return self._scaled(self.kernels.linear(self.blocks[k - 1](hidden), table, None))

    def guesses(
        self, hidden: Float[Tensor, "*rows dim"], top: int | list[int]
    ) -> list[Int[Tensor, "*rows top"]]:
        """The ``top`` most likely tokens of each head, best first, as ids of the vocabulary.

        Args:
            hidden: states behind the final norm.
            top: how many, for all heads alike or one number a head; heads behind the last are not evaluated.
        """
        counts = [top] * self.num_heads if isinstance(top, int) else top
        if self.config.share_lm_head:
            used = torch.stack([block(hidden) for block in self.blocks[: len(counts)]])
            logits = list(self.kernels.linear(used, self.table, None))
        else:
            logits = [self.head(k + 1, hidden) for k in range(len(counts))]
        found = [x.topk(count, -1).indices for x, count in zip(logits, counts, strict=True)]
        return found if self.token_map is None else [self.token_map[ids] for ids in found]

    def draft_ids(self, tokens: Int[Tensor, "*any"], outside: int) -> Int[Tensor, "*any"]:
        """Rows of the table that belong to tokens; ``outside`` for tokens that heads cannot guess.

        Negative entries, which mark labels that do not count, stay as they are.
        """
        if self.token_map is None:
            return tokens
        rows = torch.full((self.config.vocab,), outside, device=tokens.device)
        rows[self.token_map.to(tokens.device)] = torch.arange(len(self.token_map), device=tokens.device)
        return torch.where(tokens < 0, tokens, rows[tokens.clamp(min=0)])

    @property
    def trained_parameters(self) -> int:
        """Numbers that training changes."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def check(self, model: Decoder) -> None:
        """Check that the heads belong to this backbone.

        Raises:
            HeadsMismatch: another width, vocabulary or digest of the weights.
        """
        check_backbone(self.config, model)

    def save(self, folder: Path | str) -> None:
        """Write ``config.json`` and ``model.safetensors``; what is shared with the backbone is left out."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", {"format": FORMAT, **dataclasses.asdict(self.config)})
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path | str, model: Decoder) -> Self:
        """Read what :meth:`save` wrote, for the backbone that the heads were trained with.

        Raises:
            HeadsMismatch: the files are absent or damaged, or the backbone is another.
        """
        folder = Path(folder)
        given = read_header(folder)
        if given.pop("format", None) != FORMAT:
            raise HeadsMismatch(f"{folder} holds no heads of this format; see import_heads for others")
        try:
            config = HeadsConfig(**given)
        except TypeError as error:
            raise HeadsMismatch(f"{folder / 'config.json'}: {error}") from None
        check_backbone(config, model)
        tensors = read_tensors(folder / "model.safetensors")
        check_count(config.num_heads, config.num_blocks, tensors)
        heads = cls.from_backbone(
            model, config.num_heads, config.num_blocks, config.share_lm_head, tensors.get("token_map")
        )
        try:
            heads.load_state_dict(tensors)
        except RuntimeError as error:
            raise HeadsMismatch(f"{folder}: {error}") from None
        return heads

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits if self.multiplier == 1 else self.multiplier * logits


def output_weight(model: Decoder) -> Float[Tensor, "vocab dim"]:
    """The output matrix of a decoder, which may be its embedding."""
    return model.embedding.weight if model.head is None else model.head.weight


def backbone_digest(model: Decoder) -> str:
    """16 hexadecimal characters that name the weights of a decoder."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def check_backbone(config: HeadsConfig, model: Decoder) -> None:
    """See :meth:`MedusaHeads.check`."""
    for name in ("dim", "vocab"):
        ours, theirs = getattr(config, name), getattr(model.config, name)
        if ours != theirs:
            raise HeadsMismatch(f"the heads are for {name} {ours}; the backbone has {theirs}")
    digest = backbone_digest(model)
    if config.backbone != digest:
        raise HeadsMismatch(
            f"the heads were trained for the backbone {config.backbone}, this is {digest}; train them anew"
        )


def frequent_tokens(tokens: Int[Tensor, " any"], vocab: int, count: int) -> Int[Tensor, " count"]:
    """The ``count`` most frequent of these tokens, filled up with the lowest other ids; in order of ids."""
    if not 1 <= count <= vocab:
        raise InvalidSetting(f"a draft vocabulary of {count} of {vocab} tokens")
    frequency = torch.bincount(tokens.flatten(), minlength=vocab)
    return frequency.argsort(descending=True, stable=True)[:count].sort().values


def read_header(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder of heads.

    Raises:
        HeadsMismatch: it is absent or no JSON object.
    """
    try:
        given = read_json(folder / "config.json")
    except StoreError as error:
        raise HeadsMismatch(str(error)) from None
    if not isinstance(given, dict):
        raise HeadsMismatch(f"{folder / 'config.json'} is no JSON object")
    return given


def check_count(num_heads: Any, num_blocks: Any, tensors: dict[str, Tensor]) -> None:
    """Check that a file may hold so many heads, before they are made: its numbers are a stranger's.

    Raises:
        HeadsMismatch: there are not as many tensors as blocks.
    """
    numbers = (num_heads, num_blocks)
    if not all(isinstance(number, int) and 1 <= number <= len(tensors) for number in numbers):
        raise HeadsMismatch(f"{num_heads} heads of {num_blocks} blocks in a file of {len(tensors)} tensors")
    if num_heads * num_blocks > len(tensors):
        raise HeadsMismatch(f"{num_heads} heads of {num_blocks} blocks in a file of {len(tensors)} tensors")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        HeadsMismatch: it is absent or damaged.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise HeadsMismatch(f"cannot read {file}: {error}") from None
