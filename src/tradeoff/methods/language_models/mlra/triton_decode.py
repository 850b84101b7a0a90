"""Triton kernels of absorbed attention: one program per row of the batch, latent and part of the cache.

Each program goes through its part of the slots block by block with an online softmax (Milakov, Gimelshein,
"Online normalizer calculation for softmax", 2018), so that a latent is read once for its score and its
weighted sum. A second kernel merges the parts by their maxima and sums. The scale is an argument: what is
derived from the width of a latent would be wrong, since the absorbed query has another width than the one
that the model was trained with.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from tradeoff.nn.decoder import Causal, InvalidInput, Padded, TorchKernels, Visibility

STAGES = 2
"""Blocks in flight."""
WARPS = 8
LEAST_ROWS = 16
"""Rows that a tensor core's product has at least."""


@triton.jit
def split_kernel(
    query, latents, rope_query, rope_key, lengths, sums, maxima, totals,
    latents_batch, latents_group, latents_slot, rope_batch, rope_slot,
    scale, groups, rows, splits, split_size,
    RANK: tl.constexpr, ROPE: tl.constexpr, PADDED_RANK: tl.constexpr, PADDED_ROPE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Unnormalized weighted sum, maximum and sum of weights of one part of the slots, for all rows."""
    pair, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, group = pair // groups, pair % groups
    row, column, rope_column = tl.arange(0, ROWS), tl.arange(0, PADDED_RANK), tl.arange(0, PADDED_ROPE)
    is_row, is_column, is_rope = row < rows, column < RANK, rope_column < ROPE
    q = tl.load(
        query + (pair * rows + row[:, None]) * RANK + column[None, :],
        mask=is_row[:, None] & is_column[None, :], other=0.0,
    )  # fmt: skip
    q_rope = tl.load(
        rope_query + (pair * rows + row[:, None]) * ROPE + rope_column[None, :],
        mask=is_row[:, None] & is_rope[None, :], other=0.0,
    )  # fmt: skip
    latents += batch * latents_batch + group * latents_group
    rope_key += batch * rope_batch
    length = tl.load(lengths + batch)
    first = split * split_size
    last = tl.minimum(first + split_size, length)
    maximum = tl.full([ROWS], float("-inf"), KIND)
    total = tl.zeros([ROWS], KIND)
    mixed = tl.zeros([ROWS, PADDED_RANK], KIND)
    for start in range(first, last, BLOCK):
        slot = (start + tl.arange(0, BLOCK)).to(tl.int64)
        is_slot = slot < last
        latent = tl.load(
            latents + slot[:, None] * latents_slot + column[None, :],
            mask=is_slot[:, None] & is_column[None, :], other=0.0,
        )  # fmt: skip
        rope = tl.load(
            rope_key + slot[:, None] * rope_slot + rope_column[None, :],
            mask=is_slot[:, None] & is_rope[None, :], other=0.0,
        )  # fmt: skip
        score = tl.dot(q, tl.trans(latent), out_dtype=KIND, input_precision="ieee")
        score = tl.dot(q_rope, tl.trans(rope), score, out_dtype=KIND, input_precision="ieee") * scale
        score = tl.where(is_slot[None, :], score, float("-inf"))
        higher = tl.maximum(maximum, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        shrink = tl.exp(maximum - higher)
        total = total * shrink + tl.sum(weight, 1)
        mixed = tl.dot(
            weight.to(latent.dtype), latent, mixed * shrink[:, None], out_dtype=KIND, input_precision="ieee"
        )
        maximum = higher
    place = (pair * splits + split) * rows + row
    tl.store(maxima + place, maximum, mask=is_row)
    tl.store(totals + place, total, mask=is_row)
    tl.store(sums + place[:, None] * RANK + column[None, :], mixed, mask=is_row[:, None] & is_column[None, :])


@triton.jit
def merge_kernel(
    sums, maxima, totals, out, rows, splits,
    RANK: tl.constexpr, PADDED_RANK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The parts of one row, weighted by their maxima; empty parts have the maximum -inf and weigh nothing."""
    pair, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, PADDED_RANK)
    is_column = column < RANK
    maximum = tl.full([1], float("-inf"), KIND)
    total = tl.zeros([1], KIND)
    mixed = tl.zeros([PADDED_RANK], KIND)
    for split in range(splits):
        place = (pair * splits + split) * rows + row
        part = tl.load(maxima + place + tl.arange(0, 1))
        higher = tl.maximum(maximum, part)
        shrink, weight = tl.exp(maximum - higher), tl.exp(part - higher)
        total = total * shrink + weight * tl.load(totals + place + tl.arange(0, 1))
        mixed = mixed * shrink + weight * tl.load(sums + place * RANK + column, mask=is_column, other=0.0)
        maximum = higher
    out += (pair * rows + row) * RANK
    tl.store(out + column, (mixed / total).to(out.dtype.element_ty), mask=is_column)


