"""A compiled network: what the two parties and the dealer agree on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import DataError
from tradeoff.engines.two_party.sharing import Ring
from tradeoff.engines.two_party.steps import Step
from tradeoff.nn.plan import Plan, dumps, loads

Receiver = Literal["client", "server", "both"]
PLAN_FILE = "plan.safetensors"
OPTIONS_FILE = "options.json"


@dataclass(frozen=True)
class Options:
    """How a plan is executed; public, and part of the program's digest.

    Args:
        ring_bits: 64 or 32.
        frac_bits: fractional bits of inputs, weights and activations.
        weights: ``private``: multiplied in shared form; ``public``: known to all, linear layers are local.
        coefficients: the same for the polynomials of activations.
        truncation: ``dealer``, or ``local`` (no communication, rare gross errors: for comparison only).
        radix: of the comparison tree: 4 (fewest bytes and rounds) or 2 (half the offline bytes).
        split: activations whose powers are truncated one by one, because the whole polynomial may not fit.
        output: ``logits`` or ``argmax``.
        reveal_to: who gets the result.
    """

    ring_bits: int = 64
    frac_bits: int = 16
    weights: Literal["private", "public"] = "private"
    coefficients: Literal["private", "public"] = "private"
    truncation: Literal["dealer", "local"] = "dealer"
    radix: Literal[2, 4] = 4
    split: tuple[str, ...] = ()
    output: Literal["logits", "argmax"] = "logits"
    reveal_to: Receiver = "client"

    def __post_init__(self) -> None:
        allowed = {
            "weights": ("private", "public"),
            "coefficients": ("private", "public"),
            "truncation": ("dealer", "local"),
            "radix": (2, 4),
            "output": ("logits", "argmax"),
            "reveal_to": ("client", "server", "both"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} is one of {', '.join(map(str, values))}, not {getattr(self, name)!r}"
                )
        if self.weights == "public" and self.coefficients == "private":
            raise ValueError("public weights go with public coefficients")
        Ring(self.ring_bits, self.frac_bits)  # raises on bad numbers

    @property
    def ring(self) -> Ring:
        return Ring(self.ring_bits, self.frac_bits)

    @classmethod
    def from_json(cls, document: Any) -> Options:
        """Read :meth:`to_json`'s document.

        Raises:
            ValueError: unknown keys or values out of range.
        """
        if not isinstance(document, dict) or not set(document) <= set(cls.__dataclass_fields__):
            raise ValueError("these are not the options of a two-party program")
        split = document.get("split", [])
        if not isinstance(split, list) or not all(isinstance(name, str) for name in split):
            raise ValueError("split is a list of operator names")
        for name, default in asdict(cls()).items():
            if name != "split" and type(document.get(name, default)) is not type(default):
                raise ValueError(f"{name} is {document[name]!r}; expected a {type(default).__name__}")
        return cls(**{**document, "split": tuple(split)})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "split": list(self.split)}


@dataclass(frozen=True, eq=False)
class Program:
    """A plan with the options of its execution; made by :func:`tradeoff.engines.two_party.compile`.

    The view without weights (:meth:`public`) has the same digest and lowers to the same steps.
    """

    plan: Plan
    options: Options

    @property
    def ring(self) -> Ring:
        return self.options.ring

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """What is executed, in order."""
        from tradeoff.engines.two_party.lowering import lower

        return lower(self.plan, self.options)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all that is public: the parties refuse each other if it differs."""
        document = {"plan": self.plan.digest, "options": self.options.to_json()}
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
        for operator in self.plan:
            for key, role in operator.roles.items():
                if role != "mask" and self._published(role) and getattr(operator, key) is not None:
                    digest.update(np.ascontiguousarray(getattr(operator, key)).tobytes())
        return digest.hexdigest()

    def _published(self, role: str) -> bool:
        return self.options.weights == "public" if role == "weight" else self.options.coefficients == "public"

    def public(self) -> Program:
        """The program as the data owner and the dealer may have it."""
        if not self.plan.has_weights or self.options.weights == "public":
            return self
        keep = self.options.coefficients == "public"
        return Program(self.plan.without_weights(keep_coefficients=keep), self.options)

    def with_options(self, **changes: Any) -> Program:
        """The same plan, executed otherwise."""
        return Program(self.plan, replace(self.options, **changes))

    def save(self, folder: Path | str) -> None:
        """Write the program to a folder: the plan, with the weights that this view has, and the options."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        data = dumps(self.plan)
        path = folder / PLAN_FILE
        path.unlink(missing_ok=True)  # a file that is there already may be open to others
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        (folder / OPTIONS_FILE).write_text(json.dumps(self.options.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Program:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: the folder is not a program, or is damaged.
        """
        folder = Path(folder)
        options = folder / OPTIONS_FILE
        if options.stat().st_size > 1 << 20:
            raise ValueError(f"{options} is too large")
        try:
            document = json.loads(options.read_text("utf-8"))
        except RecursionError:
            raise ValueError(f"{options} is nested too deeply") from None
        return cls(loads((folder / PLAN_FILE).read_bytes()), Options.from_json(document))

    def check_input(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Inputs as float64 of shape (batch, *input_shape).

        Raises:
            DataError (a ValueError): another shape or dtype, an empty batch, NaN or infinity.
        """
        x = np.asarray(x)
        if x.dtype.kind not in "biuf":
            raise DataError(f"inputs are real numbers, not {x.dtype}")
        x = x.astype(np.float64)
        if x.shape[1:] != self.plan.input_shape or x.ndim != len(self.plan.input_shape) + 1 or not len(x):
            wanted = ", ".join(map(str, ("images", *self.plan.input_shape)))
            raise DataError(f"inputs have shape ({wanted}), at least one image, not {x.shape}")
        if not np.isfinite(x).all():
            raise DataError("the input holds NaN or infinity")
        return x


def require_batch(batch: int) -> int:
    """The batch size, which must be at least 1.

    Raises:
        ValueError: it is not.
    """
    if batch < 1:
        raise ValueError(f"an inference has at least one image, not {batch}")
    return batch
