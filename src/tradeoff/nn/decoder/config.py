"""What a decoder consists of, as one frozen value that is checked when it is made."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tradeoff.nn.decoder.errors import InvalidConfig
from tradeoff.nn.decoder.moe_config import MoEConfig

AttentionName = Literal["mha", "gqa", "mqa", "mla", "gla2", "gla4", "mlra2", "mlra4"]
FeedForwardName = Literal["swiglu", "gelu"]

LATENT_HEADS: dict[str, int] = {"mla": 1, "gla2": 2, "gla4": 4, "mlra2": 4, "mlra4": 4}
"""Variants that cache latents -> independent latents a token has."""

HEAD_SHARES: dict[str, int] = {"mla": 1, "gla2": 2, "gla4": 4, "mlra2": 2, "mlra4": 1}
"""Variants that cache latents -> contiguous parts of the heads, of which one latent serves one."""


@dataclass(frozen=True)
class RopeScaling:
    """Stretched rotary frequencies of a model that was trained for longer contexts.

    Attributes:
        kind: ``linear`` divides every frequency by ``factor``; ``llama3`` divides the low ones and blends
            between (Llama 3.1).
        factor: how much longer the context became.
        low, high: of ``llama3``: wavelengths above ``original_len / low`` are stretched in full, those below
            ``original_len / high`` stay.
        original_len: context of the first training, in tokens.

    Raises:
        InvalidConfig: another kind, or a number that is not positive.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    original_len: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise InvalidConfig(f"the rotary scaling is {self.kind!r}; it is linear or llama3")
        for name in ("factor", "low", "high", "original_len"):
            if not getattr(self, name) > 0:
                raise InvalidConfig(
                    f"{name} of the rotary scaling is {getattr(self, name)}; it must be positive"
                )


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer.

    With the defaults: bytes, pre-RMSNorm, rotary positions, SwiGLU, tied embeddings.

    Attributes:
        vocab: token ids are ``0 .. vocab - 1``.
        dim: width of the residual stream.
        layers: blocks; 0 leaves embedding, norm and output.
        heads: query heads.
        kv_heads: key and value heads of ``gqa`` (``mha`` has ``heads``, ``mqa`` one).
        head_dim: width of a head of ``mha``, ``gqa``, ``mqa``; None for ``dim / heads``.
        hidden: width of a dense feed-forward layer; None for 8/3 of ``dim`` (``swiglu``) or 4 of it.
        max_len: positions are ``0 .. max_len - 1``.
        norm: root-mean-square norm, or layer norm.
        norm_gain: norms have a learned gain (a layer norm also a bias).
        pos: rotary, learned absolute, or no positions.
        rope_style: which pairs rotate: element i with i + d/2 (``half``), or neighbors (``interleaved``).
        attention: keys and values per head (``mha``, ``gqa``, ``mqa``), or cached latents (``mla``, ``gla2``,
            ``gla4``, ``mlra2``, ``mlra4``).
        q_rank: width of the query's bottleneck of the latent variants; None for none.
        kv_rank: numbers cached per token over all latents, without the rotary key.
        nope_dim: width of a head's part without rotation, of the latent variants.
        rope_dim: width of the rotary part, whose key all heads share.
        value_dim: width of a value head of the latent variants; None for ``nope_dim``.
        latent_norm_eps: of the norms of latents and query bottleneck.
        latent_scale: the factors sqrt(dim / rank) behind the latent norms, and 1/sqrt(branches) on a sum of
            branches (Songtao Liu et al., ICLR 2026).
        attention_gate: heads' outputs times sigmoid(W x) before the output projection.
        ffn: a dense feed-forward layer, or a mixture of experts.
        tie_embeddings: the output matrix is the embedding.
        residual_multiplier: factor of every residual branch.
        logits_multiplier: factor of the logits.
        embedding_multiplier: factor of the embedding's rows.
        attn_scale: factor of the attention scores; None for 1 / sqrt(width of query and key).
        qk_norm: root-mean-square norm of every query and key head, before the rotation.
        bias: biases of query, key and value (``"qkv"``), of all linear layers but router and output (True).
        dropout: of the embedding and of every residual branch, in training.
        init: ``zero_out`` starts the output projections of attention and feed-forward at zero.
        init_std: standard deviation of all other matrices.

    Raises:
        InvalidConfig: a value is out of range or contradicts another; the message has the numbers.
    """

    vocab: int = 256
    dim: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden: int | None = None
    max_len: int = 2048
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_gain: bool = True
    pos: Literal["rope", "learned", "none"] = "rope"
    rope_base: float = 10000.0
    rope_style: Literal["half", "interleaved"] = "half"
    rope_scaling: RopeScaling | None = None
    attention: AttentionName = "mha"
    q_rank: int | None = None
    kv_rank: int | None = None
    nope_dim: int | None = None
    rope_dim: int | None = None
    value_dim: int | None = None
    latent_norm_eps: float = 1e-6
    latent_scale: bool = True
    attention_gate: bool = False
    ffn: FeedForwardName | MoEConfig = "swiglu"
    tie_embeddings: bool = True
    residual_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    attn_scale: float | None = None
    qk_norm: bool = False
    bias: bool | Literal["qkv"] = False
    dropout: float = 0.0
    init: Literal["normal", "zero_out"] = "normal"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab", "dim", "heads", "max_len"):
            _at_least(1, name, getattr(self, name))
        _at_least(0, "layers", self.layers)
        for name in ("kv_heads", "head_dim", "hidden", "q_rank", "kv_rank", "nope_dim", "value_dim"):
            if getattr(self, name) is not None:
                _at_least(1, name, getattr(self, name))
        for name, options in CHOICES.items():
            if getattr(self, name) not in options:
                raise InvalidConfig(f"{name} is {getattr(self, name)!r}; it is one of {', '.join(options)}")
        if not isinstance(self.ffn, MoEConfig) and self.ffn not in get_args(FeedForwardName):
            raise InvalidConfig(f"ffn is {self.ffn!r}; it is swiglu, gelu or a MoEConfig")
        if self.bias not in (True, False, "qkv"):
            raise InvalidConfig(f"bias is {self.bias!r}; it is True, False or 'qkv'")
        if not 0 <= self.dropout < 1:
            raise InvalidConfig(f"dropout is {self.dropout}; it lies in [0, 1)")
        for name in ("norm_eps", "latent_norm_eps", "rope_base", "init_std"):
            if not getattr(self, name) > 0:
                raise InvalidConfig(f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("residual_multiplier", "logits_multiplier", "embedding_multiplier", "attn_scale"):
            if not math.isfinite(getattr(self, name) or 0.0):
                raise InvalidConfig(f"{name} is {getattr(self, name)}; it must be a finite number")
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise InvalidConfig(f"rope_scaling is {self.rope_scaling!r}; it is a RopeScaling or None")
        if self.is_latent:
            self._check_latent()
        else:
            self._check_grouped()
        if self.pos == "rope" and self.rotary_width % 2:
            raise InvalidConfig(f"rotary positions need an even width, not {self.rotary_width}")

    def _check_grouped(self) -> None:
        for name in ("q_rank", "kv_rank", "nope_dim", "rope_dim", "value_dim"):
            if getattr(self, name) is not None:
                raise InvalidConfig(f"{name} is of the latent variants; attention is {self.attention}")
        if self.head_dim is None and self.dim % self.heads:
            raise InvalidConfig(f"dim {self.dim} is no multiple of {self.heads} heads; give head_dim")
        if self.attention == "gqa":
            if self.kv_heads is None:
                raise InvalidConfig("gqa needs kv_heads")
            if self.heads % self.kv_heads:
                raise InvalidConfig(f"{self.heads} heads are no multiple of {self.kv_heads} kv_heads")
        elif self.kv_heads not in (None, self.key_value_heads):
            raise InvalidConfig(
                f"{self.attention} with {self.heads} heads has {self.key_value_heads} kv_heads, "
                f"not {self.kv_heads}"
            )

    def _check_latent(self) -> None:
        for name in ("kv_rank", "nope_dim", "rope_dim"):
            if getattr(self, name) is None:
                raise InvalidConfig(f"{self.attention} needs {name}")
        for name in ("kv_heads", "head_dim"):
            if getattr(self, name) is not None:
                raise InvalidConfig(f"{name} is of mha, gqa and mqa; attention is {self.attention}")
        if self.qk_norm:
            raise InvalidConfig("qk_norm is of mha, gqa and mqa; latents have norms of their own")
        latents, shares = LATENT_HEADS[self.attention], HEAD_SHARES[self.attention]
        if self.latent_rank % latents:
            raise InvalidConfig(f"kv_rank {self.latent_rank} is no multiple of {latents} latents")
        if self.heads % shares:
            raise InvalidConfig(f"{self.attention} needs a multiple of {shares} heads, not {self.heads}")
        _at_least(2 if self.pos == "rope" else 0, "rope_dim", self.rope_dim or 0)

    @property
    def is_latent(self) -> bool:
        """Whether latents are cached instead of keys and values."""
        return self.attention in LATENT_HEADS

    @property
    def key_value_heads(self) -> int:
        """Key and value heads of ``mha``, ``gqa``, ``mqa``."""
        if self.attention == "gqa" and self.kv_heads is not None:
            return self.kv_heads
        return 1 if self.attention == "mqa" else self.heads

    @property
    def head_width(self) -> int:
        """Width of a head of ``mha``, ``gqa``, ``mqa``."""
        return self.head_dim or self.dim // self.heads

    @property
    def latent_rank(self) -> int:
        """Numbers in a token's latents together."""
        return self.kv_rank or 0

    @property
    def value_width(self) -> int:
        """Width of a value head."""
        return (self.value_dim or self.nope_dim or 0) if self.is_latent else self.head_width

    @property
    def score_width(self) -> int:
        """Width of query and key."""
        return (self.nope_dim or 0) + (self.rope_dim or 0) if self.is_latent else self.head_width

    @property
    def score_scale(self) -> float:
        """Factor of the attention scores."""
        return self.score_width**-0.5 if self.attn_scale is None else self.attn_scale

    @property
    def rotary_width(self) -> int:
        """Width that rotates."""
        return (self.rope_dim or 0) if self.is_latent else self.head_width

    @property
    def ffn_width(self) -> int:
        """Width of a dense feed-forward layer; ``swiglu`` has ``dim`` / 3, rounded up, times 8."""
        gated = (self.ffn.activation if isinstance(self.ffn, MoEConfig) else self.ffn) == "swiglu"
        return self.hidden or (-(-self.dim // 3) * 8 if gated else 4 * self.dim)

    def cache_entries(self, ranks: int = 1) -> dict[str, tuple[int | None, int]]:
        """What a layer caches of a token on one of ``ranks``: name -> (heads, width), heads None for one
        that all heads share.
        """
        if self.is_latent:
            latents = LATENT_HEADS[self.attention]
            own = -(-latents // ranks)
            return {"latents": (own, self.latent_rank // latents), "rope_key": (None, self.rope_dim or 0)}
        own = -(-self.key_value_heads // ranks)
        return {"keys": (own, self.head_width), "values": (own, self.head_width)}


CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("rms", "layer"),
    "pos": ("rope", "learned", "none"),
    "rope_style": ("half", "interleaved"),
    "attention": get_args(AttentionName),
    "init": ("normal", "zero_out"),
}


def _at_least(least: int, name: str, value: int) -> None:
    if not isinstance(value, int) or value < least:
        raise InvalidConfig(f"{name} is {value!r}; it must be an integer of at least {least}")
