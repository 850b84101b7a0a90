"""Checkpoints in and out: safetensors folders as transformers writes them, and GGUF files."""

from tradeoff.nn.decoder.loading.pretrained import from_pretrained, save_pretrained, to_hf

__all__ = ["from_pretrained", "save_pretrained", "to_hf"]
