"""Timed events: order, splits without leakage, readers, generated and real sets."""

import gzip
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core.errors import DataError
from tradeoff.data.graphs import LinkSplits, TemporalEvents, keyring, load_events, split_links, temporal

REAL_ROOT = os.environ.get("TRADEOFF_DATA")


def check(events: TemporalEvents, splits: LinkSplits) -> None:
    """A split against a slow reading of its definition."""
    all_events = list(zip(events.source.tolist(), events.target.tolist(), events.time.tolist(), strict=True))
    met = {frozenset(event[:2]) for event in all_events}
    known = set(splits.history.source.tolist()) | set(splits.history.target.tolist())
    start = len(splits.history)
    bounds = [int(events.time[start])]
    bounds.append(min(int(t) for t in splits.test.time))
    for pairs, low, high in ((splits.train, bounds[0], bounds[1]), (splits.test, bounds[1], 1 << 62)):
        half = len(pairs) // 2
        ends = list(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True))
        window = {(s, t) for s, t, time in all_events if low <= time < high and s != t and {s, t} <= known}
        assert set(ends[:half]) == window or pairs is splits.train
        assert len(set(ends[:half])) == half
        assert pairs.label.tolist() == [1] * half + [0] * half
        assert all({s, t} <= known and s != t for s, t in ends)
        assert not any(frozenset(pair) in met for pair in ends[half:])
        assert len({frozenset(pair) for pair in ends[half:]}) == half
        before = {(s, t) for s, t, time in all_events if time < low}
        assert pairs.repeated.tolist() == [pair in before for pair in ends[:half]] + [False] * half
    assert (
        splits.history.time.max()
        < splits.train.time.min()
        <= splits.train.time.max()
        < splits.test.time.min()
    )


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_splits_of_random_events(seed, moments):
    generator = np.random.default_rng(seed)
    events = temporal.sort_events(
        *generator.integers(0, 25, (2, 80)), generator.integers(0, moments, 80), "x"
    )
    try:
        splits = split_links(events)
    except DataError as error:
        assert moments < 5 or "no event" in str(error) or "never meet" in str(error)  # noqa: PT017
        return
    check(events, splits)


