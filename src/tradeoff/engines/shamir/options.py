"""How a program is executed: servers, threshold, protection, precision. Public, and part of its digest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from tradeoff.engines.shamir.sharing import Scheme

Security = Literal["semi-honest", "abort", "robust"]

TRUNCATION_BITS = 58
"""A value stays below 2^58 in magnitude before a truncation."""


MASKED_LEAK = (
    "masked comparisons show every server about how large the compared values are, and over many values of "
    "like size their mean size closely; strict ones (the default) show nothing"
)


@dataclass(frozen=True)
class Options:
    """Options of a program.

    Args:
        servers, threshold: n servers of which any t together learn nothing; n >= 2t + 1.
        security: ``semi-honest``: all follow the protocol; ``abort``: up to t servers that do not are
            noticed before anything is revealed; ``robust``: crashed servers and wrong shares are survived.
        nonlinear: how signs are found: ``strict`` reveals nothing; ``masked`` is much cheaper and lets the
            servers see about how large values are.
        weights: ``private``: shared among the servers; ``public``: known to them.
        frac_bits: fractional bits f of inputs, weights and activations.
        bound_bits: values that are compared stay below 2^bound_bits as integers.
        output: ``logits`` or ``argmax``: nothing but the label is revealed.

    Raises:
        ValueError: a value or combination that there is not.
    """

    servers: int = 3
    threshold: int = 1
    security: Security = "semi-honest"
    nonlinear: Literal["strict", "masked"] = "strict"
    weights: Literal["private", "public"] = "private"
    frac_bits: int = 13
    bound_bits: int = 22
    output: Literal["logits", "argmax"] = "logits"

    def __post_init__(self) -> None:
        allowed = {
            "security": ("semi-honest", "abort", "robust"),
            "nonlinear": ("strict", "masked"),
            "weights": ("private", "public"),
            "output": ("logits", "argmax"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is one of {', '.join(values)}, not {getattr(self, name)!r}")
        n, t = self.scheme.n, self.scheme.t
        if self.security == "abort" and 2 * t + 1 < n < 3 * t + 1:
            raise ValueError(
                f"abort needs 2t + 1 servers, or 3t + 1 and more; with threshold {t} not {n}: products would "
                "be opened with too little redundancy to check them and too much for a check by keys"
            )
        if self.security == "robust" and n == 2 * t + 1:
            raise ValueError(
                f"robust needs more than 2t + 1 servers: with {n} and threshold {t} all are needed"
            )
        if not 1 <= self.frac_bits <= 20:
            raise ValueError(f"frac_bits is between 1 and 20, not {self.frac_bits}")
        if not self.frac_bits < self.bound_bits <= 40:
            raise ValueError(f"bound_bits is between frac_bits + 1 and 40, not {self.bound_bits}")

    @cached_property
    def scheme(self) -> Scheme:
        return Scheme(self.servers, self.threshold)

    @property
    def authenticated(self) -> bool:
        """Whether values carry multiples by a secret key, because openings of products have no redundancy."""
        return self.security == "abort" and self.servers == 2 * self.threshold + 1

    @property
    def copies(self) -> int:
        """Shares of a value: of itself, and of its multiple if there is one."""
        return 2 if self.authenticated else 1

    @property
    def dealer(self) -> int:
        """The dealer's id among the parties of a session, after the servers."""
        return self.servers

    @property
    def client(self) -> int:
        """The data owner's id."""
        return self.servers + 1

    @property
    def parties(self) -> int:
        """Servers, dealer and data owner."""
        return self.servers + 2

    @property
    def product_degree(self) -> int:
        return 2 * self.threshold

    def readers(self, degree: int) -> int:
        """How many servers read a server's share when a sharing of that degree is opened."""
        return degree if self.security == "semi-honest" else self.servers - 1

    @property
    def revealing(self) -> int:
        """How many servers, the first ones, send their shares of the result to the data owner."""
        return self.threshold + 1 if self.security == "semi-honest" else self.servers

    @classmethod
    def from_json(cls, document: Any) -> Options:
        """Read :meth:`to_json`'s document.

        Raises:
            ValueError: unknown keys or values out of range.
        """
        if not isinstance(document, dict) or not set(document) <= set(cls.__dataclass_fields__):
            raise ValueError("these are not the options of a program for Shamir shares")
        for name, default in asdict(cls()).items():
            if type(document.get(name, default)) is not type(default):
                raise ValueError(f"{name} is {document[name]!r}; expected a {type(default).__name__}")
        return cls(**document)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
