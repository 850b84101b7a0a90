"""Native products against torch in float64, and bit for bit against themselves in other company."""

import numpy as np
import pytest
import torch
from decoding_helpers import decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core.native import extension
from tradeoff.engines.decoding import NativeKernels, reference
from tradeoff.nn.decoder import TORCH, Causal, Padded, Tree, Visibility

native = pytest.importorskip("tradeoff._native")
KERNELS = NativeKernels()
SIZES = st.sampled_from([1, 2, 3, 5, 7, 8, 13, 16, 31, 48, 67])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(weight: torch.Tensor, x: torch.Tensor, threads: int = 1) -> torch.Tensor:
    out = torch.full((len(x), len(weight)), torch.nan)
    native.skinny_linear(weight.numpy(), x.contiguous().numpy(), out.numpy(), threads)
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 64), SIZES, SIZES, st.integers(0, 99))
def test_a_linear_layer_is_exact(rows: int, outputs: int, width: int, seed: int) -> None:
    weight, x = normal(outputs, width, seed=seed), normal(rows, width, seed=seed + 1)
    exact = reference.linear(weight.double(), x.double())
    bound = reference.linear(weight.double().abs(), x.double().abs())
    assert ((linear(weight, x) - exact).abs() <= 1e-6 * bound).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 64), st.integers(0, 63), SIZES, SIZES, st.integers(1, 4))
def test_a_row_does_not_depend_on_the_others(
    rows: int, row: int, outputs: int, width: int, threads: int
) -> None:
    weight, x = normal(outputs, width), normal(64, width, seed=1)
    row = min(row, rows - 1)
    alone = linear(weight, x[row : row + 1])[0]
    assert torch.equal(linear(weight, x[:rows], threads)[row], alone)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 13, 18, 19, 64, 100])
def test_threads_and_long_inputs_change_no_bit(rows: int) -> None:
    weight, x = normal(811, 577), normal(rows, 577, seed=1)
    whole = linear(weight, x)
    assert torch.equal(whole, torch.cat([linear(weight, part) for part in x.split(1)]))
    for threads in (2, 3, 7):
        assert torch.equal(linear(weight, x, threads), whole)


def test_gaps_in_the_input_and_biases() -> None:
    weight, bias, x = normal(5, 12), normal(5, seed=1), normal(2, 3, 24, seed=2)
    gaps = x[:, :, ::2]
    out = KERNELS.linear(gaps, weight, bias)
    assert out.shape == (2, 3, 5)
    assert torch.equal(out, KERNELS.linear(gaps.contiguous(), weight, bias))
    assert torch.equal(out, KERNELS.linear(gaps, normal(12, 5).T.copy_(weight), bias))
    torch.testing.assert_close(out, TORCH.linear(gaps, weight, bias))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), SIZES, st.floats(0.1, 60))
def test_gates(rows: int, width: int, spread: float) -> None:
    gate, up = spread * normal(rows, width), normal(rows, width, seed=1)
    out = KERNELS.swiglu(gate, up)
    torch.testing.assert_close(
        out.double(), reference.swiglu(gate.double(), up.double()), rtol=1e-6, atol=1e-30
    )
    alone = [KERNELS.swiglu(one, other) for one, other in zip(gate.split(1), up.split(1), strict=True)]
    assert torch.equal(out, torch.cat(alone))


def test_gates_of_infinity_and_nan() -> None:
    gate = torch.tensor([[float("inf"), -float("inf"), float("nan"), -200.0, 200.0]])
    out = KERNELS.swiglu(gate, torch.ones(1, 5))[0]
    assert out[0] == torch.inf
    assert out[2].isnan()
    assert abs(out[3]) < 1e-30
    assert out[4] == 200


PARENTS = st.lists(st.integers(0, 63), min_size=1, max_size=20).map(
    lambda drawn: [-1] + [value % node - (value % 7 == 0) for node, value in enumerate(drawn[1:], start=1)]
)


def paths_of(tree: Tree) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in tree.ancestors]


