"""A classification of short texts that any machine with apt can make: Debian's sections of packages.

A text is the one-line description of a package, its class the section that people gave it. One package of
each source counts, since those of one source repeat each other.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from tradeoff.core.errors import DataError, MissingExtra
from tradeoff.data.downloads import cache_folder, under_lock
from tradeoff.data.graphs.debian import available_packages, read_stanzas, section_of

SECTIONS = ("admin", "fonts", "games", "net", "science", "sound")
PER_SECTION = {"train": 270, "validation": 50, "test": 100}
"""Texts of each section; the smallest has some 430 sources in Debian 12."""
MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and the numbers of their classes.

    Attributes:
        texts: one line each.
        labels: as many, below ``len(class_names)``.
        class_names: of the labels.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def digest(self) -> str:
        """16 hexadecimal characters that name texts and labels."""
        return _digest("\n".join(map(str, zip(self.labels, self.texts, strict=True))).encode())

    def tokens(self, tokenizer: Path, length: int) -> TensorDataset:
        """Token ids int64 ``(texts, length)``, padded and cut, with labels int64 ``(texts,)``.

        Args:
            tokenizer: a ``tokenizer.json``.

        Raises:
            DataError: it is none.
            MissingExtra: ``tokenizers`` is not installed.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtra("tokenizers", "llm") from error
        if not tokenizer.is_file():
            raise DataError(f"{tokenizer} is no file; give the folder of a model with its tokenizer.json")
        loaded = Tokenizer.from_file(str(tokenizer))
        loaded.enable_truncation(length)
        loaded.enable_padding(length=length)
        ids = [encoding.ids for encoding in loaded.encode_batch(list(self.texts))]
        return TensorDataset(torch.tensor(ids), torch.tensor(self.labels))


def load(root: Path | str | None = None) -> dict[str, LabelledTexts]:
    """Texts to train, validate and test, as many of each section; no source is in two of them.

    The newest ``root/debian/sections-*.tsv.gz`` that :func:`build` wrote, else the newest in the user's
    cache, else built there from apt's lists. Runs are comparable as long as they read one file.

    Args:
        root: where local copies lie; the environment variable ``TRADEOFF_DATA`` when not given.

    Raises:
        DataError: there is no such file and apt has no lists here, or a file is damaged.
    """
    root = root or os.environ.get("TRADEOFF_DATA") or None
    found = sorted(Path(root, "debian").glob("sections-*.tsv.gz")) if root is not None else []
    found = found or sorted(cache_folder("debian").glob("sections-*.tsv.gz"))
    path = found[-1] if found else build(cache_folder("debian"))
    try:
        with gzip.open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if len(content) > MAX_BYTES or _digest(content) != path.name.removesuffix(".tsv.gz").rpartition("-")[2]:
        raise DataError(f"{path} is damaged: its content is not that of its name; delete it to build it anew")
    return split(line.split("\t", 1) for line in content.decode().splitlines())


def build(folder: Path) -> Path:
    """Write the sections and descriptions of apt's lists as ``sections-CHECKSUM.tsv.gz`` into ``folder``.

    Raises:
        DataError: apt is not here or has no lists.
    """
    lines = [f"{section}\t{text}\n" for section, text in parse(available_packages())]
    content = "".join(lines).encode()
    with under_lock(folder / "sections.tsv.gz") as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0))
        return temporary.rename(folder / f"sections-{_digest(content)}.tsv.gz")


def parse(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Section and description of one package of each source, that of the source's name or else the first.

    Args:
        lines: of a list of packages in Debian's control format.
    """
    chosen: dict[str, tuple[bool, str, str, str]] = {}
    for stanza in read_stanzas(lines):
        name, text = stanza.get("Package", ""), " ".join(stanza.get("Description", "").split())
        if not name or not text or "Section" not in stanza or section_of(stanza) not in SECTIONS:
            continue
        source = stanza.get("Source", name).split(" ")[0]
        candidate = (name != source, name, section_of(stanza), text)
        chosen[source] = min(chosen.get(source, candidate), candidate)
    return [chosen[source][2:] for source in sorted(chosen)]


def split(pairs: Iterable[Sequence[str]]) -> dict[str, LabelledTexts]:
    """The same parts of the same list on every call, shuffled.

    Raises:
        DataError: a section has too few texts.
    """
    by_section: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for section, text in pairs:
        by_section[section].append(text)
    generator = np.random.Generator(np.random.PCG64(0))
    parts: dict[str, list[tuple[str, int]]] = {part: [] for part in PER_SECTION}
    for label, (section, texts) in enumerate(by_section.items()):
        needed = sum(PER_SECTION.values())
        if len(texts) < needed:
            raise DataError(f"the section {section} has {len(texts)} sources; {needed} are needed")
        order = iter(generator.permutation(len(texts)))
        for part, count in PER_SECTION.items():
            parts[part] += [(texts[next(order)], label) for _ in range(count)]
    result = {}
    for part, rows in parts.items():
        shuffled = [rows[i] for i in generator.permutation(len(rows))]
        result[part] = LabelledTexts(
            tuple(text for text, _ in shuffled), tuple(label for _, label in shuffled), SECTIONS
        )
    return result


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
