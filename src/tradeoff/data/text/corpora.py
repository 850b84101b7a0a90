"""Where the texts come from: Debian packages, the interpreter's own library, and files of your own.

Debian's texts are read where their packages put them. FOLDOC and the Debian Reference are prose about
computing, the Jargon File is informal, and the King James Bible is homogeneous, which suits curves of
language models.
"""

import difflib
import gzip
import hashlib
import os
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow
import pyarrow.parquet

from tradeoff.core.errors import DataError, MissingTool
from tradeoff.core.tools import Limits, Tool, ToolStatus, run_tool

FOLDOC = Path("/usr/share/dictd/foldoc.dict.dz")
FOLDOC_FRONT_BYTES = 200_000
"""Left out: the dictionary's own history, and numbers and symbols."""
JARGON = Path("/usr/share/doc/jargon-text/jargon.txt.gz")
DEBIAN_REFERENCE = Path("/usr/share/debian-reference/debian-reference.en.txt.gz")
BIBLE = Tool("bible", "apt-get install bible-kjv bible-kjv-text")
VERSE_LABEL = re.compile(rb"^\w+:\d+ ", re.MULTILINE)
NO_LIBRARY = frozenset(("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"))
"""Folders of the standard library that are none of it, or are tests."""

MAX_BYTES = 1 << 32
"""Of a text: what a folder holds beyond it is left out, a single file that is longer is refused."""
SUFFIXES = (".parquet", ".txt", ".raw", ".tokens", ".txt.gz")
PARTS = {"train": ("train",), "validation": ("valid", "val")}
"""Words in the names of files that a source has split itself."""


@dataclass(frozen=True)
class Corpus:
    """A text in two parts.

    Attributes:
        name: that it was asked for by.
        train, validation: UTF-8 (what is not stays as it is); their order is that of the source.
        origin: file, folder or program that it came from.
    """

    name: str
    train: bytes
    validation: bytes
    origin: str

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal characters that name the content and the place of the split."""
        parts = (self.train, self.validation)
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def foldoc() -> tuple[bytes, str]:
    """The Free On-line Dictionary of Computing: 5.4 MB of English prose (GFDL)."""
    return _packaged(FOLDOC, "dict-foldoc")[FOLDOC_FRONT_BYTES:], str(FOLDOC)


def jargon() -> tuple[bytes, str]:
    """The Jargon File: 1.7 MB of informal English."""
    return _packaged(JARGON, "jargon-text"), str(JARGON)


def debian_reference() -> tuple[bytes, str]:
    """The Debian Reference: 0.9 MB of technical English (GPL)."""
    return _packaged(DEBIAN_REFERENCE, "debian-reference-en"), str(DEBIAN_REFERENCE)


def kjv() -> tuple[bytes, str]:
    """The King James Bible, a verse a line without its label: 4.1 MB (public domain)."""
    try:
        done = run_tool(BIBLE, ["-f", "gen1:1-rev22:21"], limits=Limits(output_bytes=16 * 2**20))
    except MissingTool as error:
        raise DataError(f"kjv: {error}") from error
    if done.status is not ToolStatus.OK or len(done.stdout) < 1 << 20:
        said = done.stderr.decode("utf-8", "replace").strip()[:200]
        raise DataError(
            f"kjv: {done.executable} gave {len(done.stdout):,} bytes ({said}); run: {BIBLE.package}"
        )
    return VERSE_LABEL.sub(b"", done.stdout), done.executable


def python_library() -> tuple[bytes, str]:
    """Sources and docstrings of the running interpreter's standard library, without tests: some 13 MB."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = sorted(_sources(folder))
    if not found:
        raise DataError(f"python: {folder} has no sources")
    return b"\n".join(path.read_bytes() for path in found), str(folder)


def _sources(folder: Path) -> Iterator[Path]:
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if name not in NO_LIBRARY]  # which keeps the walk out of them
        yield from (Path(place, name) for name in files if name.endswith(".py"))


CORPORA: dict[str, Callable[[], tuple[bytes, str]]] = {
    "foldoc": foldoc,
    "kjv": kjv,
    "jargon": jargon,
    "debian-reference": debian_reference,
    "python": python_library,
}
"""Name -> text and origin. ``python`` needs nothing installed."""

