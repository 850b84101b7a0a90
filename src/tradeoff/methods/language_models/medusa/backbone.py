"""A backbone with its tokenizer: SmolLM2, a checkpoint of your own, or a tiny random decoder for tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tradeoff.core.context import usable_device
from tradeoff.core.errors import MissingExtra
from tradeoff.data.checkpoints import smollm2
from tradeoff.nn.decoder import Decoder, DecoderConfig
from tradeoff.nn.decoder.loading import from_pretrained
from tradeoff.nn.decoder.loading.files import converted_gguf, read_config

from .prompts import ByteTokenizer

SMOLLM2 = "smollm2"
RANDOM = "random"


@dataclass(frozen=True)
class Backbone:
    """A language model to decode.

    Attributes:
        model: in evaluation mode.
        tokenizer: of transformers, or :class:`ByteTokenizer`.
        end_tokens: ids that end a text.
        checkpoint: folder or name, for programs that read it themselves; None for a random model.
    """

    model: Decoder
    tokenizer: Any
    end_tokens: tuple[int, ...]
    checkpoint: str | None


def load_backbone(source: str, device: str = "cpu") -> Backbone:
    """The backbone of this name.

    Args:
        source: ``smollm2``, ``random`` (two layers over bytes), a folder or GGUF file of a Llama-family
            checkpoint with its tokenizer, or a name on the Hugging Face hub.
        device: to compute on.

    Raises:
        DataError: SmolLM2 is not here.
        CheckpointError: the checkpoint is absent, damaged or of an unknown family.
        DeviceError: the device is not here.
        MissingExtra: transformers is absent.
    """
    device = usable_device(device)
    if source == RANDOM:
        return random_backbone(device=device)
    path = smollm2() if source == SMOLLM2 else Path(source)
    folder = converted_gguf(path) if path.is_file() else path
    model = from_pretrained(folder if folder.exists() else source)
    tokenizer = load_tokenizer(folder if folder.exists() else source)
    known = folder if folder.is_dir() else None
    checkpoint = source if known is None else str(known)
    return Backbone(model.to(device), tokenizer, _end_tokens(tokenizer, known), checkpoint)


def random_backbone(seed: int = 0, device: str = "cpu") -> Backbone:
    """Two layers over bytes; random weights, large enough that a text does not end in a loop at once."""
    config = DecoderConfig(
        vocab=256, dim=32, layers=2, heads=4, attention="gqa", kv_heads=2, max_len=512, init_std=0.3
    )
    model = Decoder(config, torch.Generator().manual_seed(seed)).eval()
    return Backbone(model.to(device), ByteTokenizer(), (), None)


def load_tokenizer(folder: Path | str) -> Any:
    """The tokenizer of a checkpoint, by transformers."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra("transformers", "llm") from error
    return AutoTokenizer.from_pretrained(folder)


def _end_tokens(tokenizer: Any, folder: Path | None) -> tuple[int, ...]:
    """Of configuration and tokenizer, and the end of a document that instruction-tuned models write, too."""
    given: Any = read_config(folder).get("eos_token_id") if folder is not None else None
    found: set[int] = set(given if isinstance(given, Sequence) else [] if given is None else [given])
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    if "<|endoftext|>" in vocabulary:
        found.add(vocabulary["<|endoftext|>"])
    return tuple(sorted(found))
