"""One rank's attention over a long cache: what decoding a token costs, variant by variant."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from tradeoff.core.timing import SideBySide, side_by_side
from tradeoff.engines.kernels.device_timing import DeviceClock, threads
from tradeoff.nn.decoder import Causal, DecoderConfig, InvalidConfig, Kernels, TorchKernels, Visibility

from .traffic import RankTraffic, rank_traffic
from .variants import with_attention

REFERENCE = "mla"
"""The variant that others are compared with, on as many ranks."""
READ = "read"
EVICTED = 128 * 2**20
"""Bytes of the caches that a candidate goes through in turn: more than a last-level cache holds."""
MOST_COPIES = 16


class DecodeKernels(TorchKernels):
    """The products of a decoder, with a latent attention for one or a few new tokens.

    Scores are made with the slots first, ``latents @ query^T``: the libraries behind torch run through a
    matrix of many rows up to two and a half times faster when it is the left factor of so narrow a product
    than when it is the right one. ``model.kernels = DecodeKernels()`` puts them into a decoder.
    """

    def latent_attention(
        self,
        query: Tensor,
        latents: Tensor,
        rope_query: Tensor,
        rope_key: Tensor,
        visible: Visibility,
        scale: float,
    ) -> Tensor:
        """See :class:`~tradeoff.nn.decoder.Kernels`."""
        batch, groups, heads, new, rank = query.shape
        rows = heads * new
        flat = (query * scale).reshape(batch * groups, rows, rank)
        rope = (rope_query * scale).reshape(batch, groups * rows, -1)
        shared = (rope_key @ rope.mT).unflatten(-1, (groups, rows)).transpose(1, 2)  # type: ignore[no-untyped-call]
        by_slot = torch.baddbmm(shared.flatten(0, 1), latents.flatten(0, 1), flat.mT)
        scores = by_slot.mT.reshape(batch, groups, heads, new, -1)
        if not visible.is_full:
            scores = scores.masked_fill(~visible.dense(query.device)[:, None, None], float("-inf"))
        kind = torch.float32 if scores.dtype in (torch.bfloat16, torch.float16) else scores.dtype
        weights = scores.softmax(-1, dtype=kind).to(query.dtype).reshape(batch, groups, rows, -1)
        return (weights @ latents).reshape(query.shape)


@dataclass(frozen=True)
class Candidate:
    """A variant on a number of ranks; ``ranks=1`` is data parallelism."""

    variant: str
    ranks: int

    @property
    def name(self) -> str:
        """In tables."""
        return f"{self.variant} on {self.ranks}"


@dataclass(frozen=True)
class DecodeTime:
    """One layer's attention for one token on one rank.

    Attributes:
        traffic: what the rank reads and computes.
        context: tokens in the cache.
        bytes: of the cache, all of which is read.
        seconds: median of the rounds; processor time on a CPU.
        ratio: how many times longer ``mla`` takes on as many ranks; with its 95 % interval.
        data_parallel_ratio: how many times longer ``mla`` takes on one rank.
        bandwidth: bytes of the cache over seconds.
        limit: bytes a second at which this machine adds up a large tensor, taken by turns with the others.
    """

    traffic: RankTraffic
    context: int
    bytes: int
    seconds: float
    ratio: tuple[float, float, float]
    data_parallel_ratio: tuple[float, float, float]
    bandwidth: float
    limit: float


def attention_shape(heads: int = 16, head_dim: int = 128, kv_rank: int = 512) -> DecoderConfig:
    """A model of one layer with the published widths of heads, latents and rotary key, and fewer heads."""
    config = DecoderConfig(dim=heads * head_dim, layers=1, heads=heads)
    return with_attention(config, REFERENCE, kv_rank=kv_rank)


def decode_step(
    config: DecoderConfig,
    ranks: int,
    context: int,
    *,
    kernels: Kernels | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Callable[[], Tensor]:
    """A call that attends from one new token to a cache of random numbers, as a rank of ``ranks`` does.

    The call makes the attention of one layer, absorbed where latents are cached, and no projection. Each call
    takes another of up to 16 equal caches, so that none of 8 MiB or more stays in the processor's own memory.

    Args:
        config: of the whole model.
        context: tokens in the cache, the new one included.
        kernels: of the decoder; :class:`DecodeKernels` when not given.

    Raises:
        InvalidConfig: the layer does not divide among so many ranks.
    """
    own, chosen = rank_traffic(config, ranks), kernels or DecodeKernels()
    generator = torch.Generator().manual_seed(seed)
    visible = Visibility(Causal(), (context - 1,), 1)
    scale = config.score_scale

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    size = own.numbers * context * torch.finfo(dtype).bits // 8
    copies = range(min(MOST_COPIES, math.ceil(EVICTED / size)))
    if own.is_latent:
        latents = cycle(
            [(draw(1, own.streams, context, own.width), draw(1, context, own.rope_width)) for _ in copies]
        )
        query = draw(1, own.streams, own.rows, 1, own.width)
        rope_query = draw(1, own.streams, own.rows, 1, own.rope_width)

        def absorbed() -> Tensor:
            cached, rope_key = next(latents)
            return chosen.latent_attention(query, cached, rope_query, rope_key, visible, scale)

        return absorbed
    pairs = cycle([tuple(draw(1, own.streams, context, own.width) for _ in "kv") for _ in copies])
    heads = draw(1, own.streams * own.rows, 1, own.width)

    def grouped() -> Tensor:
        keys, values = next(pairs)
        return chosen.attention(heads, keys, values, visible, scale)

    return grouped


def time_decoding(
    candidates: Iterable[Candidate],
    context: int,
    *,
    shape: DecoderConfig | None = None,
    kernels: Kernels | None = None,
    rounds: int = 7,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[Candidate, DecodeTime]:
    """Time candidates by turns, with ``mla`` on as many ranks and on one; one thread on a CPU.

    Args:
        shape: model whose attention is varied; :func:`attention_shape` when not given.
        rounds: calls of each that are counted.
    """
    shape = shape or attention_shape()
    wanted = list(candidates)
    references = {Candidate(REFERENCE, each.ranks) for each in wanted} | {Candidate(REFERENCE, 1)}
    every = list(dict.fromkeys([*wanted, *sorted(references, key=lambda each: each.ranks)]))
    large = torch.zeros(EVICTED // 4, device=device)
    with threads(1), torch.no_grad():
        steps: dict[str, Callable[[], object]] = {
            each.name: decode_step(
                with_attention(shape, each.variant),
                each.ranks,
                context,
                kernels=kernels,
                device=device,
                dtype=dtype,
                seed=seed,
            )
            for each in every
        }
        times = side_by_side(
            {**steps, READ: large.sum}, rounds=rounds, sample_seconds=0.0, clock=DeviceClock(device)
        )
    limit = large.nbytes / times.timings[READ].median
    found = {}
    for each in wanted:
        own, seconds = (
            rank_traffic(with_attention(shape, each.variant), each.ranks),
            times.timings[each.name].median,
        )
        size = own.numbers * context * torch.finfo(dtype).bits // 8
        found[each] = DecodeTime(
            own,
            context,
            size,
            seconds,
            _ratio(times, Candidate(REFERENCE, each.ranks), each),
            _ratio(times, Candidate(REFERENCE, 1), each),
            size / seconds,
            limit,
        )
    return found


def _ratio(times: SideBySide, slow: Candidate, fast: Candidate) -> tuple[float, float, float]:
    return times.ratio(slow.name, fast.name)


def parse_contexts(texts: Sequence[str]) -> list[int]:
    """Numbers of tokens: ``16k`` is 16,384.

    Raises:
        InvalidConfig: not a positive number.
    """
    found = []
    for text in texts:
        digits, factor = (text[:-1], 1024) if text.lower().endswith("k") else (text, 1)
        if not digits.isdecimal() or int(digits) < 1:
            raise InvalidConfig(f"{text!r} is no number of tokens; write 4096 or 16k")
        found.append(int(digits) * factor)
    return found
