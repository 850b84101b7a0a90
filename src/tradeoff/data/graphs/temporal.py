"""Timed events between nodes, and splits for link prediction that no future leaks into."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from tradeoff.core.errors import DataError
from tradeoff.data.downloads import RemoteFile, cache_folder, download
from tradeoff.data.graphs.text import table

SNAP = "https://snap.stanford.edu/data/"
HISTORY, TRAIN = 0.6, 0.8
"""Parts of the events before which the history and the training window end."""
NEGATIVE_ROUNDS = 200


@dataclass(frozen=True)
class TemporalEvents:
    """Directed events, sorted by time; those of one time keep the order of their source.

    Attributes:
        name: what it was loaded by.
        source, target: int64 ``(events,)`` nodes, from 0.
        time: int64 ``(events,)``, not descending; seconds since 1970 in real sets.
        num_nodes: nodes are below it.
        origin: which file or generator.
    """

    name: str
    source: Int64[np.ndarray, " events"]
    target: Int64[np.ndarray, " events"]
    time: Int64[np.ndarray, " events"]
    num_nodes: int
    origin: str = ""

    def __post_init__(self) -> None:
        if not self.source.shape == self.target.shape == self.time.shape == (len(self.time),):
            raise DataError(f"{self.name}: source, target and time must be vectors of one length")
        if (np.diff(self.time) < 0).any():
            raise DataError(f"{self.name}: events must be sorted by time; see sort_events")
        for ends in (self.source, self.target):
            if len(ends) and not 0 <= ends.min() <= ends.max() < self.num_nodes:
                raise DataError(f"{self.name}: an event has a node out of range")

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, part: slice) -> "TemporalEvents":
        """The events of a range."""
        return replace(self, source=self.source[part], target=self.target[part], time=self.time[part])

    @property
    def nodes(self) -> Int64[np.ndarray, " seen"]:
        """The nodes that take part in an event, ascending."""
        return np.union1d(self.source, self.target)


@dataclass(frozen=True)
class LinkPairs:
    """Ordered pairs of nodes to tell apart: as many that met as that never do.

    Attributes:
        source, target: int64 ``(pairs,)``; the first half met in this window, the second never meets.
        label: int64 ``(pairs,)``, 1 for those that met.
        time: int64 ``(pairs,)``: of the first meeting in the window; of its partner for a pair that never
            meets.
        repeated: whether the source met the target before the window already.
        in_history: whether it did in the history, from which nodes are embedded.
        unseen: events of the window that were left out since the history lacks one of their nodes.
    """

    source: Int64[np.ndarray, " pairs"]
    target: Int64[np.ndarray, " pairs"]
    label: Int64[np.ndarray, " pairs"]
    time: Int64[np.ndarray, " pairs"]
    repeated: Bool[np.ndarray, " pairs"]
    in_history: Bool[np.ndarray, " pairs"]
    unseen: int

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class LinkSplits:
    """Link prediction in time: embed nodes by the history, train on what came next, test on what came last.

    Raises:
        DataError: a part does not lie wholly after the one before it, which would be leakage.
    """

    history: TemporalEvents
    train: LinkPairs
    test: LinkPairs

    def __post_init__(self) -> None:
        order = (("history", self.history.time), ("training", self.train.time), ("test", self.test.time))
        for (earlier, before), (later, after) in pairwise(order):
            if len(before) and len(after) and after.min() <= before.max():
                raise DataError(
                    f"{later} events must come after all {earlier} events: one at time {after.min()} is not "
                    f"after {before.max()}, so the split leaks the future"
                )


def sort_events(
    source: np.ndarray, target: np.ndarray, time: np.ndarray, name: str, origin: str = ""
) -> TemporalEvents:
    """Events in order of time, stably, with nodes renumbered from 0 in the order of their old numbers."""
    order = np.argsort(time, kind="stable")
    nodes, ends = np.unique(np.concatenate([source[order], target[order]]), return_inverse=True)
    first, second = ends[: len(time)].astype(np.int64), ends[len(time) :].astype(np.int64)
    return TemporalEvents(name, first, second, time[order].astype(np.int64), len(nodes), origin)


def split_links(
    events: TemporalEvents, history: float = HISTORY, train: float = TRAIN, seed: int = 0
) -> LinkSplits:
    """Split events at two moments, so that parts ``history`` and ``train`` of them lie before.

    Events of one time stay together. A window's pairs are those of its events, each once; pairs with a node
    that the history lacks are left out and counted, loops are left out. The pairs that never meet are drawn
    at random from the nodes of the history, without any event between them, in either direction, before or
    after.

    Raises:
        ValueError: the parts are not 0 < history < train < 1.
        DataError: a window is empty, or there are too few pairs that never meet.
    """
    if not 0 < history < train < 1:
        raise ValueError(f"need 0 < history < train < 1, not {history} and {train}")
    first, second = (_moment(events, part) for part in (history, train))
    if not 0 < first < second < len(events):
        raise DataError(
            f"{events.name}: its {len(events):,} events cannot be split in three parts of different times"
        )
    met = np.unique(_undirected(events.source, events.target, events.num_nodes))
    generator = np.random.Generator(np.random.PCG64(seed))
    past = events[:first]
    windows = [
        _window(events, start, stop, past, met, generator)
        for start, stop in ((first, second), (second, len(events)))
    ]
    return LinkSplits(past, *windows)


def _moment(events: TemporalEvents, part: float) -> int:
    """Where to cut: after ``part`` of the events, moved back to the first event of that time."""
    index = min(round(len(events) * part), len(events) - 1)
    return int(np.searchsorted(events.time, events.time[index])) if len(events) else 0


def _window(
    events: TemporalEvents,
    start: int,
    stop: int,
    past: TemporalEvents,
    met: Int64[np.ndarray, " pairs"],
    generator: np.random.Generator,
) -> LinkPairs:
    window = events[start:stop]
    seen = past.nodes
    known = np.isin(window.source, seen) & np.isin(window.target, seen)
    usable = known & (window.source != window.target)
    keys = window.source[usable] * events.num_nodes + window.target[usable]
    _, first = np.unique(keys, return_index=True)
    first.sort()
    positions = np.flatnonzero(usable)[first]
    if not len(positions):
        raise DataError(f"{events.name}: no event of a window is between two nodes of the history")
    before = events.source[:start] * events.num_nodes + events.target[:start]
    source, target = _never_met(seen, met, events.num_nodes, len(positions), generator, events.name)
    never = np.zeros(len(positions), np.int64)
    return LinkPairs(
        source=np.concatenate([window.source[positions], source]),
        target=np.concatenate([window.target[positions], target]),
        label=np.concatenate([never + 1, never]),
        time=np.tile(window.time[positions], 2),
        repeated=np.concatenate([np.isin(keys[first], before), never.astype(bool)]),
        in_history=np.concatenate([np.isin(keys[first], before[: len(past)]), never.astype(bool)]),
        unseen=int((~known).sum()),
    )


def _never_met(
    nodes: np.ndarray, met: np.ndarray, num_nodes: int, count: int, generator: np.random.Generator, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct random pairs of ``nodes`` whose keys are not in ``met``."""
    sources, targets = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for _ in range(NEGATIVE_ROUNDS):
        drawn = nodes[generator.integers(0, len(nodes), (2, 2 * count + 16))]
        drawn = drawn[:, drawn[0] != drawn[1]]
        drawn = drawn[:, ~np.isin(_undirected(drawn[0], drawn[1], num_nodes), met)]
        sources, targets = np.append(sources, drawn[0]), np.append(targets, drawn[1])
        _, first = np.unique(_undirected(sources, targets, num_nodes), return_index=True)
        first.sort()
        sources, targets = sources[first], targets[first]
        if len(sources) >= count:
            return sources[:count], targets[:count]
    raise DataError(f"{name}: its nodes have hardly {count:,} pairs that never meet; almost all of them do")


