"""Rings and moduli: which parameters are secure at 128 bits, and the smallest that serve a program.

The table is that of the homomorphic encryption standard (Albrecht et al., "Homomorphic Encryption Security
Standard", 2018): bits of the whole modulus, special prime included, for a uniform ternary secret and an error
of standard deviation 3.2, against classical attacks.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Self

from tradeoff.core.errors import DataError
from tradeoff.engines.ckks.errors import InsecureParameters, LevelExhausted, NoPrimes

LIMITS = {10: 27, 11: 54, 12: 109, 13: 218, 14: 438, 15: 881}
"""Bits of the modulus by log2 of the ring degree."""

SECURITY_BITS = 128
MAX_PRIME_BITS = 60
MAX_PRIMES = 64
PRESETS = {"standard": (40, 50, 60), "compact": (28, 38, 43)}
"""(scale, first, special) bits."""


@dataclass(frozen=True)
class Parameters:
    """An RNS-CKKS instance: moduli ``first * scale^depth * special`` over a ring of degree ``2^log_n``.

    Attributes:
        log_n: log2 of the ring degree N; there are N/2 slots.
        depth: levels, one for each prime of about ``scale_bits``.
        scale_bits, first_bits, special_bits: sizes of the primes; the nominal scale is ``2^scale_bits``.
        margin_bits: kept below the limit of the table.
        secure: False skips the table: for tests only, and no server accepts it.

    Raises:
        InsecureParameters: more bits than the table allows.
        ValueError: sizes that no instance can have.
    """

    log_n: int
    depth: int
    scale_bits: int = 40
    first_bits: int = 50
    special_bits: int = 60
    margin_bits: int = 0
    secure: bool = True

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not (bool if name == "secure" else int):
                raise ValueError(f"{name} is a whole number, not {value!r}")
        if self.log_n not in LIMITS:
            raise ValueError(f"log_n is {min(LIMITS)} to {max(LIMITS)}, not {self.log_n}")
        if not 0 <= self.depth <= MAX_PRIMES - 2:
            raise LevelExhausted("a program", self.depth, MAX_PRIMES - 2)
        for bits in (self.scale_bits, self.first_bits, self.special_bits):
            if not self.log_n + 2 <= bits <= MAX_PRIME_BITS:
                raise ValueError(f"a prime has {self.log_n + 2} to {MAX_PRIME_BITS} bits, not {bits}")
        if self.first_bits <= self.scale_bits:
            raise ValueError(
                f"first_bits {self.first_bits} must exceed scale_bits {self.scale_bits}: the difference "
                "holds the integer part of results"
            )
        if self.margin_bits < 0:
            raise ValueError(f"margin_bits must not be negative, got {self.margin_bits}")
        if self.secure and self.slack_bits < 0:
            raise InsecureParameters(self.total_bits, self.limit_bits, self.n)

    @property
    def n(self) -> int:
        """The ring degree."""
        return 1 << self.log_n

    @property
    def slots(self) -> int:
        """Numbers that a ciphertext holds."""
        return self.n // 2

    @property
    def scale(self) -> float:
        """The nominal scale."""
        return 2.0**self.scale_bits

    @property
    def total_bits(self) -> int:
        """Bits of the whole modulus."""
        return self.first_bits + self.depth * self.scale_bits + self.special_bits

    @property
    def limit_bits(self) -> int:
        """Bits that the table allows, less the margin."""
        return LIMITS[self.log_n] - self.margin_bits

    @property
    def slack_bits(self) -> int:
        """What is left of the limit."""
        return self.limit_bits - self.total_bits

    @cached_property
    def primes(self) -> tuple[int, ...]:
        """The primes by level, 0 the first; the last one is the special prime."""
        sizes = [self.first_bits, *[self.scale_bits] * self.depth, self.special_bits]
        taken: dict[int, int] = {}
        primes = []
        for bits in sizes:
            position = taken.get(bits, 0)
            taken[bits] = position + 1
            primes.append(_ntt_primes(bits, self.log_n, sizes.count(bits))[position])
        return tuple(primes)

    @property
    def bound(self) -> float:
        """Final values must stay below this in magnitude: the integer part that the first prime holds."""
        return 2.0 ** (self.first_bits - self.scale_bits - 1)

    def describe(self) -> str:
        """One line for reports."""
        return (
            f"N=2^{self.log_n}, depth {self.depth}, {self.total_bits} of {self.limit_bits} bits "
            f"(scale {self.scale_bits}, first {self.first_bits}, special {self.special_bits}), "
            f"{'128-bit security' if self.secure else 'NOT SECURE'}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Read what :meth:`to_json` gave.

        Raises:
            DataError: it is not that.
        """
        if not isinstance(values, dict) or set(values) != set(cls.__dataclass_fields__):
            raise DataError("parameters with missing or unknown keys")
        try:
            return cls(**values)
        except InsecureParameters:
            raise
        except ValueError as error:
            raise DataError(f"parameters out of range: {error}") from None


def choose(
    depth: int,
    slots: int,
    *,
    preset: str | None = None,
    scale_bits: int = 40,
    first_bits: int = 50,
    special_bits: int = 60,
    margin_bits: int = 0,
    max_log_n: int = 15,
) -> Parameters:
    """The smallest ring with room for ``slots`` numbers and ``depth`` levels at 128-bit security.

    Args:
        preset: ``standard`` or ``compact``, in place of the three sizes.

    Raises:
        LevelExhausted: not even the largest ring has so many levels; it names how many it has.
        ValueError: an unknown preset or impossible sizes.
    """
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
        scale_bits, first_bits, special_bits = PRESETS[preset]
    total = first_bits + depth * scale_bits + special_bits
    for log_n, limit in sorted(LIMITS.items()):
        if log_n <= max_log_n and slots <= 1 << (log_n - 1) and total <= limit - margin_bits:
            return Parameters(log_n, depth, scale_bits, first_bits, special_bits, margin_bits)
    if slots > 1 << (max_log_n - 1):
        raise ValueError(f"{slots} slots do not fit: the largest ring has {1 << (max_log_n - 1)}")
    room = LIMITS[max_log_n] - margin_bits - first_bits - special_bits
    raise LevelExhausted("the program", depth, max(0, room // scale_bits))


@lru_cache(maxsize=256)
def _ntt_primes(bits: int, log_n: int, count: int) -> tuple[int, ...]:
    """The ``count`` largest primes of ``bits`` bits that are 1 modulo 2N."""
    step = 2 << log_n
    candidate = (((1 << bits) - 1) // step) * step + 1
    found: list[int] = []
    while len(found) < count:
        if candidate < 1 << (bits - 1):
            raise NoPrimes(f"there are not {count} primes of {bits} bits for a ring of degree {1 << log_n}")
        if candidate < 1 << bits and _is_prime(candidate):
            found.append(candidate)
        candidate -= step
    return tuple(found)


def _is_prime(number: int) -> bool:
    """Miller and Rabin's test with bases that decide every number below 2^64."""
    if number < 2 or number % 2 == 0:
        return number == 2
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        if base % number == 0:
            continue
        x = pow(base, odd, number)
        if x in (1, number - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % number
            if x == number - 1:
                break
        else:
            return False
    return True


def log2_ceil(number: int) -> int:
    """The exponent of the smallest power of two that is not below ``number``."""
    return max(0, math.ceil(math.log2(number))) if number > 0 else 0