def absorbed_decode(
    query: Float[Tensor, "batch latents heads rank"],
    latents: Float[Tensor, "batch latents slots rank"],
    rope_query: Float[Tensor, "batch latents heads rope"],
    rope_key: Float[Tensor, "batch slots rope"],
    lengths: Int[Tensor, " batch"],
    scale: float,
    splits: int | None = None,
) -> Float[Tensor, "batch latents heads rank"]:
    """Weighted sums of latents for one new token in each row of a batch.

    Args:
        latents, rope_key: views of a cache; dense in the last dimension.
        lengths: slots that each row sees, at least 1.
        scale: of the scores.
        splits: parts of the cache; None for as many as fill the device.

    Raises:
        InvalidInput: ``lengths`` do not fit, the last dimension is strided, or ``splits`` is below 1.
    """
    batch, groups, rows, rank = query.shape
    slots, rope = rope_key.shape[1:]
    if lengths.shape != (batch,) or int(lengths.min()) < 1 or int(lengths.max()) > slots:
        raise InvalidInput(f"lengths {lengths.tolist()} for a batch of {batch} with {slots} slots")
    if latents.stride(-1) != 1 or rope_key.stride(-1) != 1:
        raise InvalidInput(f"strides {latents.stride()} and {rope_key.stride()}; the last must be 1")
    if splits is None:
        splits = _splits(batch * groups, slots, rank, query.device)
    if splits < 1:
        raise InvalidInput(f"{splits} parts of the cache; at least 1")
    block = block_of(rank)
    size = triton.cdiv(triton.cdiv(slots, splits), block) * block
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    compute = tl.float64 if kind == torch.float64 else tl.float32
    parts = (batch, groups, splits, rows)
    sums = torch.empty((*parts, rank), dtype=kind, device=query.device)
    maxima, totals = (torch.empty(parts, dtype=kind, device=query.device) for _ in range(2))
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    padded = max(16, triton.next_power_of_2(rank))
    split_kernel[(batch * groups, splits)](
        query.contiguous(), latents, rope_query.contiguous(), rope_key, lengths.to(query.device, torch.int32),
        sums, maxima, totals,
        latents.stride(0), latents.stride(1), latents.stride(2), rope_key.stride(0), rope_key.stride(1),
        scale, groups, rows, splits, size,
        RANK=rank, ROPE=rope, PADDED_RANK=padded, PADDED_ROPE=max(16, triton.next_power_of_2(rope)),
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(rows)), BLOCK=block, KIND=compute,
        num_stages=STAGES, num_warps=WARPS,
    )  # fmt: skip
    merge_kernel[(batch * groups, rows)](
        sums, maxima, totals, out, rows, splits, RANK=rank, PADDED_RANK=padded, KIND=compute
    )
    return out


class TritonKernels(TorchKernels):
    """The products of a decoder on a GPU, with :func:`absorbed_decode` for steps of one new token."""

    def latent_attention(
        self,
        query: Tensor,
        latents: Tensor,
        rope_query: Tensor,
        rope_key: Tensor,
        visible: Visibility,
        scale: float,
    ) -> Tensor:
        """See :class:`~tradeoff.nn.decoder.Kernels`; several new tokens and other masks go through torch."""
        arguments = (query, latents, rope_query, rope_key)
        if query.shape[3] != 1 or not isinstance(visible.mask, Causal | Padded) or torch.is_grad_enabled():
            return super().latent_attention(*arguments, visible, scale)
        lengths = torch.tensor(visible.offsets) + 1
        mixed = absorbed_decode(query[:, :, :, 0], latents, rope_query[:, :, :, 0], rope_key, lengths, scale)
        return mixed[:, :, :, None]


def block_of(rank: int) -> int:
    """Slots of a step: so many that a block of latents stays within 64 KiB."""
    return 64 if rank <= 256 else 32


def _splits(pairs: int, slots: int, rank: int, device: torch.device) -> int:
    """So many parts that every multiprocessor has two programs, none shorter than four blocks."""
    if device.type != "cuda":
        return 1
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    parts: int = max(1, min(triton.cdiv(2 * processors, pairs), slots // (4 * block_of(rank))))
    return parts
