"""Tensor parallelism: every rank holds a share of the heads, latents, hidden units and vocabulary.

Weights become distributed tensors, of which a layer sees its rank's share; where the residual stream enters a
shared region its gradient is summed over the ranks, and where it leaves the outputs are (Shoeybi et al.,
"Megatron-LM", 2019). Latents are shared out as in multi-head low-rank attention (Songtao Liu et al., ICLR
2026).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.nn.utils import parametrize

from tradeoff.nn.decoder.attention import GroupedAttention, LatentAttention
from tradeoff.nn.decoder.errors import InvalidConfig
from tradeoff.nn.decoder.feed_forward import GELU, MoE, SwiGLU
from tradeoff.nn.decoder.layers import RMSNorm
from tradeoff.nn.decoder.model import Decoder

ORIGINAL = ".parametrizations."


def parallelize(model: Decoder, mesh: DeviceMesh) -> Decoder:
    """Share a decoder among the ranks of a one-dimensional mesh, in place.

    All ranks must hold the same weights and be given the same input; all get the same logits. One all-reduce
    of ``dim`` numbers a token follows every attention and every feed-forward layer. A cache made by
    ``model.new_cache`` holds the rank's own heads or latents.

    ================== ==========================================================================
    attention          a rank of P has
    ================== ==========================================================================
    mha, gqa, mqa      1/P of the query heads and the key heads that they read
    mla                1/P of the heads, and the whole latent
    gla2, gla4, mlra4  neighboring latents; behind one latent a rank, parts of the heads it serves
    mlra2              latents that serve the same part of the heads
    ================== ==========================================================================

    Weights that several ranks use stay whole on each, and so do the projections down to latents.

    Args:
        model: on the mesh's device.
        mesh: for example ``init_device_mesh("cpu", (4,))``.

    Raises:
        InvalidConfig: heads, latents, hidden units or vocabulary do not divide among the ranks; nothing was
            changed.
    """
    if mesh.ndim != 1:
        raise InvalidConfig(f"the mesh has {mesh.ndim} dimensions; pass the one of tensor parallelism")
    ranks = mesh.size()
    _check(model, ranks)
    share = _Share(mesh)
    for block in model.blocks:
        if isinstance(block.attention, LatentAttention):
            share.latent(block.attention)
        elif isinstance(block.attention, GroupedAttention):
            share.grouped(block.attention, model.config.heads, model.config.key_value_heads)
        share.feed_forward(cast(nn.Module, block.ffn))
    share.vocabulary(model)
    model.ranks = ranks
    return model


def full_tensors(model: Decoder, gradients: bool = False) -> dict[str, Tensor]:
    """Whole parameters (or their gradients) of a shared decoder under the names they had before.

    Every rank must call it.
    """
    found = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.grad if gradients else parameter.detach()
        if tensor is None:
            continue
        plain = name.replace(ORIGINAL, ".").removesuffix(".original") if ORIGINAL in name else name
        found[plain] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found


class _Own(nn.Module):
    """Makes a rank's share of a distributed weight from the weight; gradients go back to all owners.

    Args:
        indices: the rank's part along every dimension that is shared out; None where the placement itself is
            the share.
    """

    def __init__(self, indices: dict[int, Tensor] | None) -> None:
        super().__init__()
        self.indices = indices

    def forward(self, weight: DTensor) -> Tensor:
        if self.indices is None:
            return weight.to_local()
        local: Tensor = weight.to_local(grad_placements=[Partial()])
        for dim, index in self.indices.items():
            local = local.index_select(dim, index.to(local.device))
        return local


class _OwnBias(nn.Module):
    """A bias that is added to a sum over ranks: by the first of them."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, bias: DTensor) -> Tensor:
        local: Tensor = bias.to_local(grad_placements=[Partial()])
        return local if self.first else local * 0


