"""Decoders from checkpoints, and checkpoints from decoders."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tradeoff.core.errors import MissingExtra
from tradeoff.nn.decoder.config import DecoderConfig
from tradeoff.nn.decoder.errors import CheckpointError, InvalidInput
from tradeoff.nn.decoder.loading.families import FAMILIES, Family, family_of
from tradeoff.nn.decoder.loading.files import Tensors, converted_gguf, read_config, write_folder
from tradeoff.nn.decoder.model import Decoder
from tradeoff.nn.decoder.moe_config import MoEConfig

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHOWN = 5
"""Names in a message."""


def from_pretrained(
    source: Path | str, dtype: torch.dtype = torch.float32, cache: Path | None = None
) -> Decoder:
    """A decoder with the weights of a checkpoint: Llama, Qwen 2 and 3, Mistral, Mixtral or DeepSeek-V3.

    Args:
        source: a folder with ``config.json`` and safetensors, a GGUF file or a folder with one, or a name on
            the Hugging Face hub.
        dtype: of the weights.
        cache: where copies of GGUF files are kept; None for the user's cache folder.

    Raises:
        InvalidInput: a type that weights cannot have.
        CheckpointError: no such checkpoint, damaged, of an unknown family, or with missing, unexpected or
            misshapen tensors, which the message lists.
        MissingExtra: a GGUF file or a name, and the packages to read it are absent.
    """
    if dtype not in DTYPES:
        raise InvalidInput(f"weights cannot be {dtype}; there are {', '.join(map(str, DTYPES))}")
    folder = _folder(source, cache)
    given = read_config(folder)
    family = family_of(given)
    with torch.device("meta"):
        model = Decoder(family.config(given)).to(dtype)
    model.to_empty(device="cpu").load_state_dict(_translated(model, family, Tensors(folder), folder))
    for layer in model.moe_layers:
        layer.reset_counters()
    return model.eval()


def save_pretrained(model: Decoder, folder: Path | str) -> None:
    """Write ``config.json`` and ``model.safetensors`` as transformers reads them.

    Raises:
        CheckpointError: no family of transformers has this configuration; the message names the fields.
    """
    family = next(family for family in FAMILIES.values() if family.belongs(model.config))
    given = family.describe(model.config) | {"dtype": str(model.embedding.weight.dtype).split(".")[1]}
    tensors: dict[str, Tensor] = {}
    for ours, tensor in model.state_dict().items():
        names = family.tensor_names(ours, _experts(model.config))
        parts = tensor.detach().cpu().unbind(0) if len(names) > 1 else (tensor.detach().cpu(),)
        if _has_latent_axis(ours):
            parts = tuple(part[0] for part in parts)
        tensors |= {name: part.clone() for name, part in zip(names, parts, strict=True)}
    write_folder(Path(folder), given, tensors)


def to_hf(model: Decoder) -> Any:
    """The model of transformers with the same weights, for comparison and export.

    Raises:
        CheckpointError: see :func:`save_pretrained`.
        MissingExtra: transformers is absent.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra("transformers", "llm") from error
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.embedding.weight.dtype)
    return theirs.eval()


def _folder(source: Path | str, cache: Path | None) -> Path:
    path = Path(source)
    if path.is_file():
        return converted_gguf(path, cache)
    if (path / "config.json").is_file():
        return path
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise CheckpointError(f"{path} holds no config.json and {len(files)} GGUF files; expected one")
        return converted_gguf(files[0], cache)
    if str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise CheckpointError(f"no checkpoint {source}")
    return _downloaded(str(source))


def _downloaded(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "llm") from error
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:  # what the hub's client raises for no network, no such name
        raise CheckpointError(f"no checkpoint {name} here, and it cannot be downloaded: {error}") from error


def _translated(model: Decoder, family: Family, stored: Tensors, folder: Path) -> dict[str, Tensor]:
    experts = _experts(model.config)
    expected = model.state_dict()
    names = {ours: family.tensor_names(ours, experts) for ours in expected}
    wanted = {name for group in names.values() for name in group}
    beyond = f"model.layers.{model.config.layers}."  # modules that predict further tokens
    known = {
        name
        for name in stored.names
        if name.endswith("rotary_emb.inv_freq")
        or name.startswith(beyond)
        or (name == "lm_head.weight" and model.head is None)
    }
    problems = _listed("missing", wanted - stored.names) + _listed(
        "unexpected", stored.names - wanted - known
    )
    if problems:
        raise CheckpointError(f"{folder} does not fit {family.architecture}: " + "; ".join(problems))
    state = {}
    for ours, group in names.items():
        tensor = torch.stack([stored[name] for name in group]) if len(group) > 1 else stored[group[0]]
        if _has_latent_axis(ours) or (len(group) == 1 and ".experts." in ours):
            tensor = tensor[None]
        if tensor.shape != expected[ours].shape:
            raise CheckpointError(
                f"{group[0]} of {folder} has shape {tuple(tensor.shape)}; "
                f"the configuration asks for {tuple(expected[ours].shape)}"
            )
        state[ours] = tensor
    return state


def _listed(label: str, names: set[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{label} {', '.join(sorted(names)[:SHOWN])}{more}"]


def _has_latent_axis(ours: str) -> bool:
    """Whether our tensor has a first axis of latents (one, in all known families) that theirs lacks."""
    return ".latent_norm." in ours or ours.endswith(".latent_up")


def _experts(config: DecoderConfig) -> int:
    return config.ffn.experts if isinstance(config.ffn, MoEConfig) else 0
