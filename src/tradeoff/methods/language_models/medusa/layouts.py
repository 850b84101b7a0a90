"""Heads in the layouts of other programs: of vLLM, and of the code that was published with the paper.

vLLM: ``config.json`` with ``model_type: medusa`` and ``model.safetensors`` with ``blocks.K.layers.B.weight``
and ``.bias``, ``lm_heads.K.weight`` (the first alone where all share the backbone's) and, with a draft
vocabulary, ``token_map``. Published: ``K.B.linear.weight`` and ``.bias`` of block B of head K, and
``K.B.weight`` of its output rows behind the last block, over the whole vocabulary.
"""

from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tradeoff.core.files import write_json
from tradeoff.nn.decoder import Decoder

from .errors import HeadsMismatch, InvalidSetting
from .heads import MedusaHeads, ResidualBlock, check_count, read_header, read_tensors

Layout = Literal["vllm", "public"]

PUBLIC_FILE = "medusa_lm_head.safetensors"
VLLM_FILE = "model.safetensors"


def export_heads(heads: MedusaHeads, folder: Path | str, layout: Layout = "vllm", base: str = "") -> None:
    """Write heads so that another program reads them.

    Args:
        heads: to write.
        folder: for ``config.json`` and the weights.
        layout: whose.
        base: name or path of the backbone, which the published layout keeps.

    Raises:
        InvalidSetting: no such layout, or a draft vocabulary, which the published layout has not.
    """
    if layout not in get_args(Layout):
        raise InvalidSetting(f"layouts are {', '.join(get_args(Layout))}, not {layout!r}")
    folder = Path(folder)
    config = heads.config
    if layout == "public":
        if config.draft_vocab is not None:
            raise InvalidSetting(
                f"the published layout has the whole vocabulary, not {config.draft_vocab} tokens; use vllm"
            )
        written: dict[str, Any] = {
            "medusa_num_heads": config.num_heads,
            "medusa_num_layers": config.num_blocks,
            "hidden_size": config.dim,
            "vocab_size": config.vocab,
            "base_model_name_or_path": base,
        }
        tensors, file = _public(heads), PUBLIC_FILE
    else:
        written = {
            "model_type": "medusa",
            "architectures": ["MedusaModel"],
            "hidden_size": config.dim,
            "vocab_size": config.vocab,
            "num_heads": config.num_heads,
            "num_hidden_layers": config.num_blocks,
            "truncated_vocab_size": config.draft_vocab or config.vocab,
            "medusa_fc_bias": True,
            "original_lm_head": config.share_lm_head,
            "logit_scale": heads.multiplier,
        }
        tensors, file = _vllm(heads), VLLM_FILE
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", written)
    save_file({name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}, folder / file)


@torch.no_grad()
def import_heads(folder: Path | str, model: Decoder) -> MedusaHeads:
    """Read heads of either layout for this backbone; these files do not say which one they were trained with.

    Raises:
        HeadsMismatch: the files are absent, damaged, incomplete or of another width or vocabulary.
    """
    folder = Path(folder)
    given = read_header(folder)
    vllm = given.get("model_type") == "medusa"
    count, blocks = ("num_heads", "num_hidden_layers") if vllm else ("medusa_num_heads", "medusa_num_layers")
    missing = {count, blocks} - given.keys()
    if missing:
        raise HeadsMismatch(f"{folder / 'config.json'} has no {', '.join(sorted(missing))}")
    tensors = read_tensors(folder / (VLLM_FILE if vllm else PUBLIC_FILE))
    for name, expected in (("hidden_size", model.config.dim), ("vocab_size", model.config.vocab)):
        if given.get(name, expected) != expected:
            raise HeadsMismatch(f"the heads have {name} {given[name]}; the backbone has {expected}")
    check_count(given[count], given[blocks], tensors)
    share = bool(given.get("original_lm_head", False))
    heads = MedusaHeads.from_backbone(model, given[count], given[blocks], share, tensors.get("token_map"))
    wanted = _vllm(heads) if vllm else _public(heads)
    if not given.get("medusa_fc_bias", True):
        wanted = {name: x for name, x in wanted.items() if not name.endswith(".bias")}
    problems = [name for name, x in wanted.items() if name not in tensors or tensors[name].shape != x.shape]
    if problems:
        raise HeadsMismatch(f"{folder} lacks, or has in another shape, {', '.join(problems[:5])}")
    for name, ours in wanted.items():
        if name == "lm_heads.0.weight" and share and not torch.equal(tensors[name].to(ours), ours):
            raise HeadsMismatch(f"{name} of {folder} is not the output matrix of this backbone")
        if not (name == "lm_heads.0.weight" and share):
            ours.copy_(tensors[name])
    return heads


def _vllm(heads: MedusaHeads) -> dict[str, Tensor]:
    """Our own tensors by their names in vLLM."""
    named: dict[str, Tensor] = {}
    for k, block, leaf, tensor in _linears(heads):
        named[f"blocks.{k}.layers.{block}.{leaf}"] = tensor
    for k, table in enumerate(_tables(heads)):
        named[f"lm_heads.{k}.weight"] = table
    if heads.token_map is not None:
        named["token_map"] = heads.token_map
    return named


def _public(heads: MedusaHeads) -> dict[str, Tensor]:
    """Our own tensors by their names in the published code, which writes a matrix for every head."""
    named: dict[str, Tensor] = {}
    for k, block, leaf, tensor in _linears(heads):
        named[f"{k}.{block}.linear.{leaf}"] = tensor
    tables = _tables(heads) * (heads.num_heads if heads.config.share_lm_head else 1)
    for k, table in enumerate(tables):
        named[f"{k}.{heads.config.num_blocks}.weight"] = table
    return named


def _linears(heads: MedusaHeads) -> list[tuple[int, int, str, Tensor]]:
    return [
        (k, b, leaf, getattr(cast(ResidualBlock, block).linear, leaf).data)
        for k, head in enumerate(heads.blocks)
        for b, block in enumerate(cast(nn.Sequential, head))
        for leaf in ("weight", "bias")
    ]


def _tables(heads: MedusaHeads) -> list[Tensor]:
    return [heads.table] if heads.config.share_lm_head else list(heads.table.data.unbind(0))
