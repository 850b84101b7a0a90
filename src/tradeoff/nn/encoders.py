"""Classifiers of texts on encoders of the BERT family."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tradeoff.core.errors import DataError, MissingExtra


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and progress of transformers."""
    from transformers.utils import logging

    tools: Any = logging  # its functions have no types
    level, bars = tools.get_verbosity(), tools.is_progress_bar_enabled()
    tools.set_verbosity_error()
    tools.disable_progress_bar()
    try:
        yield
    finally:
        tools.set_verbosity(level)
        if bars:
            tools.enable_progress_bar()


class TextClassifier(nn.Module):
    """An encoder, the mean of its last states over the tokens that are no padding, and a linear layer.

    Shape: token ids int64 ``(batch, tokens)`` to logits ``(batch, classes)``.

    Args:
        encoder: of transformers: ``input_ids`` and ``attention_mask`` to ``last_hidden_state``.
        width: of its states.
        classes: of the texts.
        padding: the token that stands for nothing.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int, padding: int = 0) -> None:
        super().__init__()
        self.encoder, self.padding = encoder, padding
        self.head = nn.Linear(width, classes)

    @classmethod
    def from_pretrained(cls, folder: Path, classes: int) -> Self:
        """A BERT encoder of a folder with ``config.json`` and ``model.safetensors``, and a new linear layer.

        Raises:
            DataError: the folder holds no such encoder.
            MissingExtra: transformers is not installed.
        """
        try:
            from transformers import BertConfig, BertModel
        except ImportError as error:
            raise MissingExtra("transformers", "llm") from error
        try:
            config = BertConfig.from_pretrained(folder, local_files_only=True)
            with _quiet():  # about the pooling layer, which is left out
                encoder: Any = BertModel.from_pretrained(
                    folder,
                    config=config,
                    add_pooling_layer=False,
                    local_files_only=True,
                    use_safetensors=True,
                )
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} holds no BERT encoder: {error}") from error
        return cls(encoder.float(), config.hidden_size, classes, config.pad_token_id or 0)

    def freeze_embeddings(self) -> None:
        """Train everything but the tables of words, positions and segments."""
        for parameter in self.encoder.get_submodule("embeddings").parameters():
            parameter.requires_grad_(False)

    def forward(self, ids: Int64[Tensor, "batch tokens"]) -> Float[Tensor, "batch classes"]:
        mask = (ids != self.padding).to(torch.int64)
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(states.dtype)
        out: Tensor = self.head((states * weights).sum(1) / weights.sum(1).clamp(min=1))
        return out
