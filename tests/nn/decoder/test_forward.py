"""The forward pass against itself: in pieces, as a tree, padded; and against slow formulas."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tradeoff.nn.decoder import (
    CacheError,
    CacheOverflow,
    Causal,
    Decoder,
    DecoderConfig,
    InvalidConfig,
    InvalidInput,
    KVCache,
    MoEConfig,
    Padded,
    RopeScaling,
    Tree,
)

LATENT_VARIANTS = ("mla", "gla2", "gla4", "mlra2", "mlra4")
BASE = DecoderConfig(vocab=40, dim=24, layers=2, heads=4, max_len=64, init_std=0.3)
LATENT = {"attention": "mla", "kv_rank": 8, "nope_dim": 4, "rope_dim": 4}
VARIANTS = {
    "mha": BASE,
    "gqa": replace(BASE, attention="gqa", kv_heads=2),
    "mqa": replace(BASE, attention="mqa", head_dim=8),
    "learned": replace(BASE, pos="learned", norm="layer", ffn="gelu", bias=True, tie_embeddings=False),
    "interleaved": replace(BASE, rope_style="interleaved", qk_norm=True, attention_gate=True, bias="qkv"),
    "scaled": replace(
        BASE,
        pos="none",
        residual_multiplier=0.5,
        logits_multiplier=0.25,
        embedding_multiplier=3.0,
        attn_scale=0.1,
    ),
    **{name: replace(BASE, **LATENT | {"attention": name, "q_rank": 6}) for name in LATENT_VARIANTS},
    "mla-direct": replace(BASE, **LATENT, attention_gate=True, value_dim=3, bias=True, latent_scale=False),
    "moe": replace(BASE, ffn=MoEConfig(experts=4, active=2, hidden=8, shared=1, dense_layers=1)),
    "dtop_p": replace(BASE, ffn=MoEConfig(experts=4, hidden=8, router="dtop_p", activation="gelu")),
    "sigmoid": replace(BASE, ffn=MoEConfig(4, hidden=8, router="sigmoid", groups=2, gate_scale=2.0)),
}
PARENTS = (-1, 0, 0, 1, 1, 2, -1, 3)


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Decoder:
    generator = torch.Generator().manual_seed(5)
    return Decoder(VARIANTS[request.param], generator).double().eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_pieces_equal_the_whole(model: Decoder) -> None:
    ids = tokens(2, 17)
    cache = model.new_cache(batch=2, max_len=17)
    pieces = [model(part, cache=cache) for part in ids.split([5, 1, 1, 7, 3], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids), rtol=0, atol=1e-10)
    assert cache.lengths == (17, 17)


@torch.no_grad()
def test_a_tree_equals_its_paths(model: Decoder) -> None:
    prompt, nodes = tokens(1, 6), tokens(1, len(PARENTS))
    tree = Tree.from_parents(PARENTS)
    cache = model.new_cache(max_len=20)
    model(prompt, cache=cache)
    hidden = model.hidden(nodes, mask=tree, cache=cache)
    assert cache.lengths == (6,)
    for node in range(len(PARENTS)):
        path = tree.ancestors[node].nonzero().flatten()
        alone = model.hidden(torch.cat((prompt, nodes[:, path]), 1))[:, -1]
        torch.testing.assert_close(hidden[:, node], alone, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_selected_path_continues_the_text(model: Decoder) -> None:
    prompt, nodes, after = tokens(1, 6), tokens(1, len(PARENTS)), tokens(1, 2)
    cache = model.new_cache(max_len=20)
    model(prompt, cache=cache)
    model(nodes, mask=Tree.from_parents(PARENTS), cache=cache)
    cache.select([0, 2, 5])
    whole = model(torch.cat((prompt, nodes[:, [0, 2, 5]], after), 1))
    torch.testing.assert_close(model(after, cache=cache), whole[:, -2:], rtol=0, atol=1e-10)


@torch.no_grad()
def test_padded_rows_equal_single_ones(model: Decoder) -> None:
    ids, lengths = tokens(3, 9), (4, 9, 1)
    cache = model.new_cache(batch=3, max_len=16)
    prefill = model(ids, mask=Padded(lengths), cache=cache)
    step = model(ids[:, :2], cache=cache)
    assert cache.lengths == (6, 11, 3)
    for row, length in enumerate(lengths):
        alone = model(torch.cat((ids[row, :length], ids[row, :2]))[None])[0]
        torch.testing.assert_close(prefill[row, :length], alone[:length], rtol=0, atol=1e-10)
        torch.testing.assert_close(step[row], alone[length:], rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_matrix_as_mask(model: Decoder) -> None:
    ids = tokens(2, 7)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    torch.testing.assert_close(model(ids, mask=causal), model(ids), rtol=0, atol=1e-10)
    torch.testing.assert_close(model(ids, mask=causal.expand(2, 7, 7)), model(ids), rtol=0, atol=1e-10)


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_positions_are_an_argument_and_only_differences_count(style: str) -> None:
    model = Decoder(replace(BASE, rope_style=style)).double()
    ids = tokens(2, 5)
    positions = torch.tensor([[3, 9, 4, 30, 5]])
    shifted = model(ids, positions + 21)
    torch.testing.assert_close(model(ids, positions), shifted, rtol=0, atol=1e-10)
    assert not torch.allclose(model(ids), shifted, atol=1e-4)
    both = torch.cat((positions, torch.arange(5)[None]))
    torch.testing.assert_close(model(ids, both)[1], model(ids)[1], rtol=0, atol=1e-10)


def test_one_layer_equals_the_formula() -> None:
    config = replace(
        BASE,
        layers=1,
        attention="gqa",
        kv_heads=2,
        residual_multiplier=0.5,
        logits_multiplier=2.0,
        attn_scale=0.3,
    )
    model = Decoder(config, torch.Generator().manual_seed(0)).double()
    ids = tokens(1, 6)
    block = model.blocks[0]

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).rsqrt()

    def turn(x: torch.Tensor, position: int) -> torch.Tensor:
        out = x.clone()
        half = len(x) // 2
        for i in range(half):
            angle = torch.tensor(position / config.rope_base ** (2 * i / len(x)), dtype=torch.float64)
            out[i] = x[i] * angle.cos() - x[i + half] * angle.sin()
            out[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin()
        return out

    h = model.embedding.weight[ids[0]]
    x = norm(h)
    query = (x @ block.attention.query.weight.T).view(6, 4, 6)
    key = (x @ block.attention.key.weight.T).view(6, 2, 6)
    value = (x @ block.attention.value.weight.T).view(6, 2, 6)
    heads = torch.zeros(6, 4, 6, dtype=torch.float64)
    for t in range(6):
        for head in range(4):
            scores = torch.stack(
                [0.3 * turn(query[t, head], t) @ turn(key[s, head // 2], s) for s in range(t + 1)]
            )
            heads[t, head] = scores.softmax(0) @ value[: t + 1, head // 2]
    h = h + 0.5 * heads.flatten(1) @ block.attention.output.weight.T
    x = norm(h)
    gated = functional.silu(x @ block.ffn.gate.weight.T) * (x @ block.ffn.up.weight.T)
    h = h + 0.5 * gated @ block.ffn.down.weight.T
    expected = 2.0 * norm(h) @ model.embedding.weight.T
    torch.testing.assert_close(model(ids)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["mha", "mlra4", "moe"])
def test_zero_out_starts_as_the_embedding(name: str) -> None:
    model = Decoder(replace(VARIANTS[name], init="zero_out"))
    ids = tokens(1, 5)
    torch.testing.assert_close(model.hidden(ids), model.norm(model.embedding(ids)))


def test_kernels_are_replaced_everywhere() -> None:
    class Counting(type(Decoder(BASE).kernels)):  # type: ignore[misc]
        calls = 0

        def linear(self, x, weight, bias):  # type: ignore[no-untyped-def]
            self.calls += 1
            return super().linear(x, weight, bias)

    model = Decoder(BASE)
    model.kernels = Counting()
    model(tokens(1, 3))
    assert model.kernels.calls == 2 * 7 + 1


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_equal_finite_differences(name: str) -> None:
    config = replace(VARIANTS[name], dim=8, layers=2, vocab=5, max_len=8)
    model = Decoder(config, torch.Generator().manual_seed(0)).double()
    ids = tokens(2, 5) % 5
    generator = torch.Generator().manual_seed(2)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(model.loss(ids), parameters)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))

    def at(step: float) -> torch.Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
            loss = model.loss(ids)
            for p, d in zip(parameters, direction, strict=True):
                p -= step * d
        return loss

    torch.testing.assert_close((at(1e-6) - at(-1e-6)) / 2e-6, slope.detach(), rtol=1e-6, atol=1e-8)


def test_dropout_only_in_training() -> None:
    model = Decoder(replace(BASE, dropout=0.5))
    ids = tokens(1, 5)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize("name", VARIANTS)
def test_seeded(name: str) -> None:
    one, two = (Decoder(VARIANTS[name], torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 25}, "25 is no multiple of 4"),
        ({"heads": 0}, "heads is 0"),
        ({"attention": "gqa"}, "gqa needs kv_heads"),
        ({"attention": "gqa", "kv_heads": 3}, "4 heads are no multiple of 3"),
        ({"attention": "mqa", "kv_heads": 2}, "1 kv_heads, not 2"),
        ({"attention": "flash"}, "'flash'"),
        ({"kv_rank": 8}, "kv_rank is of the latent"),
        ({"attention": "mla"}, "mla needs kv_rank"),
        (
            {"attention": "mlra4", "kv_rank": 10, "nope_dim": 4, "rope_dim": 4},
            "10 is no multiple of 4 latents",
        ),
        (
            {"attention": "mlra2", "heads": 3, "kv_rank": 8, "nope_dim": 4, "rope_dim": 4},
            "multiple of 2 heads, not 3",
        ),
        ({"attention": "mla", "kv_rank": 8, "nope_dim": 4, "rope_dim": 3}, "even width, not 3"),
        ({"head_dim": 5}, "even width, not 5"),
        ({"dropout": 1.0}, "1.0"),
        ({"ffn": "relu"}, "'relu'"),
        ({"bias": "all"}, "'all'"),
        ({"norm_eps": 0.0}, "must be positive"),
        ({"rope_scaling": {"type": "linear"}}, "it is a RopeScaling"),
        ({"attn_scale": float("nan")}, "attn_scale is nan"),
        ({"residual_multiplier": float("inf")}, "residual_multiplier is inf"),
    ],
)
def test_bad_configs(change: dict, words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        replace(BASE, **change)


@pytest.mark.parametrize(("kind", "factor"), [("yarn", 2.0), ("linear", 0.0), ("llama3", float("nan"))])
def test_bad_rotary_scalings(kind: Any, factor: float) -> None:
    with pytest.raises(InvalidConfig, match="rotary scaling is"):
        RopeScaling(kind, factor)


def test_unknown_fields() -> None:
    with pytest.raises(TypeError):
        DecoderConfig(width=3)  # type: ignore[call-arg]


def test_bad_input() -> None:
    model = Decoder(BASE)
    with pytest.raises(InvalidInput, match="0 to 40 exceed the vocabulary of 40"):
        model(torch.tensor([[0, 40]]))
    with pytest.raises(InvalidInput, match="0 to 64 exceed the 64"):
        model(tokens(1, 65))
    with pytest.raises(InvalidInput, match=r"\(1, 4\) for ids of \(1, 5\)"):
        model(tokens(1, 5), torch.arange(4)[None])
    with pytest.raises(InvalidInput, match="5 nodes for 4"):
        model(tokens(1, 4), mask=Tree.from_parents([-1, 0, 1, 2, 3]))
    with pytest.raises(InvalidInput, match="padded lengths"):
        model(tokens(2, 4), mask=Padded((4, 5)))
    with pytest.raises(InvalidInput, match="expected bool"):
        model(tokens(2, 4), mask=torch.ones(4, 4))
    with pytest.raises(InvalidInput, match="expected"):
        model(tokens(2, 4)[0])
    with pytest.raises(InvalidInput, match=r"ids are of torch.float32; expected int64"):
        model(torch.zeros(1, 4))
    with pytest.raises(InvalidInput, match="the mask is 'causal'"):
        model(tokens(2, 4), mask="causal")


def test_bad_caches() -> None:
    model = Decoder(BASE)
    with pytest.raises(CacheError, match="3 rows for ids of 1"):
        model(tokens(1, 4), cache=model.new_cache(batch=3))
    with pytest.raises(CacheError, match="the model has 2"):
        model(tokens(1, 4), cache=Decoder(VARIANTS["gqa"]).new_cache())
    cache = model.new_cache(max_len=6)
    model(tokens(1, 5), cache=cache)
    before = {name: tensor.clone() for name, tensor in cache.storage.items()}
    with pytest.raises(CacheOverflow, match="2 tokens behind 5 exceed the cache's 6"):
        model(tokens(1, 2), cache=cache)
    assert cache.lengths == (5,)
    assert all(torch.equal(cache.storage[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[1, 0], [0, 0]], "node 1 does not see itself"),
        ([[1, 1], [0, 1]], "node 0 sees node 1 behind it"),
        ([[1, 0, 0], [1, 1, 0], [0, 1, 1]], "node 2 does not see node 0"),
        ([[1, 0, 0], [0, 1, 0], [1, 1, 1]], "no path"),
    ],
)
def test_bad_trees(rows: list, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Tree(torch.tensor(rows, dtype=torch.bool))


def test_tree_words_and_depths() -> None:
    tree = Tree.from_parents([-1, *range(63)])
    assert tree.depths == tuple(range(64))
    assert tree.words.tolist() == [*((1 << (i + 1)) - 1 for i in range(63)), -1]
    with pytest.raises(InvalidInput, match="65 nodes"):
        _ = Tree.from_parents([-1] * 65).words
    with pytest.raises(InvalidInput, match="node 1 has parent 1"):
        Tree.from_parents([-1, 1])


SHAPES = {"keys": (2, 3), "shared": (None, 2)}


class Tokens:
    """A cache as lists: the reference."""

    def __init__(self, batch: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.pending: list[list[int]] = []


def check(cache: KVCache, model: Tokens) -> None:
    assert cache.lengths == tuple(len(row) for row in model.rows)
    for name, tensor in cache.storage.items():
        for row, expected in enumerate(model.rows):
            for layer in range(cache.layers):
                held = tensor[layer, row].narrow(-2, 0, len(expected))
                wanted = torch.tensor(expected, dtype=torch.float32)[:, None].expand(held.shape) + layer
                assert torch.equal(held, wanted), name


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_cache_operations_equal_lists_of_tokens(data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 3))
    cache, model, next_token = KVCache(2, batch, 12, SHAPES), Tokens(batch), 0
    for _ in range(data.draw(st.integers(1, 12))):
        kind = data.draw(
            st.sampled_from(["append", "append", "commit", "rollback", "select", "fork", "rows"])
        )
        if kind == "append":
            new = data.draw(st.integers(1, 6))
            written = torch.arange(next_token, next_token + batch * new).view(batch, new)
            next_token += batch * new
            values = written.float()
            entries = [
                {
                    "keys": (values + layer)[:, None, :, None].expand(batch, 2, new, 3),
                    "shared": (values + layer)[:, :, None].expand(batch, new, 2),
                }
                for layer in range(2)
            ]
            if max(len(row) for row in model.rows) + new > 12:
                with pytest.raises(CacheOverflow):
                    cache.append(0, entries[0])
            else:
                views = [cache.append(layer, entry) for layer, entry in enumerate(entries)]
                assert views[0]["keys"].shape[2] == max(cache.lengths) + new
                model.pending = written.tolist()
        elif kind == "commit":
            count = data.draw(st.integers(0, cache.pending))
            cache.commit(count)
            for row, new_tokens in zip(model.rows, model.pending, strict=False):
                row.extend(new_tokens[:count])
            model.pending = []
        elif kind == "rollback":
            counts = [data.draw(st.integers(0, len(row))) for row in model.rows]
            cache.rollback(counts)
            model.rows = [row[: len(row) - count] for row, count in zip(model.rows, counts, strict=True)]
            model.pending = []
        elif kind == "select":
            paths = [
                data.draw(st.permutations(range(cache.pending)))[: data.draw(st.integers(0, cache.pending))]
                for _ in range(batch)
            ]
            cache.select(paths)
            for row, path, new_tokens in zip(model.rows, paths, model.pending or [[]] * batch, strict=True):
                row.extend(new_tokens[index] for index in path)
            model.pending = []
        else:
            if kind == "fork":
                copies = data.draw(st.integers(1, 2)) if batch <= 2 else 1
                rows = [row for row in range(batch) for _ in range(copies)]
                other = cache.fork(copies)
            else:
                rows = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=3))
                other = cache.batch_select(rows)
            cache.storage["keys"].fill_(-1)  # what was copied is independent of it
            cache, batch = other, len(rows)
            model.rows, model.pending = [list(model.rows[row]) for row in rows], []
        check(cache, model)


def test_cache_errors_and_bytes() -> None:
    cache = Decoder(VARIANTS["gqa"]).new_cache(batch=2, max_len=8)
    assert cache.bytes_per_token() == 2 * 2 * 2 * 6 * 4
    assert cache.bytes_per_token(tp=2) == 2 * 2 * 6 * 4 == cache.bytes_per_token(tp=4)
    assert cache.nbytes == 8 * 2 * cache.bytes_per_token()
    for wrong in (
        lambda: cache.commit(1),
        lambda: cache.rollback(1),
        lambda: cache.select([0]),
        lambda: cache.select([[], [], []]),
        lambda: cache.batch_select([2]),
        lambda: cache.fork(0),
        lambda: cache.bytes_per_token(tp=0),
        lambda: Decoder(BASE).new_cache(max_len=0),
        lambda: KVCache(1, 0, 1, SHAPES),
    ):
        with pytest.raises(CacheError):
            wrong()


def test_cache_converts_at_insertion() -> None:
    model = Decoder(BASE)
    cache = model.new_cache(dtype=torch.bfloat16)
    out = model(tokens(1, 4), mask=Causal(), cache=cache)
    assert cache.storage["keys"].dtype == torch.bfloat16
    assert out.dtype == torch.float32