@settings(max_examples=60, deadline=None)
@given(PARENTS, st.lists(st.integers(0, 37), min_size=1, max_size=3), SIZES, st.sampled_from([1, 2, 3]))
def test_a_tree_is_attended_as_its_paths_one_by_one(
    parents: list[int], offsets: list[int], width: int, group: int
) -> None:
    tree, batch, new = Tree.from_parents(parents), len(offsets), len(parents)
    slots = max(offsets) + new
    query = normal(batch, 2 * group, new, width)
    keys, values = normal(batch, 2, slots, width, seed=1), normal(batch, 2, slots, width + 3, seed=2)
    visible = Visibility(tree, tuple(offsets), new)
    out = KERNELS.attention(query, keys, values, visible, 0.3)
    exact = reference.tree_attention(
        query.double(), keys.double(), values.double(), offsets, paths_of(tree), 0.3
    )
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(out, TORCH.attention(query, keys, values, visible, 0.3), rtol=0, atol=1e-5)
    for row, offset in enumerate(offsets):
        for node, path in enumerate(paths_of(tree)):
            logical = [*range(offset), *(offset + slot for slot in path)]  # as if they had come one by one
            alone = KERNELS.attention(
                query[row : row + 1, :, node : node + 1],
                keys[row : row + 1, :, logical],
                values[row : row + 1, :, logical],
                Visibility(Causal(), (len(logical) - 1,), 1),
                0.3,
            )
            assert torch.equal(out[row, :, node], alone[0, :, 0])


def test_attention_of_long_texts_with_threads() -> None:
    query, keys, values = normal(2, 6, 4, 64), normal(2, 2, 700, 64, seed=1), normal(2, 2, 700, 64, seed=2)
    outs = []
    for threads in (1, 2, 5):
        out = torch.full((2, 6, 4, 64), torch.nan)
        offsets = np.array([696, 300])
        native.tree_attention(
            *(x.numpy() for x in (query, keys, values)),
            None,
            None,
            offsets,
            None,
            None,
            out.numpy(),
            0.1,
            threads,
        )
        outs.append(out)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 20), SIZES)
def test_latents(groups: int, new: int, offset: int, rank: int) -> None:
    query, rope_query = normal(2, groups, 3, new, rank), normal(2, groups, 3, new, 4, seed=1)
    latents = normal(2, groups, offset + new, rank, seed=2)
    rope_key = normal(2, offset + new, 4, seed=3)
    visible = Visibility(Causal(), (offset, offset), new)
    arguments = (query, latents, rope_query, rope_key, visible, 0.3)
    torch.testing.assert_close(
        KERNELS.latent_attention(*arguments), TORCH.latent_attention(*arguments), rtol=0, atol=1e-5
    )


def test_what_is_not_taken_is_torchs() -> None:
    weight, x = normal(5, 8), normal(3, 8, seed=1)
    for kind in (torch.float64, torch.bfloat16):
        assert torch.equal(
            KERNELS.linear(x.to(kind), weight.to(kind), None), TORCH.linear(x.to(kind), weight.to(kind), None)
        )
    leaf = weight.clone().requires_grad_()
    KERNELS.linear(x, leaf, None).sum().backward()
    assert torch.equal(leaf.grad, x.sum(0).expand(5, 8))
    seen = Visibility(torch.ones(2, 2, dtype=torch.bool).tril(), (0,), 2)
    query = normal(1, 2, 2, 8)
    assert torch.equal(
        KERNELS.attention(query, query, query, seen, 1.0), TORCH.attention(query, query, query, seen, 1.0)
    )


def test_a_decoder_with_native_kernels_can_be_trained() -> None:
    model, ids = decoder(), torch.arange(12).view(2, 6)
    model.loss(ids).backward()
    expected = model.blocks[0].ffn.gate.weight.grad.clone()
    model.zero_grad()
    model.kernels = KERNELS
    model.loss(ids).backward()
    assert torch.equal(model.blocks[0].ffn.gate.weight.grad, expected)


def test_without_the_extension_all_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEOFF_NATIVE", "0")
    extension.cache_clear()
    try:
        kernels = NativeKernels()
    finally:
        monkeypatch.undo()
        extension.cache_clear()
    x = normal(3, 8)
    assert torch.equal(kernels.linear(x, x, None), TORCH.linear(x, x, None))
    assert torch.equal(kernels.swiglu(x, x), TORCH.swiglu(x, x))


@torch.no_grad()
def test_a_padded_batch_has_the_bits_of_single_rows() -> None:
    model = decoder()
    model.kernels = KERNELS
    ids, lengths = torch.arange(60).view(3, 20), (20, 1, 13)
    batch = model.hidden(ids, mask=Padded(lengths))
    for row, length in enumerate(lengths):
        assert torch.equal(batch[row, :length], model.hidden(ids[row : row + 1, :length])[0])


def test_operands_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="different widths"):
        linear(normal(3, 4), normal(2, 5))
    with pytest.raises(ValueError, match="sees slots that are not there"):
        KERNELS.attention(*(normal(1, 1, 2, 4) for _ in range(3)), Visibility(Causal(), (1,), 2), 1.0)
