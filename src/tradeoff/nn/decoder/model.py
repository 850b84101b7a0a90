"""The decoder-only transformer."""

from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn.decoder.attention import make_attention
from tradeoff.nn.decoder.cache import KVCache
from tradeoff.nn.decoder.config import DecoderConfig
from tradeoff.nn.decoder.errors import CacheError, InvalidInput
from tradeoff.nn.decoder.feed_forward import GELU, MoE, MoEConfig, SwiGLU
from tradeoff.nn.decoder.kernels import TORCH, Kernels, at_least_float32
from tradeoff.nn.decoder.layers import Linear, Rotary, Rotation, UsesKernels, make_norm
from tradeoff.nn.decoder.masks import Causal, Mask, Visibility


class Block(nn.Module):
    """``h + m A(norm(h))``, then ``h + m F(norm(h))``, with the residual multiplier m."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.multiplier = config.residual_multiplier
        self.attention_norm = make_norm(config)
        self.attention = make_attention(config, layer)
        self.ffn_norm = make_norm(config)
        self.ffn = _feed_forward(config, layer)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, h: Tensor, rotation: Rotation | None, visible: Visibility, cache: KVCache | None
    ) -> Tensor:
        """One block; shape ``(batch, new, dim)`` to the same."""
        h = self._add(h, self.attention(self.attention_norm(h), rotation, visible, cache))
        x = self.ffn_norm(h)
        return self._add(
            h, self.ffn(x, visible.valid(x.device)) if isinstance(self.ffn, MoE) else self.ffn(x)
        )

    def _add(self, h: Tensor, branch: Tensor) -> Tensor:
        branch = self.dropout(branch)
        return h + (branch if self.multiplier == 1 else self.multiplier * branch)


class TiedHead(UsesKernels):
    """The output layer whose matrix is the embedding; it owns no weight."""

    def forward(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Logits."""
        return self.kernels.linear(hidden, weight, None)


