"""The dependency graph of Debian's packages: tens of thousands of nodes that any machine with apt can make.

A node is a binary package; its class is the package's section; an edge joins it with what it depends on,
recommends or suggests; its features are the hashed words of its one-line description. Names are no features,
since they give the section away (``lib*``, ``*-doc``); packages of one source, whose descriptions repeat each
other, stay in one part of the split.
"""

import hashlib
import re
import subprocess
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from tradeoff.core.errors import DataError
from tradeoff.data.downloads import cache_folder, under_lock
from tradeoff.data.graphs.node_data import NodeData, masks
from tradeoff.nn.graphs import Adjacency, from_edges
from tradeoff.nn.graphs.adjacency import checked
from tradeoff.nn.graphs.arrays import load_npz

EMBEDDED = Path(__file__).with_name("debian_small.npz")
APT_LISTS = Path("/var/lib/apt/lists")
RELATIONS = ("Pre-Depends", "Depends", "Recommends", "Suggests")
FIELDS = frozenset((*RELATIONS, "Package", "Source", "Section", "Description", "Provides"))
MAX_PROVIDERS = 3
"""A virtual package that more packages provide joins nothing."""
BUCKETS = 1024
"""Features: words are hashed to this many."""
WORD = re.compile(r"[a-z]{3,}")
NAME = re.compile(r"[a-z0-9][a-z0-9+.\-]{0,254}")

MAX_PACKAGES = 1_000_000
MAX_LINE = 1 << 20
MAX_FIELD = 1 << 18
"""Characters of one field of a package; the longest real one has some ten thousand."""
MAX_EDGES = 50_000_000
MAX_BYTES = 1 << 30

SPLIT = (0.5, 0.25, 0.25)
"""Of the source packages: to train, to validate, to test."""
ARRAYS = ("indptr", "indices", "word_counts", "words", "section", "source", "section_names", "date")


@dataclass(frozen=True)
class PackageGraph:
    """What is stored of the packages.

    Attributes:
        graph: undirected, without self loops.
        word_counts: distinct hashed words of each package, int64 ``(packages,)``.
        words: the hashed words of package after package, ascending, each below :data:`BUCKETS`.
        section: the class of each package, int64 ``(packages,)``.
        source: the number of its source package, int64 ``(packages,)``.
        section_names: of each class.
        date: of the list it was made from, as ``2026-07-11``.
    """

    graph: Adjacency
    word_counts: np.ndarray
    words: np.ndarray
    section: np.ndarray
    source: np.ndarray
    section_names: tuple[str, ...]
    date: str

    def induced(self, packages: np.ndarray) -> "PackageGraph":
        """The graph among some packages; sections and sources are renumbered."""
        ends = np.cumsum(self.word_counts)
        words = [self.words[ends[p] - self.word_counts[p] : ends[p]] for p in packages]
        kept, section = np.unique(self.section[packages], return_inverse=True)
        return PackageGraph(
            self.graph.induced(packages),
            self.word_counts[packages],
            np.concatenate([np.zeros(0, self.words.dtype), *words]),
            section,
            np.unique(self.source[packages], return_inverse=True)[1],
            tuple(self.section_names[s] for s in kept),
            self.date,
        )

    def save(self, path: Path) -> None:
        """Write compact arrays."""
        small = np.uint16 if self.graph.num_nodes <= 1 << 16 else np.uint32
        np.savez_compressed(
            path,
            indptr=self.graph.indptr.astype(np.uint32),
            indices=self.graph.indices.astype(small),
            word_counts=self.word_counts.astype(np.uint8),
            words=self.words.astype(np.uint16),
            section=self.section.astype(np.uint8),
            source=self.source.astype(small),
            section_names=np.array(self.section_names),
            date=np.array(self.date),
        )


def load_small(root: Path | None = None) -> NodeData:
    """4,000 packages, 250 in each of 16 sections, that ship with tradeoff: for tests and first tries.

    :func:`connected_part` of the lists of Debian 12; denser and more homophilous than the whole.
    """
    return to_node_data(read(EMBEDDED), "debian-small", "embedded")


def load(root: Path | None) -> NodeData:
    """All packages of this machine's distribution, some 63,000 for Debian 12.

    The newest ``root/debian/*.npz`` that :func:`build` wrote, else the newest in the user's cache, else built
    there from apt's lists, which takes seconds. Delete the file to follow a newer list.

    Raises:
        DataError: there is no such file and apt has no lists here, or a file is damaged.
    """
    found = sorted((root / "debian").glob("packages-*.npz")) if root is not None else []
    found = found or sorted(cache_folder("debian").glob("packages-*.npz"))
    path = found[-1] if found else build(cache_folder("debian"))
    expected = path.stem.rpartition("-")[2]
    if _digest(path) != expected:
        raise DataError(f"{path} is damaged: its content is not that of its name; delete it to build it anew")
    return to_node_data(read(path), "debian", path.stem)


