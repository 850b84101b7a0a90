"""Safetensors and GGUF files, checked before they are read."""

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import filelock
import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tradeoff.core.errors import MissingExtra, StoreError
from tradeoff.core.files import read_json, write_json
from tradeoff.nn.decoder.errors import CheckpointError

HEADER_LIMIT = 100 * 2**20
"""Bytes that the header of a safetensors file may have."""


class Tensors:
    """The tensors of a checkpoint's folder, each read when it is asked for.

    Args:
        folder: holds ``model.safetensors``, or shards and their index.

    Raises:
        CheckpointError: a file is absent, truncated or no safetensors file; the message has the sizes.
    """

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        files = [folder / "model.safetensors"]
        if index.is_file():
            files = sorted({folder / Path(name).name for name in _json(index)["weight_map"].values()})
        self._files: dict[str, Any] = {}
        for file in files:
            _check_safetensors(file)
            try:
                opened = safe_open(file, framework="pt")
            except SafetensorError as error:
                raise CheckpointError(f"{file} is no safetensors file: {error}") from error
            self._files |= dict.fromkeys(list(opened.keys()), opened)  # type: ignore[no-untyped-call]

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint.

    Raises:
        CheckpointError: it is absent or no JSON object.
    """
    given = _json(folder / "config.json")
    if not isinstance(given, dict):
        raise CheckpointError(f"{folder / 'config.json'} is no JSON object")
    return given


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write ``config.json`` and ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def converted_gguf(file: Path, cache: Path | None = None) -> Path:
    """The folder of a GGUF file's de-quantized copy, made once per content.

    The copy holds ``config.json``, ``model.safetensors`` and, where the file has one, the tokenizer. It is
    written beside its place and moved there whole; processes that ask at the same time make it once.

    Args:
        file: the GGUF file.
        cache: where copies live; None for the user's cache folder.

    Raises:
        CheckpointError: the file is damaged or truncated.
        MissingExtra: transformers or gguf is absent.
    """
    _check_gguf(file)
    with file.open("rb") as opened:
        name = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    cache = cache or platformdirs.user_cache_path("tradeoff") / "decoder"
    target = cache / f"{file.stem}-{name}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / f"{target.name}.lock"):
        if not target.is_dir():
            temporary = cache / f".{target.name}.{uuid.uuid4().hex}"
            try:
                _convert(file, temporary)
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return target


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (KeyError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"transformers cannot read {file}: {error}") from error
    tensors = dict(model.state_dict())
    config = model.config.to_dict()
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    config.pop("quantization_config", None)
    write_folder(folder, json.loads(json.dumps(config, default=str)), tensors)
    if _gguf_fields(file) & {"tokenizer.ggml.tokens"}:
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def _gguf_module() -> Any:
    try:
        import gguf
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "gguf", "llm") from error
    return gguf


def _gguf_fields(file: Path) -> set[str]:
    return set(_gguf_module().GGUFReader(file).fields)


def _check_gguf(file: Path) -> None:
    gguf = _gguf_module()
    size = file.stat().st_size

    class Sizes(gguf.GGUFReader):  # type: ignore[misc,name-defined]
        """Reads names and shapes and learns how long the file must be, without touching data."""

        expected = 0

        def _build_tensors(self, start: int, fields: list[Any]) -> None:
            for field in fields:
                _, _, _, dims, kind, offset = field.parts
                block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind[0])]
                self.expected = max(self.expected, start + int(offset[0]) + int(dims.prod()) // block * width)

    try:
        expected = Sizes(file).expected
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file} is no GGUF file, or cut in its header ({size} bytes): {error}"
        ) from error
    if size < expected:
        raise CheckpointError(f"{file} is truncated: {size} bytes, its tensors need {expected}")


def _check_safetensors(file: Path) -> None:
    """Compare a file's size with what its header promises."""
    if not file.is_file():
        raise CheckpointError(f"no weight file {file}")
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > HEADER_LIMIT:
            raise CheckpointError(f"{file} is no safetensors file ({size} bytes)")
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} has a damaged header ({size} bytes): {error}") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise CheckpointError(f"{file} has {size} bytes; its header promises {expected}")


def _json(file: Path) -> Any:
    try:
        return read_json(file)
    except StoreError as error:
        raise CheckpointError(str(error)) from error
