"""The attention variants that are compared, and configurations of equal size with each of them.

A variant changes how many weights attention has. A comparison is fair when the feed-forward layers make up
for it: :func:`convert` changes a configuration's attention and sets the feed-forward width so that the
parameters stay the same.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from tradeoff.core.errors import UnknownName
from tradeoff.core.suggest import did_you_mean
from tradeoff.nn.decoder import Block, Decoder, DecoderConfig, InvalidConfig, MoEConfig
from tradeoff.nn.decoder.config import AttentionName
from tradeoff.nn.decoder.loading.families import family_of
from tradeoff.nn.decoder.loading.files import read_config

VARIANTS: tuple[AttentionName, ...] = get_args(AttentionName)

GROUP = 4
"""Query heads that share a key head in ``gqa``, unless the configuration says otherwise."""
MULTIPLE = 8
"""Of which the widths that this module chooses are multiples."""


@dataclass(frozen=True)
class Published:
    """What distinguishes a variant of the paper's 2.9-billion-parameter model (its public configuration)."""

    hidden: int
    q_rank: int | None = None


PUBLISHED: dict[AttentionName, Published] = {
    "mha": Published(8192),
    "mqa": Published(10152),
    "gqa": Published(9728),
    "mla": Published(9448, 1536),
    "gla2": Published(10048, 1024),
    "gla4": Published(10136, 1024),
    "mlra2": Published(10048, 1024),
    "mlra4": Published(9880, 1024),
}


def published(variant: str) -> DecoderConfig:
    """The paper's model with one attention variant: 24 layers of width 3072, 24 heads of 128.

    Raises:
        UnknownName: no such variant.
    """
    name = known(variant)
    row = PUBLISHED[name]
    model = DecoderConfig(
        vocab=50304, dim=3072, layers=24, heads=24, hidden=row.hidden, max_len=2048, init="zero_out"
    )
    latent: dict[str, Any] = {"kv_rank": 512, "nope_dim": 128, "rope_dim": 64, "q_rank": row.q_rank}
    if name == "gqa":
        return replace(model, attention=name, kv_heads=6)
    return replace(model, attention=name, **(latent if row.q_rank else {}))


def known(variant: str) -> AttentionName:
    """The variant of this name.

    Raises:
        UnknownName: there is none.
    """
    for name in VARIANTS:
        if name == variant:
            return name
    raise UnknownName(f"unknown attention {variant!r}{did_you_mean(variant, VARIANTS)}")


def read(source: str) -> DecoderConfig:
    """The configuration that a text names: a variant of the paper's model, or a checkpoint's folder.

    Args:
        source: one of :data:`VARIANTS`, or a folder (or file) with the ``config.json`` of a Llama, Qwen,
            Mistral, Mixtral or DeepSeek-V3 model of transformers.

    Raises:
        UnknownName: neither.
        CheckpointError: the file is damaged, or of a family that the decoder does not know.
    """
    path = Path(source)
    if source in VARIANTS or not path.exists():
        return published(source)
    given = read_config(path.parent if path.is_file() else path)
    return family_of(given).config(given)


def parameter_count(config: DecoderConfig) -> int:
    """Trainable numbers of a decoder, tied ones once; nothing is allocated."""
    dense = (
        min(config.layers, config.ffn.dense_layers) if isinstance(config.ffn, MoEConfig) else config.layers
    )
    alike = ((0, dense), (config.layers - 1, config.layers - dense))
    with torch.device("meta"):
        outside = _numbers(Decoder(replace(config, layers=0)))
        return outside + sum(count * _numbers(Block(config, layer)) for layer, count in alike if count)


def with_attention(
    config: DecoderConfig,
    variant: str,
    *,
    kv_heads: int | None = None,
    kv_rank: int | None = None,
    q_rank: int | None = None,
    rope_dim: int | None = None,
) -> DecoderConfig:
    """The configuration with another attention, everything else unchanged.

    Latent variants keep ranks and widths where the configuration has them. Otherwise they get the proportions
    of the paper's model: latents of 4 heads' widths, a rotary key of half a head, and queries through a third
    of the model's width (``mla``: half). Non-latent variants get heads of the width without rotation.

    Args:
        kv_heads: of ``gqa``; None for a quarter of the heads.
        kv_rank, q_rank, rope_dim: of latent variants; None for the above.

    Raises:
        UnknownName: no such variant.
        InvalidConfig: the variant does not fit, such as latents whose width is no multiple of 4.
    """
    name = known(variant)
    head = (config.nope_dim or 0) if config.is_latent else config.head_width
    plain = replace(
        config,
        attention="mha",
        head_dim=head,
        kv_heads=None,
        q_rank=None,
        kv_rank=None,
        nope_dim=None,
        rope_dim=None,
        value_dim=None,
        latent_scale=True,
    )
    if name in ("mha", "mqa"):
        return replace(plain, attention=name)
    if name == "gqa":
        groups = kv_heads or config.kv_heads or max(1, config.heads // GROUP)
        return replace(plain, attention=name, kv_heads=groups)
    if config.qk_norm:
        raise InvalidConfig(f"qk_norm is of mha, gqa and mqa; {name} has norms of its own")
    part = 2 if name == "mla" else 3
    return replace(
        plain,
        attention=name,
        head_dim=None,
        nope_dim=head,
        value_dim=config.value_dim,
        latent_scale=config.latent_scale,
        kv_rank=kv_rank or config.kv_rank or 4 * head,
        rope_dim=rope_dim or config.rope_dim or max(2, head // 4 * 2),
        q_rank=q_rank or config.q_rank or max(MULTIPLE, config.dim // part // MULTIPLE * MULTIPLE),
    )


def with_parameters(config: DecoderConfig, target: int, multiple: int = MULTIPLE) -> DecoderConfig:
    """The configuration whose feed-forward width brings its parameters nearest to a number.

    Args:
        config: a dense decoder, or one with experts, whose own width is then set.
        target: parameters, embeddings included.
        multiple: of which the width is one.

    Raises:
        InvalidConfig: the rest of the model alone has more parameters; the message has the numbers.
    """
    one, two = (parameter_count(_with_width(config, factor * multiple)) for factor in (1, 2))
    factor = 1 + round((target - one) / (two - one))
    if factor < 1:
        raise InvalidConfig(
            f"{config.attention} has {one:,} parameters with a feed-forward width of {multiple}; "
            f"it cannot come down to {target:,}"
        )
    return _with_width(config, factor * multiple)


def convert(
    config: DecoderConfig, variant: str, *, multiple: int = MULTIPLE, **sizes: int | None
) -> DecoderConfig:
    """A configuration of as many parameters with another attention.

    >>> from tradeoff.nn.decoder import DecoderConfig
    >>> config = DecoderConfig(dim=128, layers=4, heads=8, hidden=384)
    >>> convert(config, "mlra4").hidden
    408

    Args:
        multiple: of which the feed-forward width is one.
        sizes: see :func:`with_attention`.

    Raises:
        UnknownName: no such variant.
        InvalidConfig: the variant does not fit, or cannot have so few parameters.
    """
    return with_parameters(with_attention(config, variant, **sizes), parameter_count(config), multiple)


def document(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a configuration that are not at their defaults, as JSON values."""
    default = asdict(DecoderConfig())
    given = asdict(config)
    return {name: value for name, value in given.items() if value != default[name] or name == "attention"}


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _with_width(config: DecoderConfig, width: int) -> DecoderConfig:
    if isinstance(config.ffn, MoEConfig):
        return replace(config, ffn=replace(config.ffn, hidden=width))
    return replace(config, hidden=width)