def test_the_generated_set():
    events = load_events("community-messages")
    assert (len(events), events.num_nodes) == (12_000, 400)
    assert len(np.unique(events.time)) < len(events)
    splits = split_links(events)
    check(events, splits)
    assert 0.3 < splits.test.repeated[: len(splits.test) // 2].mean() < 0.7
    assert np.array_equal(split_links(events).test.source, splits.test.source)
    assert not np.array_equal(split_links(events, seed=1).test.source, splits.test.source)


def test_sorting_is_stable_and_renumbers():
    events = temporal.sort_events(np.array([9, 5, 7]), np.array([5, 9, 9]), np.array([3, 1, 1]), "x")
    assert events.time.tolist() == [1, 1, 3]
    assert events.source.tolist() == [0, 1, 2]
    assert events.target.tolist() == [2, 2, 0]


def test_test_before_train_is_leakage():
    splits = split_links(load_events("community-messages"))
    with pytest.raises(DataError, match="test events must come after all training events"):
        LinkSplits(splits.history, splits.test, splits.train)
    late = replace(splits.train, time=np.full_like(splits.train.time, splits.test.time.min()))
    with pytest.raises(DataError, match="leaks the future"):  # one shared moment is enough
        LinkSplits(splits.history, late, splits.test)


@pytest.mark.parametrize(
    ("source", "target", "time", "message"),
    [
        ([0, 1], [1, 0], [2, 1], "sorted by time"),
        ([0, 2], [1, 0], [1, 2], "node out of range"),
        ([0], [1, 0], [1, 2], "vectors of one length"),
    ],
)
def test_malformed_events(source, target, time, message):
    with pytest.raises(DataError, match=message):
        TemporalEvents("x", np.array(source), np.array(target), np.array(time), 2)


def test_sets_that_cannot_be_split():
    same = temporal.sort_events(np.arange(10), np.arange(10) + 1, np.zeros(10), "x")
    with pytest.raises(DataError, match="cannot be split in three"):
        split_links(same)
    strangers = temporal.sort_events(np.arange(0, 20, 2), np.arange(1, 21, 2), np.arange(10), "x")
    with pytest.raises(DataError, match="no event of a window"):
        split_links(strangers)
    pair = temporal.sort_events(np.zeros(10, int), np.ones(10, int), np.arange(10), "x")
    with pytest.raises(DataError, match="never meet"):
        split_links(pair)
    for history, train in ((0, 0.5), (0.8, 0.6), (0.5, 1)):
        with pytest.raises(ValueError, match="need 0 < history"):
            split_links(pair, history, train)
    with pytest.raises(ValueError, match="cannot draw"):
        temporal.community_messages(num_nodes=3)


def test_text_files(tmp_path):
    (tmp_path / "college_msg").mkdir()
    text = "# comment\n7 3 100\n3 7 50\r\n\n7 9 100\n"
    (tmp_path / "college_msg" / "CollegeMsg.txt.gz").write_bytes(gzip.compress(text.encode()))
    events = load_events("college-msg", tmp_path)
    assert events.time.tolist() == [50, 100, 100]
    assert events.target.tolist() == [1, 0, 2]
    path = tmp_path / "ia_email" / "ia-enron-email-dynamic.edges"
    path.parent.mkdir()
    path.write_text("% asym\n1 2 1 926389620\n2 1 1 926389000\n")
    assert load_events("ia-email", tmp_path).time.tolist() == [926389000, 926389620]
    assert load_events(str(path)).num_nodes == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 numbers in a line"),
        (b"1 2\n", "has 2 numbers in a line; expected 3 or 4"),
        (b"1 2 3\n1 2\n", "no table"),
        (b"1 2 x\n", "no table"),
        (b"1 2 1e5\n", "no table"),
        (b"1 2 99999999999999999999\n", "no table"),
        (b"1" * 70_000, "a line of more than"),
        (gzip.compress(b"1 2 3\n" * 100, mtime=0)[:-12], "cannot read"),
    ],
)
@pytest.mark.filterwarnings("error:loadtxt")
def test_malformed_text(tmp_path, content, message):
    (tmp_path / "events.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_events(str(tmp_path / "events.txt"))


def test_absent_says_what_to_do(tmp_path, monkeypatch):
    def refuse(remote, target):
        raise DataError("no network")

    monkeypatch.setattr(temporal, "download", refuse)
    for name in temporal.FILES:
        with pytest.raises(DataError, match=f"{name} is not here: get it from https://.* set TRADEOFF_DATA"):
            load_events(name, tmp_path)
    with pytest.raises(DataError, match="did you mean 'college-msg'"):
        load_events("college_msg")


def test_signatures():
    listing = """\
pub:u:4096:1:AAAA:1:::u:
sig:::1:AAAA:100::::self:
sig:::1:BBBB:300::::b:
sig:::1:BBBB:300::::b again, on another user id:
sig:::1:EEEE:200::::a stranger:
sig:::1:BBBB:x::::no time:
pub:u:4096:1:BBBB:1:::u:
sig:::1:AAAA:200::::a:
short
"""
    events = keyring.parse(listing.split("\n"))
    assert list(zip(events.source, events.target, events.time, strict=True)) == [(0, 1, 200), (1, 0, 300)]
    with pytest.raises(DataError, match="no signature"):
        keyring.parse(["pub:::::", "sig:::1:AAAA:100:"])


def test_real_college_messages(require):
    require(REAL_ROOT and os.path.isdir(f"{REAL_ROOT}/college_msg"), "needs TRADEOFF_DATA with college_msg/")
    events = load_events("college-msg", REAL_ROOT)
    assert (len(events), events.num_nodes) == (59_835, 1_899)
    splits = split_links(events)
    half = len(splits.test) // 2
    assert (len(splits.history), len(splits.train) // 2, half) == (35_901, 3_330, 1_892)
    assert abs(splits.test.in_history[:half].mean() - 0.206) < 0.001
