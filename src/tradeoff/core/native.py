"""The one place that imports the compiled extension ``tradeoff._native``.

Every native kernel has a NumPy or torch reference. Where the extension is missing (no compiler at
installation) the callers use the reference, and one warning says so; ``tradeoff doctor`` prints
:func:`describe`.
"""

import functools
import importlib
import os
import sys
import warnings
from types import ModuleType


class NativeMissingWarning(RuntimeWarning):
    """The compiled kernels are absent; the slower references run instead."""


@functools.cache
def extension() -> ModuleType | None:
    """The compiled extension, or None (with one warning) where it cannot be imported.

    The environment variable ``TRADEOFF_NATIVE=0`` turns it off, to compare against the references.
    """
    if os.environ.get("TRADEOFF_NATIVE") == "0":
        return None
    try:
        return importlib.import_module("tradeoff._native")
    except ImportError as error:
        warnings.warn(
            f"the compiled kernels are not usable ({error}); slower NumPy references run instead. "
            "Install a C++17 compiler and run: pip install --force-reinstall --no-deps tradeoff",
            NativeMissingWarning,
            stacklevel=2,
        )
        return None


def instruction_set() -> str | None:
    """The instruction set that the kernels of this process use: ``avx512``, ``avx2`` or ``portable``."""
    native = extension()
    return None if native is None else str(native.instruction_set())


def describe() -> str:
    """One line for ``tradeoff doctor``."""
    native = extension()
    if native is None:
        return "native kernels: missing, NumPy references are used (install a C++17 compiler and reinstall)"
    return f"native kernels: {native.instruction_set()}, {threads()} thread(s)"


def threads() -> int:
    """How many threads a kernel may use.

    torch's setting (``torch.set_num_threads``) where torch is loaded, else ``OMP_NUM_THREADS``, else the
    number of processors that this process may run on. Results never depend on it.
    """
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    # OMP_NUM_THREADS may be a list, one number a nesting level; the first is ours.
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdigit() and int(first) > 0:
        return int(first)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
