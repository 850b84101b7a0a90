"""Prompts of all kinds with the backbone's own continuations, each made once and kept."""

from collections.abc import Sequence
from pathlib import Path

from tradeoff.core.context import Context
from tradeoff.core.files import digest

from .backbone import Backbone
from .distillation import Distilled, self_distill
from .heads import backbone_digest
from .prompts import KINDS, Split, encode_prompts, make_prompts

Prompts = dict[str, list[list[int]]]
"""Kind -> token ids of every prompt."""


def prompts_of(backbone: Backbone, per_kind: int, split: Split, corpus: str, skip: int = 0) -> Prompts:
    """As many prompts of every kind, without the first ``skip`` of their random order."""
    return {
        kind: encode_prompts(
            make_prompts(kind, per_kind + skip, split, corpus)[skip:], kind, backbone.tokenizer
        )
        for kind in KINDS
    }


def distilled(
    backbone: Backbone, prompts: Prompts, max_new_tokens: int, context: Context, batch_size: int = 100
) -> Distilled:
    """Continuations of these prompts, from the study's cache where they were made before.

    The cache knows them by the backbone's weights and the prompts' tokens.
    """
    flat = [ids for every in prompts.values() for ids in every]
    groups = [kind for kind, every in prompts.items() for _ in every]

    def build(folder: Path) -> None:
        total = len(flat) * max_new_tokens
        with context.progress(total, f"writing {len(flat)} continuations") as bar:
            found = self_distill(
                backbone.model,
                flat,
                max_new_tokens,
                end_tokens=backbone.end_tokens,
                groups=groups,
                batch_size=batch_size,
                advance=bar.advance,
            )
        found.save(folder / "distilled.safetensors")

    return Distilled.load(
        context.cache(_key(backbone, flat, max_new_tokens), build) / "distilled.safetensors"
    )


def _key(backbone: Backbone, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> dict[str, object]:
    return {
        "self-distilled by": backbone_digest(backbone.model),
        "prompts": digest([list(ids) for ids in prompts]),
        "max_new_tokens": max_new_tokens,
        "end_tokens": list(backbone.end_tokens),
    }
