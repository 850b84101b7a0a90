"""The toy method as a class, from where it would be installed."""

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def toy_class(site: Path, monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """The toy method's class."""
    monkeypatch.syspath_prepend(str(site))
    return importlib.import_module("toy_rounding.study").ToyRounding