LOCAL = {
    "wikitext-103": "wiki.train.tokens and wiki.valid.tokens, or the Parquet files of wikitext-103-raw-v1",
    "ptb": "ptb.train.txt and ptb.valid.txt",
    "fineweb-edu": f"Parquet files with a column text, of which the first {MAX_BYTES >> 30} GiB are read",
}
"""Texts that must be on this machine, below ``TRADEOFF_DATA``: name -> the files that its folder holds."""


def read(name: str, fraction: float = 0.1, root: Path | None = None) -> Corpus:
    """A corpus by name, or by the path of a text file or of a folder of such.

    A folder or text file of that name below ``root`` goes before a package. Where names of files tell
    training from validation that split is kept; else the last ``fraction`` of the text is for validation.

    Raises:
        DataError: the name is unknown, the text absent or malformed, or ``fraction`` not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the part for validation must be between 0 and 1, not {fraction}")
    local = _find(name, root)
    if local is not None:
        return _read_local(name, local, fraction)
    if name in CORPORA:
        text, origin = CORPORA[name]()
        return _split(name, text, fraction, origin)
    if name in LOCAL:
        where = "TRADEOFF_DATA is not set" if root is None else f"it is not in {root}"
        raise DataError(
            f"{name} must be on this machine ({where}): set TRADEOFF_DATA to a folder that holds {name}/ "
            f"with {LOCAL[name]}"
        )
    nearest = difflib.get_close_matches(name, [*CORPORA, *LOCAL], n=1, cutoff=0.0)[0]
    raise DataError(
        f"no text, file or folder {name!r}; did you mean {nearest!r}? There are: {', '.join(CORPORA)}; below "
        f"TRADEOFF_DATA: {', '.join(LOCAL)}; and any text file"
    )


def _find(name: str, root: Path | None) -> Path | None:
    known = name in CORPORA or name in LOCAL
    places = [root / name, root / f"{name}.txt"] if root is not None else []
    return next((path for path in (*places, *([] if known else [Path(name)])) if path.exists()), None)


def _read_local(name: str, path: Path, fraction: float) -> Corpus:
    files = sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES)) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no text ({', '.join(SUFFIXES)})")
    parts = {part: [p for p in files if _named(p, words)] for part, words in PARTS.items()}
    if all(parts.values()):
        train, validation = (_join(parts[part]) for part in ("train", "validation"))
        return _checked(Corpus(name, train, validation, str(path)))
    return _split(name, _join(parts["train"] or files), fraction, str(path))


def _named(path: Path, words: Sequence[str]) -> bool:
    return any(re.search(rf"(^|[._-]){word}", path.name) for word in words)


def _join(files: Sequence[Path]) -> bytes:
    kept, size = [], 0
    for piece in (piece for path in files for piece in _pieces(path)):
        kept.append(piece)
        size += len(piece)
        if size >= MAX_BYTES:
            break
    return b"".join(kept)[:MAX_BYTES]


def _pieces(path: Path) -> Iterator[bytes]:
    """A file's text, piece by piece."""
    if path.suffix == ".gz":
        yield _unpacked(path)
    elif path.suffix == ".parquet":
        yield from _rows(path)
    else:
        try:
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise DataError(f"{path} has {size:,} bytes; a text may have {MAX_BYTES:,}")
            yield path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _rows(path: Path) -> Iterator[bytes]:
    """The column ``text`` of a Parquet file, each row ended by a line's end."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["text"]):
                rows = (str(row) for row in batch.column("text").to_pylist() if row)
                yield "".join(row if row.endswith("\n") else f"{row}\n" for row in rows).encode()
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} is no Parquet file with a column text: {error}") from error


def _packaged(path: Path, package: str) -> bytes:
    if not path.is_file():
        raise DataError(f"no text at {path}; run: apt-get install {package}")
    return _unpacked(path)


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if len(text) > MAX_BYTES:
        raise DataError(f"{path} unpacks to more than {MAX_BYTES:,} bytes")
    return text


def _split(name: str, text: bytes, fraction: float, origin: str) -> Corpus:
    """The last ``fraction`` of the text, from the start of a character on, is for validation."""
    cut = len(text) - round(len(text) * fraction)
    while 0 < cut < len(text) and text[cut] & 0xC0 == 0x80:  # inside a character of UTF-8
        cut -= 1
    return _checked(Corpus(name, text[:cut], text[cut:], origin))


def _checked(corpus: Corpus) -> Corpus:
    if not corpus.train or not corpus.validation:
        sizes = f"{len(corpus.train):,} and {len(corpus.validation):,}"
        raise DataError(f"{corpus.origin} is too short: {sizes} bytes to train and to validate on")
    return corpus
