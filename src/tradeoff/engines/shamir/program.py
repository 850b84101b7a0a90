"""A compiled network: what servers, dealer and data owner agree on, and the shares of its weights."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tradeoff.core.errors import DataError
from tradeoff.engines.shamir.field import PRIME, Elements
from tradeoff.engines.shamir.materials import Authentication, Material, Verification
from tradeoff.engines.shamir.options import Options
from tradeoff.engines.shamir.steps import Reveal, Step
from tradeoff.nn.plan import Plan, dumps, loads

PLAN_FILE = "plan.safetensors"
OPTIONS_FILE = "options.json"
SHARES_FILE = "shares.safetensors"
VERIFICATION = "verification"
SETUP_INDEX = 0xFFFF_FF00
"""Stands for the setup where a step's index is meant."""
VERIFIED_AT_ONCE = 1 << 22
"""Products that may wait for a verification: a server holds both shares of each."""


@dataclass(frozen=True, eq=False)
class Program:
    """A plan with the options of its execution; made by :func:`tradeoff.engines.shamir.compile`.

    The view without weights (:meth:`public`) has the same digest and lowers to the same steps.

    Args:
        sharing: names the weights' sharing, so that servers with shares of different ones refuse each other.
    """

    plan: Plan
    options: Options
    sharing: str = ""

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """What is executed, in order."""
        from tradeoff.engines.shamir.lowering import lower

        return lower(self.plan, self.options)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all that is public: parties refuse each other if it differs."""
        document = {"plan": self.plan.digest, "options": self.options.to_json(), "sharing": self.sharing}
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
        if self.options.weights == "public":
            for operator in self.plan:
                for key, role in operator.roles.items():
                    if role != "mask" and getattr(operator, key) is not None:
                        digest.update(np.ascontiguousarray(getattr(operator, key)).tobytes())
        return digest.hexdigest()

    def setup_materials(self) -> list[Material]:
        """What a session uses before its first inference."""
        count = sum(prod(shape) for step in self.steps for shape in step.addend_shapes.values())
        return [Authentication(self.options, count)] if self.options.authenticated and count else []

    def materials(self, batch: int) -> list[tuple[int, list[Material]]]:
        """What an inference uses, by index of the step; verifications have the index of the step after."""
        checkpoints = self.checkpoints(batch)
        return [
            (index, [Verification(self.options, 1)] * (index in checkpoints) + step.materials(batch))
            for index, step in enumerate(self.steps)
        ]

    def checkpoints(self, batch: int) -> frozenset[int]:
        """Indices of the steps before which all products so far are verified."""
        if not self.options.authenticated:
            return frozenset()
        found, pending = set(), 0
        for index, step in enumerate(self.steps):
            if isinstance(step, Reveal) or pending >= VERIFIED_AT_ONCE:
                found.add(index)
                pending = 0
            pending += sum(material.recorded for material in step.materials(batch))
        return frozenset(found)

    def public(self) -> Program:
        """The program as servers, dealer and data owner may have it."""
        if not self.plan.has_weights or self.options.weights == "public":
            return self
        return Program(self.plan.without_weights(), self.options, self.sharing)

    def shared(self) -> Program:
        """The same with a fresh name for the sharing of its weights."""
        return replace(self, sharing=secrets.token_hex(8))

    def with_options(self, **changes: Any) -> Program:
        """The same plan, executed otherwise."""
        return Program(self.plan, replace(self.options, **changes))

    def share_weights(self) -> list[dict[str, Elements]]:
        """For each server its shares of the weights, by ``step/name``.

        Raises:
            DataError: this is the view without weights.
        """
        if self.options.weights == "public":
            return [{} for _ in self.options.scheme.servers]
        if not self.plan.has_weights:
            raise DataError(
                "this is the public view of a program; the model owner shares the one with weights"
            )
        result: list[dict[str, Elements]] = [{} for _ in self.options.scheme.servers]
        for step in self.steps:
            for name, value in step.static_values().items():
                for shares, share in zip(result, self.options.scheme.share(value), strict=True):
                    shares[f"{step.name}/{name}"] = share
        return result

    def save(self, folder: Path | str) -> None:
        """Write the program to a folder: the plan, with the weights that this view has, and the options."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_private(folder / PLAN_FILE, dumps(self.plan))
        document = {"options": self.options.to_json(), "sharing": self.sharing}
        (folder / OPTIONS_FILE).write_text(json.dumps(document, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Program:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: the folder is not a program, or is damaged.
        """
        folder = Path(folder)
        path = folder / OPTIONS_FILE
        if path.stat().st_size > 1 << 20:
            raise ValueError(f"{path} is too large")
        try:
            document = json.loads(path.read_text("utf-8"))
        except RecursionError:
            raise ValueError(f"{path} is nested too deeply") from None
        if not isinstance(document, dict) or set(document) != {"options", "sharing"}:
            raise ValueError(f"{path} does not hold the options of a program for Shamir shares")
        if not isinstance(document["sharing"], str) or len(document["sharing"]) > 64:
            raise ValueError(f"{path} does not name the sharing of the weights")
        plan = loads((folder / PLAN_FILE).read_bytes())
        return cls(plan, Options.from_json(document["options"]), document["sharing"])


def save_shares(folder: Path | str, shares: dict[str, Elements]) -> None:
    """Write one server's shares of the weights beside its program."""
    from safetensors.numpy import save

    write_private(
        Path(folder) / SHARES_FILE, save({name: np.ascontiguousarray(s) for name, s in shares.items()})
    )


def load_shares(folder: Path | str, program: Program) -> dict[tuple[str, str], Elements]:
    """Read what :func:`save_shares` wrote, by (step, name).

    Raises:
        FileNotFoundError: there are none.
        DataError: they are damaged, or not of this program.
    """
    path = Path(folder) / SHARES_FILE
    wanted = {
        (step.name, name): shape
        for step in program.steps
        for name, shape in {**step.factor_shapes, **step.addend_shapes}.items()
    }
    if not wanted:
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(path.read_bytes())
    except SafetensorError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    shares = {}
    for (step, name), shape in wanted.items():
        share = found.pop(f"{step}/{name}", None)
        if share is None or share.shape != shape or share.dtype != np.uint64 or (share >= PRIME).any():
            raise DataError(f"{path} lacks a share of {step}'s {name} of shape {shape}")
        shares[step, name] = share
    if found:
        raise DataError(f"{path} holds shares of another program: {', '.join(sorted(found)[:3])}")
    return shares


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read; one that is there is replaced, not opened."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def require_batch(batch: int) -> int:
    """The batch size, which must be at least 1.

    Raises:
        ValueError: it is not.
    """
    if batch < 1:
        raise ValueError(f"an inference has at least one image, not {batch}")
    return batch
