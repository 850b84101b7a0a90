"""The compiled extension: that its type stub is complete, and how threads and instruction sets are chosen."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tradeoff
from tradeoff.core import native


@pytest.fixture(autouse=True)
def _extension(require) -> None:
    require(native.extension(), "the compiled extension is missing: install a C++17 compiler")


def test_stub_has_every_function_and_parameter() -> None:
    stub = ast.parse((Path(tradeoff.__file__).parent / "_native.pyi").read_text())
    declared = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}
    module = native.extension()
    present = {name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")}
    assert present == declared.keys()
    for name, node in declared.items():
        signature = getattr(module, name).__doc__.splitlines()[0]
        names = [argument.split(":")[0].strip() for argument in split(signature)]
        assert names == [argument.arg for argument in node.args.args], name


def split(signature: str) -> list[str]:
    """The parameters of ``f(a: X[1, 2], b: Y) -> Z``, by the commas outside brackets."""
    depth, parts = 0, [""]
    for character in signature[signature.index("(") :]:
        depth += (character in "([") - (character in ")]")
        if depth == 0:
            break
        if character == "," and depth == 1:
            parts.append("")
        elif not (character == "(" and depth == 1):
            parts[-1] += character
    return [part for part in parts if part.strip()]


def test_instruction_set_can_be_lowered() -> None:
    code = "from tradeoff.core import native; print(native.instruction_set(), native.describe(), sep='|')"
    environment = {**os.environ, "TRADEOFF_ISA": "portable", "OMP_NUM_THREADS": "3,2"}
    lines = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert lines.stdout.strip() == "portable|native kernels: portable, 3 thread(s)"


def test_extension_can_be_turned_off() -> None:
    code = "from tradeoff.engines.two_party import ring; print(ring.backend())"
    environment = {**os.environ, "TRADEOFF_NATIVE": "0"}
    lines = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert lines.stdout.strip() == "limbs"
    assert not lines.stderr


@pytest.mark.parametrize("value", ["", "0", "many", "-3"])
def test_threads_without_a_usable_setting(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert 1 <= native.threads() <= (os.cpu_count() or 1)


def test_threads_follow_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert native.threads() == 7
