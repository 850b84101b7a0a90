"""Texts by name: ``load("foldoc")``, ``load("python", "validation")``, ``load("path/to/file.txt")``."""

import os
from pathlib import Path

from tradeoff.core.errors import DataError
from tradeoff.data.text.corpora import CORPORA, LOCAL, Corpus, read
from tradeoff.data.text.tokens import BytePairs, Bytes, Tokenizer, Tokens, Windows, tokenize

__all__ = [
    "CORPORA",
    "LOCAL",
    "BytePairs",
    "Bytes",
    "Corpus",
    "Tokenizer",
    "Tokens",
    "Windows",
    "load",
    "read",
]


def load(
    name: str,
    split: str = "train",
    fraction: float = 0.1,
    tokenizer: str = "bytes",
    root: Path | str | None = None,
) -> Tokens:
    """One part of a text as tokens: the last ``fraction`` is for validation, what comes before for training.

        >>> tokens = load("python", "validation")
        >>> inputs, targets = tokens.windows(64)[:16]
        >>> inputs.shape, bool((inputs[:, 1:] == targets[:, :-1]).all())
        (torch.Size([16, 64]), True)

    Args:
        name: a key of :data:`CORPORA` or :data:`LOCAL`, or the path of a text file or of a folder of such.
        split: ``train`` or ``validation``.
        fraction: of the text that is for validation, where its source has not split it itself.
        tokenizer: ``bytes``, or ``bpe:4096`` for as many byte pairs, learned on the training part alone.
        root: where local copies lie; the environment variable ``TRADEOFF_DATA`` when not given.

    Raises:
        DataError: the name is unknown, or the text is absent or malformed; the message says what to do.
        MissingExtra: byte pairs are asked for and ``tokenizers`` is not installed.
    """
    if split not in ("train", "validation"):
        raise DataError(f"a text has the splits train and validation, not {split!r}")
    root = root or os.environ.get("TRADEOFF_DATA") or None
    return tokenize(read(name, fraction, Path(root) if root is not None else None), split, tokenizer)
