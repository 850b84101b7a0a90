"""Weights and configuration of a decoder of any variant, in a folder of their own.

Published families have names for MLA alone, so that the others have no place in a checkpoint of transformers.
"""

from dataclasses import fields
from pathlib import Path

import torch

from tradeoff.nn.decoder import CheckpointError, Decoder, DecoderConfig, MoEConfig, RopeScaling
from tradeoff.nn.decoder.loading.files import Tensors, read_config, write_folder

from .variants import document


def save(model: Decoder, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``."""
    write_folder(
        folder, document(model.config), {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    )


def load(folder: Path, config: DecoderConfig | None = None) -> Decoder:
    """The decoder that :func:`save` wrote.

    Args:
        config: what the caller expects; None for what the folder says.

    Raises:
        CheckpointError: a file is absent or damaged, or holds tensors of another model, such as another
            variant of attention; the message lists those that are missing, unexpected or misshapen.
    """
    stored = Tensors(folder)
    config = config or _configuration(folder)
    with torch.device("meta"):
        model = Decoder(config)
    expected = model.state_dict()
    lists = {
        "missing": sorted(expected.keys() - stored.names),
        "unexpected": sorted(stored.names - expected.keys()),
    }
    tensors = {name: stored[name] for name in expected.keys() & stored.names}
    lists["misshapen"] = sorted(name for name, each in tensors.items() if each.shape != expected[name].shape)
    problems = [f"{what} {', '.join(names)}" for what, names in lists.items() if names]
    if problems:
        raise CheckpointError(f"{folder} is no checkpoint of {config.attention}: {'; '.join(problems)}")
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _configuration(folder: Path) -> DecoderConfig:
    given = read_config(folder)
    known = {field.name for field in fields(DecoderConfig)}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise CheckpointError(f"{folder / 'config.json'} has no configuration of a decoder: {unknown}")
    try:
        for name, kind in (("ffn", MoEConfig), ("rope_scaling", RopeScaling)):
            if isinstance(given.get(name), dict):
                given[name] = kind(**given[name])
        return DecoderConfig(**given)
    except TypeError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
