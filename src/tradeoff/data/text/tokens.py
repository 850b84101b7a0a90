"""Texts as numbers: bytes as they are, or byte pairs learned on the training part."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from tradeoff.core.context import cached_folder
from tradeoff.core.errors import DataError, MissingExtra
from tradeoff.data.downloads import cache_folder
from tradeoff.data.text.corpora import Corpus

PIECE_BYTES = 1 << 20
"""A text is given to the tokenizer in pieces of about this size, cut at ends of lines."""
SMALLEST_BPE, LARGEST_BPE = 257, 1 << 20


class Tokenizer(Protocol):
    """Text to numbers below ``vocabulary`` and back."""

    @property
    def vocabulary(self) -> int: ...

    def encode(self, text: bytes) -> Int[np.ndarray, " tokens"]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Bytes:
    """A token is a byte."""

    vocabulary = 256

    def encode(self, text: bytes) -> Int[np.ndarray, " tokens"]:
        return np.frombuffer(text, np.uint8).copy()

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


class BytePairs:
    """Byte-pair encoding (Sennrich et al., 2016) of bytes (Radford et al., 2019), by ``tokenizers``.

    Args:
        file: a ``tokenizer.json``.
    """

    def __init__(self, file: Path) -> None:
        self._tokenizer = _tokenizers().Tokenizer.from_file(str(file))
        self.vocabulary: int = self._tokenizer.get_vocab_size()

    def encode(self, text: bytes) -> Int[np.ndarray, " tokens"]:
        encoded = [self._tokenizer.encode(piece).ids for piece in _pieces(text)]
        return np.concatenate([np.zeros(0, np.int32), *(np.array(ids, np.int32) for ids in encoded)])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))


@dataclass(frozen=True)
class Tokens:
    """One part of a corpus.

    Attributes:
        ids: uint8 or int32 ``(tokens,)``; :class:`Windows` gives int64.
        tokenizer: that made them.
        num_bytes: of the text, to turn nats per token into bits per byte.
        digest: of the corpus, both parts: equal for equal text and split.
    """

    ids: Int[Tensor, " tokens"]
    tokenizer: Tokenizer
    num_bytes: int
    digest: str

    @property
    def vocabulary(self) -> int:
        """Ids are below this."""
        return self.tokenizer.vocabulary

    def __len__(self) -> int:
        return len(self.ids)

    def windows(self, length: int, stride: int | None = None) -> "Windows":
        """Inputs and targets of ``length`` tokens, ``stride`` (default ``length``) apart.

        Raises:
            DataError: the text is shorter than one window.
        """
        return Windows(self, length, stride or length)


class Windows:
    """Windows of a text with their successors, by index: a split for :func:`tradeoff.nn.fit.fit`.

    ``windows[torch.tensor([0, 7])]`` gives two int64 tensors ``(2, length)``: tokens, and what follows each.
    """

    def __init__(self, tokens: Tokens, length: int, stride: int) -> None:
        if length < 1 or stride < 1:
            raise DataError(f"windows need a length and a stride of 1 or more, not {length} and {stride}")
        if len(tokens) <= length:
            raise DataError(f"a text of {len(tokens):,} tokens has no window of {length:,} and a successor")
        self.tokens, self.length, self.stride = tokens, length, stride
        self._offsets = torch.arange(length + 1)

    def __len__(self) -> int:
        return (len(self.tokens) - self.length - 1) // self.stride + 1

    def __getitem__(
        self, index: "Tensor | slice | Sequence[int]"
    ) -> tuple[Int64[Tensor, "windows length"], Int64[Tensor, "windows length"]]:
        positions = torch.arange(len(self))[index] if isinstance(index, slice) else torch.as_tensor(index)
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(self):
            raise IndexError(f"positions must be from 0 to {len(self) - 1}")
        taken = self.tokens.ids[positions[:, None] * self.stride + self._offsets].long()
        return taken[:, :-1], taken[:, 1:]


def tokenize(corpus: Corpus, part: str, tokenizer: str) -> Tokens:
    """One part of a corpus, with a tokenizer that was made from the training part alone.

    Args:
        part: ``train`` or ``validation``.
        tokenizer: ``bytes``, or ``bpe:N`` for N byte pairs; these and the ids are kept in the user's cache.

    Raises:
        DataError: there is no such tokenizer.
        MissingExtra: ``tokenizers`` is not installed.
    """
    text: bytes = getattr(corpus, part)
    made: Tokenizer
    if tokenizer == "bytes":
        made = Bytes()
        ids = made.encode(text)
    else:
        made, ids = _byte_pairs(corpus, part, tokenizer)
    return Tokens(torch.from_numpy(ids), made, len(text), corpus.digest)


def _byte_pairs(corpus: Corpus, part: str, tokenizer: str) -> tuple[BytePairs, np.ndarray]:
    kind, _, count = tokenizer.partition(":")
    if kind != "bpe" or not count.isdigit() or not SMALLEST_BPE <= int(count[:9]) <= LARGEST_BPE:
        raise DataError(
            f"no tokenizer {tokenizer!r}; there are bytes and bpe:N, with N from {SMALLEST_BPE} to "
            f"{LARGEST_BPE:,}"
        )
    key = {"tokenizers": _tokenizers().__version__, "vocabulary": int(count), "corpus": corpus.digest}
    root = cache_folder("text")
    trained = cached_folder(root, key, lambda folder: _train(corpus.train, int(count), folder))
    made = BytePairs(trained / "tokenizer.json")

    def encode(folder: Path) -> None:
        np.save(folder / "ids.npy", made.encode(getattr(corpus, part)))

    return made, np.load(cached_folder(root, {**key, "part": part}, encode) / "ids.npy", allow_pickle=False)


def _train(text: bytes, vocabulary: int, folder: Path) -> None:
    tokenizers: Any = _tokenizers()
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(_pieces(text), trainer)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(made.to_str())))


def _pieces(text: bytes) -> Iterator[str]:
    """The text in pieces that end where a line does, so that no character or word is cut."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start + PIECE_BYTES - 1) + 1 or len(text)
        yield text[start:end].decode("utf-8", "replace")
        start = end


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra("tokenizers", "llm") from error
    return tokenizers