def _undirected(source: np.ndarray, target: np.ndarray, num_nodes: int) -> Int64[np.ndarray, " pairs"]:
    """One number for a pair, whichever way round."""
    keys: Int64[np.ndarray, " pairs"] = np.minimum(source, target) * num_nodes + np.maximum(source, target)
    return keys


def community_messages(
    num_nodes: int = 400,
    num_events: int = 12_000,
    communities: int = 8,
    seed: int = 0,
) -> TemporalEvents:
    """A generated network of messages: people join over time, write mostly within their community, and
    repeat.

    A third of the messages answer or repeat an earlier one; of the others, five in six stay in the sender's
    community. Activity is log-normal. Times are whole minutes, so that some messages share one.

    Raises:
        ValueError: fewer than two people a community, or no events.
    """
    if communities < 1 or num_nodes < 2 * communities or num_events < 1:
        raise ValueError(
            f"cannot draw {num_events} messages among {num_nodes} people in {communities} communities"
        )
    generator = np.random.Generator(np.random.PCG64(seed))
    community = generator.permutation(num_nodes) % communities
    activity = generator.lognormal(0.0, 1.0, num_nodes)
    joined = generator.random(num_nodes) ** 2 * 0.7  # most are there early, few join late
    joined[:2] = 0.0
    source, target = np.empty(num_events, np.int64), np.empty(num_events, np.int64)
    moments = np.sort(generator.random(num_events))
    for i, moment in enumerate(moments):
        if i and generator.random() < 1 / 3:
            earlier = int(generator.integers(i))
            source[i], target[i] = target[earlier], source[earlier]
            continue
        weights = np.cumsum(activity * (joined <= moment))
        sender = _draw(generator, weights)
        near = activity * (joined <= moment)
        near[sender] = 0.0
        if generator.random() < 5 / 6 and near[community == community[sender]].any():
            near = near * (community == community[sender])
        source[i], target[i] = sender, _draw(generator, np.cumsum(near))
    minutes = np.floor(moments * num_events / 2).astype(np.int64)
    return sort_events(source, target, minutes * 60, "community-messages", f"generated with seed {seed}")


