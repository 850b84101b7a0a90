"""Temporal walks and the embeddings that come from them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core.errors import DataError
from tradeoff.methods.graphs.gnn_sparsification import skip_gram, temporal_walks
from tradeoff.methods.graphs.gnn_sparsification.walks import END

event_lists = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 5)), min_size=1, max_size=40
)


@settings(max_examples=60)
@given(event_lists, st.integers(2, 7), st.integers(0, 3))
def test_walks_follow_events_whose_times_never_decrease(
    events: list[tuple[int, int, int]], length: int, seed: int
) -> None:
    """Events are unsorted and share times; a walk ends only where nothing may follow."""
    sources, targets, times = (np.array(column) for column in zip(*events, strict=True))
    if (sources == targets).all():
        with pytest.raises(DataError, match="no event between two nodes"):
            temporal_walks(sources, targets, times, generator=np.random.default_rng(seed))
        return
    generator = np.random.default_rng(seed)
    nodes, followed = temporal_walks(sources, targets, times, per_node=3, length=length, generator=generator)
    assert set(nodes[:, 0]) == set(sources[sources != targets])
    assert (np.bincount(nodes[:, 0])[np.unique(nodes[:, 0])] == 3).all()
    for walk, steps in zip(nodes, followed, strict=True):
        earliest = -1
        for here, there, event in zip(walk, walk[1:], steps, strict=False):
            if event == END:
                assert there == END
                may_follow = (sources == here) & (targets != here) & (times >= earliest)
                assert here == END or not may_follow.any()
                continue
            assert (sources[event], targets[event]) == (here, there)
            assert times[event] >= earliest
            earliest = times[event]


def test_each_admissible_event_is_drawn_evenly() -> None:
    """From 0 at time 5, of the events of 1 at times 4, 5, 5 and 9 the last three may follow."""
    sources, targets = np.array([0, 1, 1, 1, 1]), np.array([1, 2, 3, 4, 5])
    times = np.array([5, 4, 5, 5, 9])
    nodes, _ = temporal_walks(
        sources, targets, times, per_node=3000, length=3, generator=np.random.default_rng(0)
    )
    second = nodes[nodes[:, 0] == 0, 2]
    counts = np.bincount(second, minlength=6)
    assert counts[2] == 0
    np.testing.assert_allclose(counts[3:] / 3000, 1 / 3, atol=0.04)


def test_the_same_seed_gives_the_same_walks_and_embeddings() -> None:
    generator = np.random.default_rng(0)
    sources, targets, times = (generator.integers(0, n, 200) for n in (20, 20, 50))
    made = []
    for _ in range(2):
        nodes, _ = temporal_walks(sources, targets, times, generator=np.random.default_rng(7))
        made.append((nodes, skip_gram(nodes, 25, epochs=2, seed=3)))
    assert np.array_equal(made[0][0], made[1][0])
    assert torch.equal(made[0][1], made[1][1])
    assert not made[0][1][20:].any()  # nodes on no walk
    assert made[0][1][:20].any(1).all()


def test_embeddings_of_two_disconnected_halves_separate() -> None:
    generator = np.random.default_rng(0)
    half = generator.integers(0, 2, 3000)
    sources, targets = half * 20 + generator.integers(0, 20, (2, 3000))
    nodes, _ = temporal_walks(sources, targets, np.arange(3000), generator=generator)
    embeddings = torch.nn.functional.normalize(skip_gram(nodes, 40, epochs=20, batch_size=512), dim=1)
    similar = embeddings @ embeddings.T
    same = torch.arange(40)[:, None] // 20 == torch.arange(40)[None] // 20
    apart = ~torch.eye(40, dtype=torch.bool)
    assert similar[same & apart].mean() > similar[~same].mean() + 0.5
    closest = similar.fill_diagonal_(-1).argmax(1)
    assert (closest // 20 == torch.arange(40) // 20).float().mean() > 0.9


def test_what_is_no_event_list_is_named() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(DataError, match="1 sources, 2 targets"):
        temporal_walks(np.array([0]), np.array([1, 2]), np.array([0]), generator=generator)
    with pytest.raises(DataError, match="no walk has two nodes"):
        skip_gram(np.array([[3, END]]), 4)
