"""The methods that are installed: this project's own, found by their cards, and other packages' entry points.

Listing them imports none of them.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MethodError, TradeoffError, UnknownName
from .suggest import did_you_mean

if TYPE_CHECKING:
    from .method import Method

ENTRY_POINTS = "tradeoff.methods"
METHODS = Path(__file__).parents[1] / "methods"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """Where a method is found.

    Attributes:
        name: on the command line.
        module: that holds its class.
        attribute: the class, or None for the only subclass of :class:`Method` that the module defines.
    """

    name: str
    module: str
    attribute: str | None = None

    def load(self) -> "Method[Any]":
        """Import the method.

        Raises:
            MethodError: its package is broken; the message says how.
            TradeoffError: it raised one itself, such as a missing extra or a faulty card.
        """
        try:
            module = import_module(self.module)
            kind = getattr(module, self.attribute) if self.attribute else _only_method(module)
            method: Method[Any] = kind()
            _ = method.card.name
        except TradeoffError:
            raise
        except Exception as error:
            raise MethodError(
                f"method {self.name!r} ({self.module}) is broken: {type(error).__name__}: {error}"
            ) from error
        return method


@lru_cache
def entries() -> dict[str, Entry]:
    """All installed methods by name; a name of this project cannot be taken by another package."""
    found = {
        card.parent.name.replace("_", "-"): f"tradeoff.methods.{card.parts[-3]}.{card.parent.name}.study"
        for card in sorted(METHODS.glob("*/*/card.md"))
    }
    known = {name: Entry(name, module) for name, module in found.items()}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in known:
            _log.warning("%s of another package is hidden by the method of that name here", point.name)
        else:
            known[point.name] = Entry(point.name, point.module, point.attr or None)
    return dict(sorted(known.items()))


def load_method(name: str) -> "Method[Any]":
    """The method of a name.

    Raises:
        UnknownName: there is none; the message gives the nearest name.
        MethodError: its package is broken.
    """
    if name not in entries():
        raise UnknownName(f"no method {name!r}{did_you_mean(name, entries())}")
    return entries()[name].load()


def load_all() -> Iterator[tuple[Entry, "Method[Any] | TradeoffError"]]:
    """Every installed method, or the error that keeps it from loading."""
    for entry in entries().values():
        try:
            yield entry, entry.load()
        except TradeoffError as error:
            yield entry, error


def _only_method(module: Any) -> "type[Method[Any]]":
    from .method import Method

    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise MethodError(f"{module.__name__} must define one Method, it defines {len(found)}")
    return found[0]