class _Share:
    """Puts weights and layers of a model on a mesh."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.ranks = mesh.size()
        self.rank = mesh.get_local_rank()

    def grouped(self, layer: GroupedAttention, heads: int, key_heads: int) -> None:
        """Query heads, and the key heads that they read."""
        queries = [_chunk(heads, self.ranks, rank) for rank in range(self.ranks)]
        group = heads // key_heads
        keys = [sorted({head // group for head in part}) for part in queries]
        width = layer.width
        for linear, parts in ((layer.query, queries), (layer.key, keys), (layer.value, keys)):
            self.columns(linear, [_spread(part, width) for part in parts])
        if layer.gate is not None:
            self.columns(layer.gate, [_spread(part, width) for part in queries])
        for norm in (layer.query_norm, layer.key_norm):
            if norm is not None:
                self.norm(norm)
        self.rows(layer.output, [_spread(part, width) for part in queries])

    def latent(self, layer: LatentAttention) -> None:
        """Latents with their part of the heads."""
        plans = [_owned(layer, self.ranks, rank) for rank in range(self.ranks)]
        latents, heads = [plan[0] for plan in plans], [plan[1] for plan in plans]
        served = layer.latent_up.shape[1] // (layer.nope + layer.value_width)
        split = max(1, self.ranks // layer.latents)
        per_head = [
            _spread(_chunk(served, split, rank % split), layer.nope + layer.value_width)
            for rank in range(self.ranks)
        ]
        query = layer.query if layer.direct else layer.query_up
        self.columns(query, [_spread(part, layer.nope + layer.rope) for part in heads])
        if layer.gate is not None:
            self.columns(layer.gate, [_spread(part, layer.value_width) for part in heads])
        self.rows(layer.output, [_spread(part, layer.value_width) for part in heads])
        self.weight(layer, "latent_up", {0: latents, 1: per_head})
        total = layer.latents * layer.rank
        own = _spread(latents[self.rank], layer.rank) + list(range(total, total + layer.rope))
        self.shared_output(layer.latent_down, own)
        self.norm(layer.latent_norm, latents)
        parts = {latent % layer.shares for latent in latents[self.rank]}
        layer.latents, layer.shares = len(latents[self.rank]), len(parts)
        layer.branches = layer.latents // layer.shares

    def feed_forward(self, layer: nn.Module) -> None:
        """Hidden units, of every expert alike."""
        if isinstance(layer, SwiGLU | GELU):
            hidden = [_chunk(layer.up.out_features, self.ranks, rank) for rank in range(self.ranks)]
            for linear in (getattr(layer, "gate", None), layer.up):
                if linear is not None:
                    self.columns(linear, hidden)
            self.rows(layer.down, hidden)
        if isinstance(layer, MoE):
            if layer.shared is not None:
                self.feed_forward(layer.shared)
            experts = layer.experts
            hidden = [_chunk(experts.up.shape[1], self.ranks, rank) for rank in range(self.ranks)]
            for name, dim in (("gate", 1), ("up", 1), ("down", 2)):
                if getattr(experts, name) is not None:
                    self.weight(experts, name, {dim: hidden})
            experts.register_forward_pre_hook(self._enter_experts)
            experts.register_forward_hook(self._leave)

    def vocabulary(self, model: Decoder) -> None:
        """Rows of the embedding and of the output matrix; logits are gathered."""
        rows = [_chunk(model.config.vocab, self.ranks, rank) for rank in range(self.ranks)]
        first, size = rows[self.rank][0], len(rows[self.rank])
        foreign: list[Tensor] = []

        def enter(module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            (ids,) = arguments
            if int(ids.min()) < 0 or int(ids.max()) >= model.config.vocab:
                raise IndexError
            local = ids - first
            outside = (local < 0) | (local >= size)
            foreign[:] = [outside]
            return (local.masked_fill(outside, 0),)

        def leave(module: nn.Module, arguments: tuple[Tensor], out: Tensor) -> Tensor:
            return self.summed(out.masked_fill(foreign.pop()[..., None], 0))

        self.weight(model.embedding, "weight", {0: rows})
        model.embedding.register_forward_pre_hook(enter)
        model.embedding.register_forward_hook(leave)
        if model.head is None:
            model.tied_head.register_forward_pre_hook(self._enter)
        else:
            self.columns(model.head, rows)
        head = model.tied_head if model.head is None else model.head
        head.register_forward_hook(lambda module, arguments, out: self.gathered(out))

    def columns(self, linear: nn.Linear, outputs: Sequence[Sequence[int]]) -> None:
        """Give every rank some of a linear layer's outputs."""
        self.weight(linear, "weight", {0: outputs})
        if linear.bias is not None:
            self.weight(linear, "bias", {0: outputs})
        linear.register_forward_pre_hook(self._enter)

    def rows(self, linear: nn.Linear, inputs: Sequence[Sequence[int]]) -> None:
        """Give every rank some of a linear layer's inputs, and add the outputs."""
        self.weight(linear, "weight", {1: inputs})
        if linear.bias is not None:
            self._replace(linear, "bias", Replicate(), _OwnBias(self.rank == 0))
        linear.register_forward_hook(self._leave)

    def shared_output(self, linear: nn.Linear, own: Sequence[int]) -> None:
        """Compute a linear layer on every rank, which then uses its own part of the output."""
        index = torch.tensor(own)
        linear.register_forward_hook(
            lambda module, arguments, out: self.shared(out).index_select(-1, index.to(out.device))
        )

    def norm(self, norm: RMSNorm, rows: Sequence[Sequence[int]] | None = None) -> None:
        """Share out a gain, or let every rank use all of it on its own heads."""
        if norm.weight is not None:
            everything = [list(range(len(norm.weight)))] * self.ranks
            self.weight(norm, "weight", {0: everything if rows is None else rows})

    def weight(self, module: nn.Module, name: str, parts: dict[int, Sequence[Sequence[int]]]) -> None:
        """Share out a weight: ``parts[dim][rank]`` are a rank's indices."""
        shape = getattr(module, name).shape
        cut = {dim: chosen for dim, chosen in parts.items() if any(len(part) < shape[dim] for part in chosen)}
        placement: Placement = Replicate()
        own = _Own({dim: torch.tensor(chosen[self.rank]) for dim, chosen in cut.items()})
        if len(cut) == 1:
            ((dim, chosen),) = cut.items()
            if [index for part in chosen for index in part] == list(range(shape[dim])):
                placement, own = Shard(dim), _Own(None)
        self._replace(module, name, placement, own)

    def _replace(self, module: nn.Module, name: str, placement: Placement, own: nn.Module) -> None:
        weight = getattr(module, name)
        shared = distribute_tensor(weight.detach(), self.mesh, [placement])
        setattr(module, name, nn.Parameter(shared, requires_grad=weight.requires_grad))
        parametrize.register_parametrization(module, name, own, unsafe=True)

    def shared(self, x: Tensor) -> Tensor:
        """The same numbers on every rank, which each then uses for itself: gradients add up."""
        whole = DTensor.from_local(x, self.mesh, [Replicate()], run_check=False)
        return whole.to_local(grad_placements=[Partial()])

    def summed(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        part = DTensor.from_local(x, self.mesh, [Partial()], run_check=False)
        return part.redistribute(placements=[Replicate()]).to_local()

    def gathered(self, x: Tensor) -> Tensor:
        """The ranks' parts side by side, along the last dimension."""
        part = DTensor.from_local(x, self.mesh, [Shard(x.ndim - 1)], run_check=False)
        return part.redistribute(placements=[Replicate()]).to_local()

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.shared(arguments[0]), *arguments[1:])

    def _enter_experts(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x, routing, dispatch = arguments
        return self.shared(x), replace(routing, weights=self.shared(routing.weights)), dispatch

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> Tensor:
        return self.summed(out)


def _chunk(total: int, parts: int, part: int) -> list[int]:
    size = total // parts
    return list(range(part * size, (part + 1) * size))


def _spread(indices: Sequence[int], width: int) -> list[int]:
    """Rows of the heads (or latents) with these indices."""
    return [index * width + offset for index in indices for offset in range(width)]


def _owned(layer: LatentAttention, ranks: int, rank: int) -> tuple[list[int], list[int]]:
    """Latents of a rank, and the heads for which it computes, both ascending."""
    latents, shares = layer.latents, layer.shares
    served = layer.latent_up.shape[1] // (layer.nope + layer.value_width)
    split = max(1, ranks // latents)
    if ranks > latents:
        own = [rank // split]
    elif layer.branches > 1 and shares > 1:
        own = list(range(rank, latents, ranks))
    else:
        own = _chunk(latents, ranks, rank)
    parts = sorted({latent % shares for latent in own})
    chosen = _chunk(served, split, rank % split)
    return own, [part * served + head for part in parts for head in chosen]


def _check(model: Decoder, ranks: int) -> None:
    config = model.config

    def divides(what: str, number: int) -> None:
        if number % ranks:
            raise InvalidConfig(f"{number} {what} do not divide among {ranks} ranks")

    divides("tokens of the vocabulary", config.vocab)
    divides("heads", config.heads)
    for block in model.blocks:
        if isinstance(block.attention, LatentAttention):
            latents = block.attention.latents
            if latents % ranks and ranks % latents:
                raise InvalidConfig(f"{latents} latents do not divide among {ranks} ranks")
            served = config.heads // block.attention.shares
            if ranks > latents and served % (ranks // latents):
                raise InvalidConfig(
                    f"{served} heads of a latent do not divide among {ranks // latents} ranks"
                )
        elif config.key_value_heads % ranks and ranks % config.key_value_heads:
            raise InvalidConfig(f"{config.key_value_heads} key heads do not divide among {ranks} ranks")
        for layer in cast(nn.Module, block.ffn).modules():
            if isinstance(layer, SwiGLU | GELU):
                divides("hidden units", layer.up.out_features)
            elif isinstance(layer, MoE):
                divides("hidden units of an expert", layer.experts.up.shape[1])


__all__ = ["full_tensors", "parallelize"]
