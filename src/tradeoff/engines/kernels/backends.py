"""Which module runs a raw operator, and what is here to run it."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from tradeoff.core import native
from tradeoff.engines.kernels.errors import BackendError
from tradeoff.engines.kernels.meter import Call, last_call

BACKENDS = ("auto", "cpp", "triton", "torch")
STRATEGIES = ("auto", "rows", "buckets")

_MODULES = {"cpp": "native_ops", "triton": "triton_ops", "torch": "reference"}


@dataclass(frozen=True)
class KernelInfo:
    """What runs the sparse kernels here.

    Attributes:
        cpu_backend: what ``auto`` takes on a CPU: ``cpp``, or ``torch`` where the extension is missing.
        instruction_set: of the C++ kernels: ``avx512``, ``avx2`` or ``portable``; None without them.
        threads: that a C++ kernel called now would use.
        huge_pages: whether large results come from memory for which huge pages were asked.
        triton: its version, or None.
        last: the latest kernel that ran in this process.
    """

    cpu_backend: str
    instruction_set: str | None
    threads: int
    huge_pages: bool
    triton: str | None
    last: Call | None

    def __str__(self) -> str:
        """One line."""
        cpu = f"{self.cpu_backend}, {self.threads} thread(s)"
        if self.instruction_set:
            cpu += f", {self.instruction_set}, huge pages {'asked for' if self.huge_pages else 'off'}"
        return f"sparse kernels: CPU {cpu}; GPU {f'triton {self.triton}' if self.triton else 'no triton'}"


def kernel_info() -> KernelInfo:
    """What runs the sparse kernels here, and what the last call ran."""
    has_native = native_kernels() is not None
    return KernelInfo(
        cpu_backend="cpp" if has_native else "torch",
        instruction_set=native.instruction_set() if has_native else None,
        threads=torch.get_num_threads(),
        huge_pages=has_native and huge_pages_wanted(),
        triton=_triton_version(),
        last=last_call(),
    )


def native_kernels() -> ModuleType | None:
    """The compiled extension if it holds the sparse kernels."""
    module = native.extension()
    return module if hasattr(module, "sparse_spmm") else None


def native_linear() -> ModuleType | None:
    """The compiled extension if it holds the linear layer on compressed features."""
    module = native.extension()
    return module if hasattr(module, "cbsr_linear") else None


def huge_pages_wanted() -> bool:
    """Whether results of 4 MiB and more ask for huge pages; ``TRADEOFF_HUGE_PAGES=0`` turns it off."""
    return os.environ.get("TRADEOFF_HUGE_PAGES") != "0"


def resolve(backend: str, device: torch.device) -> str:
    """The name of the backend that runs a call on ``device``.

    Raises:
        BackendError: no such backend, or it cannot run on this device.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend == "auto":
        if device.type == "cpu":
            return "torch" if native_kernels() is None else "cpp"
        return "triton" if device.type == "cuda" and _triton_version() else "torch"
    if backend == "cpp":
        if device.type != "cpu":
            raise BackendError(f"backend='cpp' runs on the CPU, the operands are on {device}")
        if native_kernels() is None:
            raise BackendError(
                "backend='cpp' needs the compiled extension: install a C++17 compiler and reinstall"
            )
    if backend == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError(
            "backend='triton' needs a GPU, or TRITON_INTERPRET=1 set before triton is imported"
        )
    return backend


def takes_buckets(strategy: str, backend: str, device: torch.device) -> bool:
    """Whether rows of equal degree are multiplied together: what a GPU is faster with, and a CPU is not."""
    # Without resolve(), which looks for the extension: torch.compile traces through here.
    on_gpu = backend == "auto" and device.type == "cuda" and _triton_version() is not None
    return strategy == "buckets" or (strategy == "auto" and (backend == "triton" or on_gpu))


def operators_of(backend: str) -> ModuleType:
    """The module with the raw operators of a resolved backend.

    Raises:
        BackendError: what it needs is not installed.
    """
    try:
        return importlib.import_module(f"tradeoff.engines.kernels.{_MODULES[backend]}")
    except ImportError as error:
        raise BackendError(f"backend={backend!r} cannot be loaded: {error}") from error


def kernel_name(backend: str, strategy: str = "") -> str:
    """How :class:`Call` names what ran, such as ``cpp-avx512-rows``."""
    parts = [backend, native.instruction_set() if backend == "cpp" else None, strategy]
    return "-".join(part for part in parts if part)


def raw(backend: str, tensor: Tensor) -> tuple[ModuleType, str]:
    """The module and name of the backend for operands where ``tensor`` is."""
    name = resolve(backend, tensor.device)
    return operators_of(name), name


def _triton_version() -> str | None:
    try:
        from importlib.metadata import version

        return version("triton")
    except ImportError:
        return None