def _draw(generator: np.random.Generator, cumulative: np.ndarray) -> int:
    return int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))


def read_events(path: Path, name: str) -> TemporalEvents:
    """Events from lines of ``source target time`` or ``source target weight time``, whole numbers.

    Raises:
        DataError: the file is absent or malformed.
    """
    rows = table(path, (3, 4))
    return sort_events(rows[:, 0], rows[:, 1], rows[:, -1], name, str(path))


@dataclass(frozen=True)
class EventFile:
    """Where a set of events is found.

    Attributes:
        folder: under the local root.
        files: names it may have there.
        url: of its source; None where it cannot be had without a browser.
        max_bytes: of the download.
        page: that describes it.
    """

    folder: str
    files: tuple[str, ...]
    url: str | None
    max_bytes: int
    page: str


FILES = {
    "college-msg": EventFile(
        "college_msg",
        ("CollegeMsg.txt", "CollegeMsg.txt.gz"),
        f"{SNAP}CollegeMsg.txt.gz",
        4 << 20,
        f"{SNAP}CollegeMsg.html",
    ),
    "wiki-talk": EventFile(
        "wiki_talk",
        ("wiki-talk-temporal.txt", "wiki-talk-temporal.txt.gz"),
        f"{SNAP}wiki-talk-temporal.txt.gz",
        256 << 20,
        f"{SNAP}wiki-talk-temporal.html",
    ),
    "stackoverflow": EventFile(
        "stackoverflow",
        ("sx-stackoverflow.txt", "sx-stackoverflow.txt.gz"),
        f"{SNAP}sx-stackoverflow.txt.gz",
        2 << 30,
        f"{SNAP}sx-stackoverflow.html",
    ),
    "ia-email": EventFile(
        "ia_email",
        ("ia-enron-email-dynamic.edges", "ia-enron-email-dynamic.txt"),
        None,
        0,
        "https://networkrepository.com/ia-enron-email-dynamic.php",
    ),
}
"""Real sets of events by name."""


def loader(name: str) -> Callable[[Path | None], TemporalEvents]:
    """The function that loads one of :data:`FILES` given a local root, for the table of sets."""
    return lambda root: load_file(name, root)


def load_file(name: str, root: Path | None) -> TemporalEvents:
    """One of :data:`FILES`, from the local root or else its source.

    Raises:
        DataError: the file is neither here nor to be had, or is malformed.
    """
    facts = FILES[name]
    for file in facts.files if root is not None else ():
        if (path := Path(str(root)) / facts.folder / file).is_file():
            return read_events(path, name)
    advice = (
        f"{name} is not here: get it from {facts.page} and set TRADEOFF_DATA to a folder that holds "
        f"{facts.folder}/{facts.files[0]}"
    )
    if facts.url is None:
        raise DataError(advice)
    try:
        remote = RemoteFile(facts.url, facts.max_bytes)
        path = download(remote, cache_folder(facts.folder) / facts.url.rpartition("/")[2])
    except DataError as error:
        raise DataError(f"{advice}; {error}") from error
    return read_events(path, name)