class Decoder(nn.Module):
    """A decoder-only transformer, freshly initialized.

    ``model(ids)`` gives logits ``(batch, new, vocab)``. With a cache, ``ids`` are the tokens behind what it
    holds, and are kept in it, except for a :class:`Tree`, of which the caller keeps a path by
    ``cache.select``.

    Args:
        config: what it consists of.
        generator: draws the weights; None for torch's global one.

    Attributes:
        ranks: among which :func:`~tradeoff.nn.decoder.parallel.parallelize` shared it.
    """

    def __init__(self, config: DecoderConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.dim)
        self.positions = nn.Embedding(config.max_len, config.dim) if config.pos == "learned" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = make_norm(config)
        self.head = None if config.tie_embeddings else Linear(config.dim, config.vocab)
        self.tied_head = TiedHead()
        self.dropout = nn.Dropout(config.dropout)
        self._rotary = Rotary(config) if config.pos == "rope" else None
        self._kernels: Kernels = TORCH
        self.ranks = 1
        self.initialize(generator)

    @property
    def kernels(self) -> Kernels:
        """What computes linear layers and attention, in every layer; assign to replace it."""
        return self._kernels

    @kernels.setter
    def kernels(self, kernels: Kernels) -> None:
        self._kernels = kernels
        for module in self.modules():
            if isinstance(module, UsesKernels):
                module.kernels = kernels

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew: matrices normal, biases zero, gains one; see ``config.init``."""
        for name, parameter in self.named_parameters():
            owner, leaf = name.split(".")[-2:]
            zero = self.config.init == "zero_out" and {owner, leaf} & {"output", "down"}
            if leaf == "bias" or zero:
                parameter.zero_()
            elif leaf == "gain" or "norm" in owner:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, self.config.init_std, generator=generator)

    def forward(
        self,
        ids: Int[Tensor, "batch new"],
        positions: Int[Tensor, "rows new"] | None = None,
        mask: Mask | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch new vocab"]:
        """Logits of the next token at every position; see :meth:`hidden`."""
        return self.logits(self.hidden(ids, positions, mask, cache))

    def hidden(
        self,
        ids: Int[Tensor, "batch new"],
        positions: Int[Tensor, "rows new"] | None = None,
        mask: Mask | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch new dim"]:
        """The residual stream behind the final norm.

        Args:
            ids: token ids.
            positions: of the ids, one row for all or one each; None for those behind the cached text, in a
                tree by depth.
            mask: what a token sees of the others; None for causal.
            cache: the text before.

        Raises:
            InvalidInput: ids outside the vocabulary, positions outside ``max_len``, or shapes that differ.
            CacheError: the cache is of another model or batch.
            CacheOverflow: the cache is too short; it is unchanged.
        """
        if ids.ndim != 2 or 0 in ids.shape:
            raise InvalidInput(f"ids have shape {tuple(ids.shape)}; expected (batch, new), at least (1, 1)")
        if ids.dtype not in (torch.int64, torch.int32):
            raise InvalidInput(f"ids are of {ids.dtype}; expected int64 or int32")
        visible = self._visible(ids, mask, cache)
        positions = self._positions(ids, positions, visible)
        h = self._embed(ids, positions)
        rotation = self._rotary(positions, h.dtype, self._kernels) if self._rotary is not None else None
        for block in self.blocks:
            h = block(h, rotation, visible, cache)
        kept = visible.kept()
        if cache is not None and kept is not None:
            cache.commit(kept)
        out: Tensor = self.norm(h)
        return out

    def logits(self, hidden: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of what :meth:`hidden` gave."""
        out = self.tied_head(hidden, self.embedding.weight) if self.head is None else self.head(hidden)
        multiplier = self.config.logits_multiplier
        return cast(Tensor, out) if multiplier == 1 else multiplier * out

    def loss(self, ids: Int[Tensor, "batch length"], mask: Mask | None = None) -> Float[Tensor, ""]:
        """Mean cross entropy, in nats, of every token but the first given those before it."""
        logits = self(ids[:, :-1], mask=mask)
        return functional.cross_entropy(at_least_float32(logits.flatten(0, 1)), ids[:, 1:].flatten())

    @property
    def moe_layers(self) -> list[MoE]:
        """The mixture-of-experts layers, in order."""
        return [module for module in self.modules() if isinstance(module, MoE)]

    def aux_loss(self) -> Float[Tensor, ""]:
        """Auxiliary losses of the last forward pass in training, added over the layers and then forgotten."""
        total = torch.zeros((), device=self.embedding.weight.device)
        for layer in self.moe_layers:
            if layer.aux is not None:
                total = total + layer.aux
                layer.aux = None
        return total

    def new_cache(
        self, batch: int = 1, max_len: int | None = None, dtype: torch.dtype | None = None
    ) -> KVCache:
        """An empty cache of this model; by default as long as its context, in its own type."""
        weight = self.embedding.weight
        return KVCache(
            self.config.layers,
            batch,
            self.config.max_len if max_len is None else max_len,
            self.config.cache_entries(self.ranks),
            dtype or weight.dtype,
            weight.device,
        )

    def _visible(self, ids: Tensor, mask: Mask | None, cache: KVCache | None) -> Visibility:
        batch, new = ids.shape
        mask = Causal() if mask is None else mask
        if cache is None:
            return Visibility(mask, (0,) * batch, new)
        entries, layers = self.config.cache_entries(self.ranks), self.config.layers
        if (cache.layers, cache.entry_shapes) != (layers, entries):
            raise CacheError(
                f"the cache holds {cache.layers} layers of {cache.entry_shapes}; "
                f"the model has {layers} of {entries}"
            )
        if cache.batch != batch:
            raise CacheError(f"a cache of {cache.batch} rows for ids of {batch}")
        cache.require(new)
        return Visibility(mask, cache.lengths, new)

    def _positions(self, ids: Tensor, positions: Tensor | None, visible: Visibility) -> Tensor:
        batch, new = ids.shape
        if positions is None:
            positions = visible.positions()
        elif positions.ndim != 2 or positions.shape[1] != new or positions.shape[0] not in (1, batch):
            raise InvalidInput(f"positions have shape {tuple(positions.shape)} for ids of {tuple(ids.shape)}")
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= self.config.max_len:
            raise InvalidInput(f"positions {low} to {high} exceed the {self.config.max_len} of the model")
        return positions.to(ids.device)

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        try:
            h = self.embedding(ids)
        except IndexError:
            raise InvalidInput(
                f"ids {int(ids.min())} to {int(ids.max())} exceed the vocabulary of {self.config.vocab}"
            ) from None
        if self.config.embedding_multiplier != 1:
            h = self.config.embedding_multiplier * h
        if self.positions is not None:
            h = h + self.positions(positions)
        out: Tensor = self.dropout(h)
        return out

    def extra_repr(self) -> str:
        """The configuration."""
        return repr(self.config)


def _feed_forward(config: DecoderConfig, layer: int) -> nn.Module:
    bias = config.bias is True
    if isinstance(config.ffn, MoEConfig) and layer >= config.ffn.dense_layers:
        return MoE(config.dim, replace(config.ffn, hidden=config.ffn.expert_width(config.ffn_width)), layer)
    if "gelu" in (config.ffn, getattr(config.ffn, "activation", None)):
        return GELU(config.dim, config.ffn_width, bias)
    return SwiGLU(config.dim, config.ffn_width, bias)
