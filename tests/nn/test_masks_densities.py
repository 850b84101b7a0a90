"""Densities and exact numbers of weights, and the masks that hold them."""

from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune
from torch_geometric.nn import GCNConv

from tradeoff.nn.masks import (
    Distribution,
    InfeasibleDensity,
    MaskError,
    MaskSet,
    active_counts,
    layer_densities,
    maskable_weights,
)

shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(4, 300), st.integers(4, 300)),
        st.tuples(st.integers(4, 64), st.integers(3, 64), st.integers(1, 5), st.integers(1, 5)),
    ),
    min_size=1,
    max_size=8,
).map(lambda found: {f"layer{i}.weight": shape for i, shape in enumerate(found)})


def erk_by_bisection(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Densities ``min(1, e raw)`` whose mean is ``density``, by bisection on ``e``."""
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / prod(shape) for name, shape in shapes.items()}
    low, high = 0.0, 2 / min(raw.values())
    for _ in range(80):
        middle = (low + high) / 2
        total = sum(min(1.0, middle * raw[name]) * sizes[name] for name in shapes)
        low, high = (middle, high) if total < density * sum(sizes.values()) else (low, middle)
    return {name: min(1.0, low * raw[name]) for name in shapes}


@given(shapes=shapes, density=st.floats(0.02, 1.0))
def test_erk_is_the_clipped_proportional_density(shapes: dict[str, tuple[int, ...]], density: float) -> None:
    assert layer_densities(shapes, density, "erk") == pytest.approx(
        erk_by_bisection(shapes, density), abs=1e-9
    )


@given(
    shapes=shapes,
    density=st.floats(0.02, 1.0),
    distribution=st.sampled_from(["erk", "er", "uniform", "uniform_keep_first"]),
)
def test_counts_sum_to_the_budget_exactly(
    shapes: dict[str, tuple[int, ...]], density: float, distribution: Distribution
) -> None:
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    try:
        counts = active_counts(shapes, density, distribution)
        densities = layer_densities(shapes, density, distribution)
    except InfeasibleDensity:
        return
    assert sum(counts.values()) == round(density * sum(sizes.values()))
    assert all(0 < counts[name] <= sizes[name] for name in shapes)
    assert all(counts[name] == sizes[name] for name in shapes if densities[name] == 1)
    moved = [name for name in shapes if counts[name] != round(densities[name] * sizes[name])]
    largest = max((s for n, s in sizes.items() if densities[n] < 1), default=0)
    if min(sizes.values()) > 20 * len(sizes):
        assert all(sizes[name] == largest for name in moved)


def test_three_layers_of_which_one_is_clipped() -> None:
    """By hand: eps = 1300 / 240 would give the small one 1.08; the others share 1200 evenly."""
    shapes = {"a": (10, 100), "b": (10, 10), "c": (100, 10)}
    expected = {"a": 0.6, "b": 1.0, "c": 0.6}
    assert layer_densities(shapes, 1300 / 2100, "erk") == pytest.approx(expected, abs=1e-12)
    assert active_counts(shapes, 1300 / 2100, "erk") == {"a": 600, "b": 100, "c": 600}


def test_er_leaves_the_kernel_out_and_the_first_layer_can_stay_dense() -> None:
    shapes = {"first": (8, 3, 3, 3), "second": (16, 8, 3, 3), "third": (10, 16)}
    er = layer_densities(shapes, 0.2, "er")
    assert er["second"] / er["third"] == pytest.approx((24 / 128) / (26 / 160))
    kept = layer_densities(shapes, 0.3, "uniform_keep_first")
    assert kept["first"] == 1
    assert kept["second"] == kept["third"]
    assert sum(active_counts(shapes, 0.3, "uniform_keep_first").values()) == round(0.3 * (216 + 1152 + 160))
    with pytest.raises(InfeasibleDensity, match="first alone holds 216"):
        layer_densities(shapes, 0.1, "uniform_keep_first")


@pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan")])
def test_densities_out_of_range_are_refused(density: float) -> None:
    with pytest.raises(InfeasibleDensity, match="above 0 and at most 1"):
        layer_densities({"a": (4, 4)}, density)


def test_a_layer_that_would_be_empty_is_named_with_the_least_density_that_works() -> None:
    shapes = {"large": (100, 100), "small": (1, 10)}
    with pytest.raises(InfeasibleDensity, match=r"small would keep none of its 10.*0\.05") as raised:
        active_counts(shapes, 0.01, "uniform")
    least = float(str(raised.value).rsplit(" ", 1)[1])
    assert min(active_counts(shapes, least, "uniform").values()) >= 1


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 20, bias=False), nn.LayerNorm((20, 2)))


def test_weights_of_layers_count_and_others_do_not() -> None:
    layers = nn.Sequential(nn.Embedding(5, 4), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), GCNConv(4, 3), model())
    names = ["1.weight", "3.lin.weight", "4.0.weight", "4.2.weight"]
    assert list(maskable_weights(layers)) == names
    assert list(maskable_weights(layers, exempt=names[:1])) == names[1:]
    with pytest.raises(MaskError, match="none of the weights"):
        maskable_weights(layers, exempt=["0.weight"])
    with pytest.raises(MaskError, match="no linear or convolution"):
        maskable_weights(nn.Embedding(5, 4))
    pruned = prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=0.5)
    with pytest.raises(MaskError, match=r"prune\.remove"):
        maskable_weights(pruned)


def test_tied_weights_are_one_mask() -> None:
    tied = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6), nn.Embedding(6, 6), nn.Linear(6, 6)])
    tied[1].weight = tied[0].weight
    tied[3].weight = tied[2].weight  # type: ignore[assignment]
    assert list(maskable_weights(tied)) == ["0.weight"]
    MaskSet.random(maskable_weights(tied), 0.5).apply(tied)
    assert int(tied[1].weight.count_nonzero()) == 18  # type: ignore[operator]


def test_random_masks_have_exact_counts_and_depend_on_seed_and_name_alone() -> None:
    weights = maskable_weights(model())
    masks = MaskSet.random(weights, 0.1, "erk", seed=3)
    assert masks.counts() == active_counts({n: w.shape for n, w in weights.items()}, 0.1, "erk")
    torch.rand(5)  # whatever else was drawn
    again = MaskSet.random(dict(reversed(weights.items())), 0.1, "erk", seed=3)
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    other = MaskSet.random(weights, 0.1, "erk", seed=4)
    assert not all(torch.equal(masks[name], other[name]) for name in masks)


def test_projection_keeps_the_largest_magnitudes_as_torch_prunes() -> None:
    torch.manual_seed(0)
    layers = model()
    weights = maskable_weights(layers)
    masks = MaskSet.project(weights, {"0.weight": 100, "2.weight": 7})
    for name, kept in (("0.weight", 100), ("2.weight", 7)):
        module = layers.get_submodule(name.partition(".")[0])
        prune.l1_unstructured(module, "weight", amount=module.weight.numel() - kept)
        assert torch.equal(masks[name], module.weight_mask.bool())  # type: ignore[union-attr,operator]


def test_projection_is_exact_where_values_tie() -> None:
    ties = MaskSet.project({"w": torch.tensor([0.0, 1, -1, 1, 0])}, {"w": 2})
    assert ties["w"].tolist() == [False, True, True, False, False]


def test_masks_survive_a_file(tmp_path: Path) -> None:
    masks = MaskSet.random(maskable_weights(model()), 0.2)
    masks.save(tmp_path / "masks.safetensors")
    loaded = MaskSet.load(tmp_path / "masks.safetensors")
    assert all(torch.equal(loaded[name], mask) for name, mask in masks.items())
    assert loaded.density == pytest.approx(0.2, abs=1e-3)


def test_files_and_models_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        MaskSet.load(tmp_path / "absent")
    (tmp_path / "text").write_text("no masks")
    with pytest.raises(MaskError, match="not a safetensors file"):
        MaskSet.load(tmp_path / "text")
    save_file({"0.weight": torch.zeros(3)}, tmp_path / "weights")
    with pytest.raises(MaskError, match="holds no masks"):
        MaskSet.load(tmp_path / "weights")
    with pytest.raises(MaskError, match="not boolean"):
        MaskSet({"0.weight": torch.zeros(3)})
    with pytest.raises(MaskError, match="at least one"):
        MaskSet({})
    masks = MaskSet.dense(maskable_weights(model()))
    with pytest.raises(MaskError, match=r"2\.weight is missing; 0\.weight has shape \(4, 30\)"):
        masks.apply(nn.Sequential(nn.Linear(30, 4)))
