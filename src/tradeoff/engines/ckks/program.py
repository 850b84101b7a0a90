"""Encrypted programs: what a server does to ciphertexts, as a list of operations on slots.

A program is a straight line in single-assignment form: every operation names the earlier ones it reads. It
knows no parameters. How many levels each value has consumed follows from the operations alone, so depth,
counts, rotations and exact scales are planned without any ciphertext (:mod:`planning`).

Scales: a :class:`Weighted` sum, once rescaled, has the nominal scale exactly (its plaintexts are encoded at
whatever scale achieves that), or, ``for_product``, the scale whose square, rescaled, is the nominal one.
Values of any history can therefore be added.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import DataError

Slots = NDArray[np.float64]
MAX_OPERATIONS = 1_000_000


@dataclass(frozen=True, slots=True)
class Operation:
    """One step; ``layer`` says for which part of the network, in reports."""

    layer: str

    kind: ClassVar[str] = ""

    @property
    def reads(self) -> tuple[int, ...]:
        """Positions of the values it reads."""
        return ()


@dataclass(frozen=True, slots=True)
class Input(Operation):
    """A fresh ciphertext of the client."""

    name: str

    kind: ClassVar[str] = "input"


@dataclass(frozen=True, slots=True)
class Rotate(Operation):
    """Slots moved ``step`` places to the left, cyclically."""

    x: int
    step: int

    kind: ClassVar[str] = "rotate"

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,)


@dataclass(frozen=True, slots=True)
class Weighted(Operation):
    """``sum_i vectors[i] * xs[i]``, slot by slot, not yet rescaled: its level goes with the next Rescale."""

    xs: tuple[int, ...]
    vectors: tuple[int, ...]
    for_product: bool = False

    kind: ClassVar[str] = "weighted"

    @property
    def reads(self) -> tuple[int, ...]:
        return self.xs


@dataclass(frozen=True, slots=True)
class Multiply(Operation):
    """Product of two ciphertexts, relinearized, not yet rescaled."""

    x: int
    y: int

    kind: ClassVar[str] = "multiply"

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x, self.y)


@dataclass(frozen=True, slots=True)
class Rescale(Operation):
    """Divides the scale by the prime of the level, which is used up."""

    x: int

    kind: ClassVar[str] = "rescale"

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,)


@dataclass(frozen=True, slots=True)
class Add(Operation):
    """Sum of values of equal level and scale; a sign of -1 subtracts."""

    xs: tuple[int, ...]
    signs: tuple[int, ...]

    kind: ClassVar[str] = "add"

    @property
    def reads(self) -> tuple[int, ...]:
        return self.xs


@dataclass(frozen=True, slots=True)
class AddPlain(Operation):
    """A value plus a known vector."""

    x: int
    vector: int

    kind: ClassVar[str] = "add_plain"

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,)


@dataclass(frozen=True, slots=True)
class Lower(Operation):
    """Gives up ``by`` levels; value and scale stay."""

    x: int
    by: int

    kind: ClassVar[str] = "lower"

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,)


KINDS: dict[str, type[Operation]] = {
    cls.kind: cls for cls in (Input, Rotate, Weighted, Multiply, Rescale, Add, AddPlain, Lower)
}


@dataclass(frozen=True)
class Program:
    """An encrypted computation.

    Attributes:
        operations: in order of execution; inputs first.
        outputs: positions of the results.
        vectors: known slot vectors of length ``period``; they are weights and stay at the server.
        period: a power of two; every vector, and every input, repeats with it over the slots.
        input_layout, output_layout: how tensors lie in slots, as text (:mod:`layouts`).
        consumed: by operation, levels used since the input.
    """

    operations: tuple[Operation, ...]
    outputs: tuple[int, ...]
    vectors: tuple[Slots, ...]
    period: int
    input_layout: str
    output_layout: str
    consumed: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.period < 1 or self.period & (self.period - 1):
            raise DataError(f"a period is a power of two, not {self.period}")
        if len(self.operations) > MAX_OPERATIONS:
            raise DataError(f"{len(self.operations)} operations; at most {MAX_OPERATIONS}")
        for vector in self.vectors:
            if vector.shape != (self.period,) or not np.isfinite(vector).all():
                raise DataError(f"a vector of a program has {self.period} finite numbers")
        consumed: list[int] = []
        for index, operation in enumerate(self.operations):
            consumed.append(_consumed(index, operation, consumed, self))
        for index in self.outputs:
            if not 0 <= index < len(consumed):
                raise DataError(f"there is no operation {index} to reveal")
        object.__setattr__(self, "consumed", tuple(consumed))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input ciphertexts, in order."""
        return tuple(op.name for op in self.operations if isinstance(op, Input))

    @property
    def depth(self) -> int:
        """Levels that the program uses."""
        return max((self.consumed[index] for index in self.outputs), default=0)

    @property
    def steps(self) -> tuple[int, ...]:
        """The different rotations, each of which needs a key."""
        return tuple(sorted({op.step for op in self.operations if isinstance(op, Rotate)}))

    @property
    def multiplies(self) -> bool:
        """Whether it needs a relinearization key."""
        return any(isinstance(op, Multiply) for op in self.operations)

    def last_uses(self) -> list[tuple[int, ...]]:
        """By operation, the values that no later one reads: they can be released."""
        last: dict[int, int] = {}
        for index, operation in enumerate(self.operations):
            last[index] = index
            for read in operation.reads:
                last[read] = index
        ends: list[list[int]] = [[] for _ in self.operations]
        for value, index in last.items():
            if value not in self.outputs:
                ends[index].append(value)
        return [tuple(values) for values in ends]

    def structure(self) -> dict[str, Any]:
        """Everything but the weights, as JSON."""
        layers = sorted({op.layer for op in self.operations})
        position = {name: index for index, name in enumerate(layers)}
        return {
            "period": self.period,
            "input_layout": self.input_layout,
            "output_layout": self.output_layout,
            "outputs": list(self.outputs),
            "layers": layers,
            "operations": [_encode(op, position) for op in self.operations],
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the structure; the weights do not enter, so it tells nothing of them."""
        text = json.dumps(self.structure(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def matrix(self) -> Slots:
        """All vectors as one array (vectors, period)."""
        return np.stack(self.vectors) if self.vectors else np.empty((0, self.period))

    @classmethod
    def rebuild(cls, structure: Any, matrix: Slots) -> Program:
        """The inverse of :meth:`structure` and :meth:`matrix`.

        Raises:
            DataError: they do not describe a program.
        """
        try:
            layers = [str(name) for name in structure["layers"]]
            operations = tuple(_decode(row, layers) for row in structure["operations"])
            outputs = tuple(int(index) for index in structure["outputs"])
            layouts = str(structure["input_layout"]), str(structure["output_layout"])
            period = int(structure["period"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"not a program: {type(error).__name__} {error}") from None
        if matrix.ndim != 2 or matrix.shape[1:] != (period,):
            raise DataError(f"vectors of shape {matrix.shape} for a period of {period}")
        return cls(
            operations, outputs, tuple(np.asarray(row, np.float64) for row in matrix), period, *layouts
        )


def _consumed(index: int, operation: Operation, before: Sequence[int], program: Program) -> int:
    """Levels that an operation has used up, and whether what it reads fits together."""
    reads = operation.reads
    if any(not 0 <= read < index for read in reads) or (not reads and not isinstance(operation, Input)):
        raise DataError(f"operation {index} reads what is not there")
    levels = {before[read] for read in reads}
    if len(levels) > 1:
        raise DataError(f"operation {index} ({operation.kind}) reads values of different levels")
    used = levels.pop() if levels else 0
    if isinstance(operation, Weighted | AddPlain):
        named = operation.vectors if isinstance(operation, Weighted) else (operation.vector,)
        if len(named) != len(reads) or any(not 0 <= v < len(program.vectors) for v in named):
            raise DataError(f"operation {index} names a vector that is not there")
    if isinstance(operation, Add) and (
        len(operation.signs) != len(reads) or not set(operation.signs) <= {-1, 1}
    ):
        raise DataError(f"operation {index} has signs other than 1 and -1")
    if isinstance(operation, Rotate) and not 0 < operation.step < program.period:
        raise DataError(f"operation {index} rotates by {operation.step} in a period of {program.period}")
    if isinstance(operation, Lower) and operation.by < 1:
        raise DataError(f"operation {index} gives up {operation.by} levels")
    return used + (
        1 if isinstance(operation, Rescale) else operation.by if isinstance(operation, Lower) else 0
    )


def _without_dead(
    operations: Sequence[Operation], outputs: Sequence[int]
) -> tuple[tuple[Operation, ...], tuple[int, ...]]:
    """The operations that outputs depend on, and all inputs, renumbered."""
    live = set(outputs)
    for index in range(len(operations) - 1, -1, -1):
        if index in live:
            live.update(operations[index].reads)
    kept: list[Operation] = []
    new: dict[int, int] = {}
    for index, op in enumerate(operations):
        if index in live or isinstance(op, Input):
            new[index] = len(kept)
            kept.append(_renumbered(op, new))
    return tuple(kept), tuple(new[index] for index in outputs)


def _renumbered(op: Operation, new: dict[int, int]) -> Operation:
    changed: dict[str, Any] = {name: new[getattr(op, name)] for name in ("x", "y") if hasattr(op, name)}
    if isinstance(op, Weighted | Add):
        changed["xs"] = tuple(new[x] for x in op.xs)
    return replace(op, **changed)


def _encode(op: Operation, layers: dict[str, int]) -> list[Any]:
    values = [getattr(op, name) for name in _own_fields(type(op))]
    return [op.kind, layers[op.layer], *(list(v) if isinstance(v, tuple) else v for v in values)]


def _decode(row: Any, layers: list[str]) -> Operation:
    kind, layer, *values = row
    names = _own_fields(KINDS[kind])
    if len(values) != len(names):
        raise ValueError(f"{kind} with {len(values)} values")
    checked = [_plain(value) for value in values]
    return KINDS[kind](layers[layer], *checked)


def _plain(value: Any) -> Any:
    if isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    if type(value) in (int, bool, str):
        return value
    raise ValueError(f"a value {value!r}")


def _own_fields(cls: type[Operation]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(cls) if each.name != "layer")


class Builder:
    """Writes a program; values are positions, levels are aligned by themselves.

    Args:
        period: of all vectors, a power of two.

    Example:
        >>> build = Builder(4)
        >>> x = build.input("x")
        >>> half = build.rescaled([(x, np.full(4, 0.5))])
        >>> program = build.finish([half], "vector(4)", "vector(4)")
        >>> program.depth
        1
    """

    def __init__(self, period: int) -> None:
        self.period = period
        self._operations: list[Operation] = []
        self._consumed: list[int] = []
        self._vectors: list[Slots] = []
        self._known: dict[bytes, int] = {}
        self._lowered: dict[tuple[int, int], int] = {}
        self._rotated: dict[tuple[int, int], int] = {}
        self._layer = ""

    @contextmanager
    def layer(self, name: str) -> Iterator[None]:
        """Operations inside the block are reported under ``name``."""
        outer, self._layer = self._layer, name
        try:
            yield
        finally:
            self._layer = outer

    def consumed(self, x: int) -> int:
        """Levels that a value has used up."""
        return self._consumed[x]

    def input(self, name: str) -> int:
        """An input ciphertext."""
        return self._append(Input("input", name), 0)

    def rotate(self, x: int, step: int) -> int:
        """``x`` moved ``step`` slots to the left; the same rotation of the same value is done once."""
        step %= self.period
        if step == 0:
            return x
        if (x, step) not in self._rotated:
            self._rotated[x, step] = self._append(Rotate(self._layer, x, step), self._consumed[x])
        return self._rotated[x, step]

    def weighted(self, terms: Sequence[tuple[int, Slots]], *, for_product: bool = False) -> int | None:
        """``sum vector * x`` before rescaling; terms with a zero vector are left out, None if all are.

        Values at higher levels are lowered to that of the lowest one.
        """
        kept = [(x, vector) for x, vector in terms if np.any(vector)]
        if not kept:
            return None
        xs = self.aligned([x for x, _ in kept])
        vectors = tuple(self._vector(vector) for _, vector in kept)
        return self._append(Weighted(self._layer, tuple(xs), vectors, for_product), self._consumed[xs[0]])

    def rescaled(self, terms: Sequence[tuple[int, Slots]], *, for_product: bool = False) -> int:
        """``sum vector * x``, rescaled: 1 level.

        Raises:
            ValueError: all vectors are zero, so that the result would not depend on the input.
        """
        total = self.weighted(terms, for_product=for_product)
        if total is None:
            raise ValueError(f"{self._layer or 'a layer'}: all weights are zero")
        return self.rescale(total)

    def rescale(self, x: int) -> int:
        """End a weighted sum or a product: 1 level."""
        return self._append(Rescale(self._layer, x), self._consumed[x] + 1)

    def multiply(self, x: int, y: int) -> int:
        """``x * y``, rescaled: 1 level."""
        x, y = self.aligned([x, y])
        return self.rescale(self._append(Multiply(self._layer, x, y), self._consumed[x]))

    def add(self, xs: Sequence[int], signs: Sequence[int] | None = None) -> int:
        """Sum with signs; values at higher levels are lowered."""
        signs = [1] * len(xs) if signs is None else list(signs)
        if len(xs) == 1 and signs == [1]:
            return xs[0]
        aligned = self.aligned(xs)
        order = sorted(range(len(xs)), key=lambda i: -signs[i])  # begin with a sum, if there is one
        chosen = tuple(aligned[i] for i in order), tuple(signs[i] for i in order)
        return self._append(Add(self._layer, *chosen), self._consumed[aligned[0]])

    def add_plain(self, x: int, vector: Slots) -> int:
        """``x + vector``."""
        if not np.any(vector):
            return x
        return self._append(AddPlain(self._layer, x, self._vector(vector)), self._consumed[x])

    def lower(self, x: int, consumed: int) -> int:
        """``x`` with ``consumed`` levels used up.

        Raises:
            ValueError: it has used more.
        """
        by = consumed - self._consumed[x]
        if by < 0:
            raise ValueError(f"a value cannot win back {-by} levels")
        if by == 0:
            return x
        if (x, consumed) not in self._lowered:
            self._lowered[x, consumed] = self._append(Lower(self._layer, x, by), consumed)
        return self._lowered[x, consumed]

    def aligned(self, xs: Sequence[int]) -> list[int]:
        """The values at the level of the lowest one."""
        consumed = max(self._consumed[x] for x in xs)
        return [self.lower(x, consumed) for x in xs]

    def finish(self, outputs: Sequence[int], input_layout: str, output_layout: str) -> Program:
        """The program; outputs are brought to one level, what no output depends on is left out."""
        operations, final = _without_dead(self._operations, self.aligned(outputs))
        return Program(operations, final, tuple(self._vectors), self.period, input_layout, output_layout)

    def _append(self, operation: Operation, consumed: int) -> int:
        self._operations.append(operation)
        self._consumed.append(consumed)
        return len(self._operations) - 1

    def _vector(self, values: Slots) -> int:
        vector = np.ascontiguousarray(values, np.float64)
        key = vector.tobytes()
        if key not in self._known:
            self._known[key] = len(self._vectors)
            self._vectors.append(vector)
        return self._known[key]
