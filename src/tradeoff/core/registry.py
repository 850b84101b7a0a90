"""What is installed: methods and verbs of this project and of other packages.

Ours are found by their files, those of others by entry points. Listing them imports none of them.
"""

import ast
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

PACKAGE = Path(__file__).parents[1]
_VERB_NAMES = {"transport": "net"}
"""Engines whose verbs go by another name than their folder's."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """Where a method or a set of verbs is found.

    Attributes:
        name: on the command line.
        module: that holds it.
        attribute: its name in the module; None for the only subclass of :class:`Method` defined there.
        summary: one line for lists.
    """

    name: str
    module: str
    attribute: str | None = None
    summary: str = ""

    def load(self) -> Any:
        """Import it.

        Raises:
            MethodError: its package is broken; the message says how.
            TradeoffError: it raised one itself, such as a missing extra or a faulty card.
        """
        try:
            module = import_module(self.module)
            return getattr(module, self.attribute) if self.attribute else _only_method(module)
        except TradeoffError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise MethodError(f"{self.name} ({self.module}) cannot be loaded: {reason}") from error


@lru_cache
def methods() -> dict[str, Entry]:
    """All installed methods by name; another package cannot take the name of one here."""
    cards = sorted(PACKAGE.glob("methods/*/*/card.md"))
    return _with_entry_points(
        "tradeoff.methods",
        (Entry(_name(card.parent), f"{_module(card.parent)}.study") for card in cards),
    )


@lru_cache
def verbs() -> dict[str, Entry]:
    """The verbs of methods and engines by name: ``tradeoff NAME VERB``."""
    files = sorted([*PACKAGE.glob("engines/*/commands.py"), *PACKAGE.glob("methods/*/*/commands.py")])
    return _with_entry_points(
        "tradeoff.commands",
        (Entry(_name(f.parent), f"{_module(f.parent)}.commands", "app", _first_line(f)) for f in files),
    )


def load_method(name: str) -> "Method[Any]":
    """The method of a name.

    Raises:
        UnknownName: there is none; the message gives the nearest name.
        MethodError: its package is broken.
        TradeoffError: it raised one itself, such as a missing extra or a faulty card.
    """
    if name not in methods():
        raise UnknownName(f"no method {name!r}{did_you_mean(name, methods())}")
    method: Method[Any] = methods()[name].load()()
    return method


def load_methods() -> "Iterator[tuple[str, Method[Any] | TradeoffError]]":
    """Every installed method by name, or the error that keeps it from loading."""
    for name in methods():
        try:
            yield name, load_method(name)
        except TradeoffError as error:
            yield name, error


def _with_entry_points(group: str, ours: Iterator[Entry]) -> dict[str, Entry]:
    found = {entry.name: entry for entry in ours}
    for point in entry_points(group=group):
        if point.name in found:
            _log.warning("%s of %s is hidden: that name is taken", point.name, point.value)
        else:
            found[point.name] = Entry(point.name, point.module, point.attr or None, f"from {point.module}")
    return dict(sorted(found.items()))


def _name(folder: Path) -> str:
    return _VERB_NAMES.get(folder.name, folder.name.replace("_", "-"))


def _module(folder: Path) -> str:
    return ".".join(folder.relative_to(PACKAGE.parent).parts)


def _first_line(source: Path) -> str:
    """First line of a module's docstring, without importing the module."""
    try:
        text = ast.get_docstring(ast.parse(source.read_bytes())) or ""
    except (OSError, SyntaxError):
        return ""
    return text.partition("\n")[0]


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