def build(folder: Path) -> Path:
    """Make the graph from apt's lists and store it as ``packages-DATE-CHECKSUM.npz`` in ``folder``.

    Raises:
        DataError: apt is not here or has no lists.
    """
    packages = parse(available_packages())
    with under_lock(folder / "packages.npz") as temporary:
        made = temporary.with_suffix(".npz")
        packages.save(made)
        return made.rename(folder / f"packages-{packages.date}-{_digest(made)}.npz")


def read(path: Path) -> PackageGraph:
    """Read what :meth:`PackageGraph.save` wrote.

    Raises:
        DataError: the file is malformed.
    """
    a = load_npz(path, ARRAYS, MAX_BYTES)
    per_package = [a[name] for name in ("word_counts", "section", "source")]
    integers = [a[name] for name in ARRAYS[:6]]
    if any(v.ndim != 1 or v.dtype.kind not in "iu" for v in integers):
        raise DataError(f"{path}: arrays must be vectors of integers")
    count = len(a["indptr"]) - 1
    words = a["words"].astype(np.int64)
    names = a["section_names"]
    if (
        count < 1
        or any(len(v) != count for v in per_package)
        or a["word_counts"].sum(dtype=np.int64) != len(words)
        or (len(words) and words.max() >= BUCKETS)
        or names.dtype.kind != "U"
        or names.ndim != 1
        or a["section"].max() >= len(names)
        or a["date"].dtype.kind != "U"
    ):
        raise DataError(f"{path} is no graph of packages: its arrays do not fit together")
    graph = checked(a["indptr"].astype(np.int64), a["indices"], None, (count, count), path)
    return PackageGraph(
        graph,
        a["word_counts"].astype(np.int64),
        words,
        a["section"].astype(np.int64),
        a["source"].astype(np.int64),
        tuple(names.tolist()),
        str(a["date"]),
    )


def to_node_data(packages: PackageGraph, name: str, origin: str) -> NodeData:
    """Features as zeros and ones, and sources split into :data:`SPLIT`, always the same."""
    count = packages.graph.num_nodes
    x = torch.zeros(count, BUCKETS)
    rows = torch.from_numpy(np.repeat(np.arange(count), packages.word_counts))
    x[rows, torch.from_numpy(packages.words)] = 1.0
    sources = int(packages.source.max()) + 1
    order = np.random.Generator(np.random.PCG64(0)).permutation(sources)
    rank = np.empty(sources, np.int64)
    rank[order] = np.arange(sources)
    bounds = np.round(np.cumsum((0.0, *SPLIT)) * sources)
    position = rank[packages.source]
    train, validation, test = (
        np.flatnonzero((position >= low) & (position < high)) for low, high in pairwise(bounds)
    )
    return NodeData(
        name,
        packages.graph,
        x,
        torch.from_numpy(packages.section),
        *masks(count, train, validation, test),
        num_classes=len(packages.section_names),
        class_names=packages.section_names,
        origin=f"{origin}, lists of {packages.date}",
        group=torch.from_numpy(packages.source),
    )


def parse(lines: Iterable[str], date: str | None = None) -> PackageGraph:
    """The graph of a list of packages in Debian's control format.

    A stanza without a valid name or without a section is left out; of several with one name the first counts.
    Alternatives give an edge each. A name that no package has stands for its providers where there are at
    most :data:`MAX_PROVIDERS`, else for nothing.

    Args:
        lines: of text, with or without line ends.
        date: of the list; that of apt's lists on this machine when not given.

    Raises:
        DataError: there are no packages, or more, or longer fields, than any distribution has.
    """
    stanzas: dict[str, dict[str, str]] = {}
    providers: dict[str, list[str]] = {}
    for stanza in read_stanzas(lines):
        name, section = stanza.get("Package", ""), stanza.get("Section", "")
        if not NAME.fullmatch(name) or not section or name in stanzas:
            continue
        if len(stanzas) >= MAX_PACKAGES:
            raise DataError(f"the list has more than {MAX_PACKAGES:,} packages")
        stanzas[name] = stanza
        for virtual in set(_names(stanza.get("Provides", ""))):
            providers.setdefault(virtual, []).append(name)
    if not stanzas:
        raise DataError("the list holds no package with a name and a section")
    stanzas = dict(sorted(stanzas.items()))
    number = {name: i for i, name in enumerate(stanzas)}
    sections = sorted({section_of(stanza) for stanza in stanzas.values()})
    if len(sections) > 255:
        raise DataError(f"the list has {len(sections)} sections; no distribution has more than 255")
    section_number = {name: i for i, name in enumerate(sections)}
    sources: dict[str, int] = {}
    rows: list[int] = []
    columns: list[int] = []
    words: list[list[int]] = []
    for name, stanza in stanzas.items():
        for relation in RELATIONS:
            for wanted in _names(stanza.get(relation, "")):
                found = [wanted] if wanted in number else providers.get(wanted, [])
                if len(found) <= MAX_PROVIDERS:
                    rows += [number[name]] * len(found)
                    columns += [number[other] for other in found]
        if len(rows) > MAX_EDGES:
            raise DataError(f"the list has more than {MAX_EDGES:,} relations")
        words.append(hashed_words(stanza.get("Description", "")))
        sources.setdefault(stanza.get("Source", name).split(" ")[0], len(sources))
    graph = from_edges(
        np.array(rows, np.int64),
        np.array(columns, np.int64),
        len(stanzas),
        symmetric=True,
        self_loops=False,
        name="debian",
    )
    return PackageGraph(
        graph,
        np.array([len(w) for w in words], np.int64),
        np.array([bucket for w in words for bucket in w], np.int64),
        np.array([section_number[section_of(stanza)] for stanza in stanzas.values()], np.int64),
        np.array(
            [sources[stanza.get("Source", name).split(" ")[0]] for name, stanza in stanzas.items()], np.int64
        ),
        tuple(sections),
        date or _list_date(),
    )


