"""What a rank of tensor parallelism keeps, reads and computes per token of context: exact counts.

Decoding reads the whole cache for every new token. With P ranks a rank reads its own heads or latents, and
whatever the ranks share; what cannot be divided, such as the one latent of MLA, is read by all of them.
"""

from dataclasses import dataclass

from tradeoff.nn.decoder import DecoderConfig, InvalidConfig
from tradeoff.nn.decoder.config import HEAD_SHARES, LATENT_HEADS

DEGREES = (1, 2, 4, 8)
"""Degrees of tensor parallelism for which every variant has a plan."""


@dataclass(frozen=True)
class RankTraffic:
    """One layer on one of P ranks; on the one with most to read, where key heads do not divide evenly.

    Attributes:
        variant: of attention.
        ranks: P.
        streams: latents, or key heads, in the rank's cache.
        rows: query heads that read each stream on this rank.
        width: numbers of a stream that make scores: a latent, or a key.
        value_width: numbers of a stream that are summed: the latent again, or a value.
        rope_width: numbers of the rotary key that all latents share.
    """

    variant: str
    ranks: int
    streams: int
    rows: int
    width: int
    value_width: int
    rope_width: int

    @property
    def is_latent(self) -> bool:
        """Whether the stream that makes scores is also what is summed."""
        return self.variant in LATENT_HEADS

    @property
    def numbers(self) -> int:
        """Numbers of the cache for one token of context, all of which each new token reads."""
        stream = self.width if self.is_latent else self.width + self.value_width
        return self.streams * stream + self.rope_width

    @property
    def multiply_adds(self) -> int:
        """Of scores and weighted sums, for one new token and one token of context."""
        return self.streams * self.rows * (self.width + self.rope_width + self.value_width)


def rank_traffic(config: DecoderConfig, ranks: int) -> RankTraffic:
    """What a layer costs one of ``ranks`` in decoding, latents by absorption.

    As :func:`~tradeoff.nn.decoder.parallel.parallelize` shares a layer out: ranks first get latents of their
    own, then parts of the heads that a latent serves. With ``ranks=1`` it is also the cost of data
    parallelism, where each device serves its own texts.

    Raises:
        InvalidConfig: ``ranks`` is none of 1, 2, 4, 8, or heads do not divide among them.
    """
    if ranks not in DEGREES:
        raise InvalidConfig(f"{ranks} ranks; tensor parallelism is of {', '.join(map(str, DEGREES))}")
    if config.heads % ranks:
        raise InvalidConfig(f"{config.heads} heads do not divide among {ranks} ranks")
    if not config.is_latent:
        own, group = config.heads // ranks, config.heads // config.key_value_heads
        streams = max(len({head // group for head in range(r * own, (r + 1) * own)}) for r in range(ranks))
        rows = -(-own // streams)
        width = config.head_width
        return RankTraffic(config.attention, ranks, streams, rows, width, width, 0)
    latents, served = LATENT_HEADS[config.attention], config.heads // HEAD_SHARES[config.attention]
    split = max(1, ranks // latents)
    rank = config.latent_rank // latents
    return RankTraffic(
        config.attention, ranks, max(1, latents // ranks), served // split, rank, rank, config.rope_dim or 0
    )
