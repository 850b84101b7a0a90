"""A client's keys on disk: the secret one, readable by its owner only, and the evaluation keys."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tradeoff.core.errors import DataError
from tradeoff.engines.ckks.backends import Secret, secret
from tradeoff.engines.ckks.errors import KeysMismatch
from tradeoff.engines.ckks.planning import Plan
from tradeoff.engines.transport import KeysExist

SECRET, EVALUATION, RECORD = "secret.bin", "evaluation.bin", "keys.json"
_MAX_SECRET = 64 << 20
_MAX_RECORD = 1 << 16


@dataclass
class Keys:
    """The keys of one client for one plan (or for others with the same parameters and rotations).

    Attributes:
        secret: decrypts; evaluation: goes to servers; digest: SHA-256 of it, by which servers know it.
        folder: where they are kept, None if nowhere.
    """

    secret: Secret[Any, Any]
    evaluation: bytes
    digest: str
    folder: Path | None = None

    @classmethod
    def generate(cls, plan: Plan) -> Self:
        """Fresh keys, in memory only."""
        key = secret(plan.backend, plan.parameters).generate(plan.parameters)
        evaluation = key.evaluation_keys(plan.steps, plan.relinearize)
        return cls(key, evaluation, hashlib.sha256(evaluation).hexdigest())

    @classmethod
    def create(cls, plan: Plan, folder: Path | str) -> Self:
        """Fresh keys in a folder.

        Raises:
            KeysExist: there are keys already; none are overwritten.
        """
        folder = Path(folder)
        there = [name for name in (SECRET, EVALUATION, RECORD) if (folder / name).exists()]
        if there:
            raise KeysExist(f"{folder} holds {', '.join(there)} already; keys are never overwritten")
        folder.mkdir(parents=True, exist_ok=True)
        keys = cls.generate(plan)
        keys.folder = folder
        _write_new(folder / SECRET, keys.secret.save(), 0o600)
        _write_new(folder / EVALUATION, keys.evaluation, 0o644)
        record = {"fits": plan.keys_digest, "evaluation": keys.digest, "releases": 0}
        _write_new(folder / RECORD, json.dumps(record, indent=2).encode() + b"\n", 0o644)
        return keys

    @classmethod
    def load(cls, plan: Plan, folder: Path | str) -> Self:
        """The keys of a folder.

        Raises:
            KeysMismatch: they were made for other parameters or rotations, or are damaged.
            DataError: there are none.
        """
        folder = Path(folder)
        record = _read_record(folder)
        if record["fits"] != plan.keys_digest:
            raise KeysMismatch(f"the keys in {folder} were made for another plan: make new ones for this")
        try:
            if (folder / SECRET).stat().st_size > _MAX_SECRET:
                raise KeysMismatch(f"{folder / SECRET} is too large for a key")
            data, evaluation = (folder / SECRET).read_bytes(), (folder / EVALUATION).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the keys in {folder}: {error.strerror}") from None
        digest = hashlib.sha256(evaluation).hexdigest()
        if digest != record["evaluation"]:
            raise KeysMismatch(f"{folder / EVALUATION} is damaged, or of other keys than {folder / SECRET}")
        key = secret(plan.backend, plan.parameters).load(plan.parameters, data)
        return cls(key, evaluation, digest, folder)

    def count_release(self) -> int:
        """Note that one more result leaves the key owner; how many have, this one included."""
        if self.folder is None:
            self._released = getattr(self, "_released", 0) + 1
            return self._released
        record = _read_record(self.folder)
        record["releases"] += 1
        partial = self.folder / f"{RECORD}.new"
        partial.write_text(json.dumps(record, indent=2) + "\n")
        partial.replace(self.folder / RECORD)
        return int(record["releases"])


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        if (folder / RECORD).stat().st_size > _MAX_RECORD:
            raise DataError(f"{folder / RECORD} is no record of keys")
        record = json.loads((folder / RECORD).read_text())
    except OSError:
        raise DataError(f"{folder} holds no keys: make them with `tradeoff ckks keygen`") from None
    except ValueError as error:
        raise DataError(f"{folder / RECORD} is no record of keys: {error}") from None
    wanted = {"fits": str, "evaluation": str, "releases": int}
    if not isinstance(record, dict) or any(type(record.get(k)) is not kind for k, kind in wanted.items()):
        raise DataError(f"{folder / RECORD} is no record of keys")
    return record


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