def connected_part(packages: PackageGraph, sections: int, per_section: int) -> PackageGraph:
    """The ``sections`` largest sections, of which packages with the fewest edges are left out round by round.

    Args:
        per_section: packages to keep of each; a section that has fewer keeps all.
    """
    chosen = np.argsort(-np.bincount(packages.section), kind="stable")[:sections]
    kept = np.isin(packages.section, chosen)
    rows, columns = packages.graph.rows, packages.graph.indices
    excess = True
    while excess:
        excess = False
        degrees = np.bincount(rows[kept[rows] & kept[columns]], minlength=len(kept))
        for section in chosen:
            members = np.flatnonzero(kept & (packages.section == section))
            if len(members) > per_section:
                # An eighth at a time, since each that goes takes edges of others with it.
                leaving = min(len(members) - per_section, max(1, len(members) // 8))
                kept[members[np.argsort(degrees[members], kind="stable")[:leaving]]] = False
                excess = True
    return packages.induced(np.flatnonzero(kept))


def hashed_words(description: str) -> list[int]:
    """Buckets of the words of at least three letters in a one-line description: CRC-32, ascending."""
    return sorted({zlib.crc32(word.encode()) % BUCKETS for word in WORD.findall(description.lower())})[:255]


def read_stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The wanted fields of each paragraph; of a description the first line, of others all of them."""
    stanza: dict[str, str] = {}
    field = ""
    for line in lines:
        if len(line) > MAX_LINE:
            raise DataError(f"the list has a line of more than {MAX_LINE:,} characters")
        line = line.rstrip("\r\n")
        if not line.strip():
            if stanza:
                yield stanza
            stanza, field = {}, ""
        elif line[0] in " \t":
            if field and field != "Description":
                stanza[field] += " " + line.strip()
                if len(stanza[field]) > MAX_FIELD:
                    raise DataError(f"the list has a field of more than {MAX_FIELD:,} characters")
        else:
            name, _, value = line.partition(":")
            name = "Description" if name == "Description-en" else name
            field = name if name in FIELDS and name not in stanza else ""
            if field:
                stanza[field] = value.strip()
    if stanza:
        yield stanza


def _names(relation: str) -> Iterator[str]:
    """Package names of a relation field, without versions, architectures and build profiles."""
    for wanted in re.split(r"[,|]", relation):
        name = wanted.strip().split(" ")[0].split("(")[0].split("[")[0].split(":")[0]
        if NAME.fullmatch(name):
            yield name


def section_of(stanza: dict[str, str]) -> str:
    """Without the archive area: ``non-free/libs`` is ``libs``."""
    return stanza["Section"].rpartition("/")[2][:64].lower()


def available_packages() -> list[str]:
    """The lines of apt's lists.

    Raises:
        DataError: apt is not here or has no lists.
    """
    command = ["apt-cache", "dumpavail"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=120, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(
            f"data of Debian's packages is made from apt's lists, and {' '.join(command)} failed: {error}; "
            "run this on Debian or Ubuntu, set TRADEOFF_DATA to a folder that holds debian/packages-*.npz "
            "(graph) or debian/sections-*.tsv.gz (texts) from such a machine, or load 'debian-small', the "
            "embedded graph"
        ) from error
    if not done.stdout.strip():
        raise DataError(
            "apt has no package lists; run: apt-get update, or load 'debian-small', which is embedded"
        )
    return done.stdout[:MAX_BYTES].decode("utf-8", "replace").split("\n")


def _list_date() -> str:
    """When the largest list of this machine was published, else today."""
    releases = {path.name.partition("_InRelease")[0]: path for path in APT_LISTS.glob("*_InRelease")}
    packages = sorted(APT_LISTS.glob("*_Packages*"), key=lambda path: path.stat().st_size)
    for path in reversed(packages):
        for prefix, release in releases.items():
            if path.name.startswith(f"{prefix}_"):
                with release.open(encoding="utf-8", errors="replace") as file:
                    for line in file:
                        if line.startswith("Date:"):
                            try:
                                return parsedate_to_datetime(line[5:].strip()).date().isoformat()
                            except ValueError:
                                break
    return datetime.now(UTC).date().isoformat()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
