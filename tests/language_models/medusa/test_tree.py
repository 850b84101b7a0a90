"""Trees: the best of each size, what they are predicted to give, and which are refused."""

from itertools import combinations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tradeoff.methods.language_models.medusa import (
    Distilled,
    InvalidSetting,
    InvalidTree,
    MedusaHeads,
    StepCost,
    calibrate_tree,
    cartesian,
    check_paths,
)
from tradeoff.methods.language_models.medusa.tree import (
    accepted,
    grow,
    joint_score,
    product_score,
    replay,
)
from tradeoff.nn.decoder import Decoder

NODES = [path for depth in (1, 2, 3) for path in product(range(3), repeat=depth)]


def best_by_trying(score, size: int) -> float:
    """The best prefix-closed set of this size, of all that hold together."""

    def extend(tree: frozenset) -> set[frozenset]:
        return {tree | {node} for node in NODES if node not in tree and (len(node) == 1 or node[:-1] in tree)}

    trees = {frozenset()}
    for _ in range(size):
        trees = {larger for tree in trees for larger in extend(tree)}
    return max(sum(map(score, tree)) for tree in trees)


@pytest.mark.parametrize("seed", range(2))
def test_grown_trees_are_the_best_of_their_size(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    accuracies = (torch.rand(3, 3, generator=generator) / 3).tolist()  # not sorted by rank
    ranks = torch.randint(-1, 3, (60, 3), generator=generator)
    for score in (product_score(accuracies), joint_score(ranks)):
        order = grow(score, 6, depth=3, top=3)
        gains = [score(path) for path in order]
        assert gains == sorted(gains, reverse=True)
        for size in range(1, 7):
            assert sum(gains[:size]) == pytest.approx(best_by_trying(score, size))
            check_paths(order[:size], 3, 3)


def test_joint_score_counts_paths() -> None:
    ranks = torch.tensor([[0, 1, 2], [0, 1, -1], [0, -1, 2], [-1, 1, 2]])
    score = joint_score(ranks)
    assert [score(path) for path in ((0,), (0, 1), (0, 1, 2), (1,))] == [0.75, 0.5, 0.25, 0.0]


@given(st.integers(0, 10_000))
def test_replay_against_a_walk(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (4,), generator=generator).tolist()
    replies = tuple(tuple(range(n)) for n in lengths)
    data = Distilled(((0,),) * 4, replies, torch.zeros(sum(lengths), 1), ("",) * 4)
    ranks = torch.randint(-1, 3, (sum(lengths), 2), generator=generator)
    ranks[data.labels(2) < 0] = -1
    tree = grow(joint_score(ranks), 5, depth=2, top=3)
    tokens = steps = 0
    for reply, (start, _) in zip(replies, data.spans(), strict=True):
        written = 1
        while written < len(reply):
            path: tuple[int, ...] = ()
            row = start + written - 1
            for rank in ranks[row].tolist():
                if (*path, rank) not in tree:
                    break
                path = (*path, rank)
            written += 1 + len(path)
            steps += 1
        tokens += len(reply) - 1
    assert replay(ranks, data, tree) == pytest.approx(tokens / max(steps, 1))
    assert replay(ranks, data, []) == (1.0 if tokens else 0.0)


def test_accepted_needs_the_whole_path() -> None:
    ranks = torch.tensor([[0, 0], [1, 0], [0, 1], [-1, 0]])
    assert accepted(ranks, [(0,), (0, 0)]).tolist() == [2, 0, 1, 0]


def test_calibration_chooses_by_cost(model: Decoder, data: Distilled) -> None:
    heads = MedusaHeads.from_backbone(model)

    cheap = StepCost((1, 33), (1.0, 1.0), 1.0)
    found = calibrate_tree(heads, data, cheap, max_nodes=12)
    assert list(found.tokens_per_step) == sorted(found.tokens_per_step)
    assert found.tokens_per_step[0] == 1.0
    assert len(found.paths) > 0
    assert found.predicted == max(found.speedup)
    dear = StepCost((1, 33), (9.0, 99.0), 1.0)
    found = calibrate_tree(heads, data, dear, max_nodes=12)
    assert found.paths == ()
    assert found.predicted == 1.0


def test_calibration_needs_text_and_nodes(model: Decoder, data: Distilled) -> None:
    heads, cost = MedusaHeads.from_backbone(model), StepCost((1, 33), (1.0, 2.0), 1.0)
    with pytest.raises(InvalidSetting, match="0 held-out tokens"):
        calibrate_tree(heads, data.select([]), cost)
    with pytest.raises(InvalidSetting, match="0 nodes"):
        calibrate_tree(heads, data, cost, max_nodes=0)
    with pytest.raises(InvalidSetting, match="34 rows was not measured, at most 33"):
        calibrate_tree(heads, data, cost, max_nodes=40)


def test_cost_lies_on_lines() -> None:
    cost = StepCost((1, 3, 5), (1.1, 1.2, 1.6), 1.0)
    assert [cost.with_nodes(n) for n in (0, 1, 2, 3, 4)] == pytest.approx([1.0, 1.15, 1.2, 1.4, 1.6])


@pytest.mark.parametrize(
    ("rows", "ratio"),
    [((), ()), ((2, 3), (1.0, 2.0)), ((1, 1), (1.0, 2.0)), ((1, 3), (1.0,)), ((1, 3), (1.0, float("nan")))],
)
def test_costs_that_say_nothing_are_refused(rows: tuple, ratio: tuple) -> None:
    with pytest.raises(InvalidSetting, match="costs"):
        StepCost(rows, ratio, 1.0)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([(0,), (1, 0)], r"node \(1, 0\) is without its parent \(1,\)"),
        ([(0,), (10,)], r"node \(10,\) asks for a guess beyond the first 10"),
        ([(0,), (-1,)], r"node \(-1,\)"),
        ([(0,), (0, 0), (0, 0, 0)], r"node \(0, 0, 0\) has depth 3; there are 2 heads"),
        ([()], r"node \(\) has depth 0"),
        ([(0,), (0,)], r"node \(0,\) is there twice"),
        ([0, 1], "a node is a path of ranks"),
        ([(0.5,)], "a node is a path of ranks"),
    ],
)
def test_what_is_no_tree_is_refused(paths: list, message: str) -> None:
    with pytest.raises(InvalidTree, match=message):
        check_paths(paths, num_heads=2)


def test_cartesian_trees() -> None:
    assert len(cartesian([2, 2, 2])) == 14
    assert check_paths(cartesian([3, 2]), 2) == check_paths(reversed(cartesian([3, 2])), 2)
    assert all(a != b for a, b in combinations(cartesian([4, 3, 2]), 2))
