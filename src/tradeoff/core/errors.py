"""Errors of the whole project: each message says what was wrong, where, and what to do.

Where Python has a fitting built-in, the class derives from it too, so that library users catch what
they expect (``except ValueError`` catches a :class:`RecipeError`).
"""


class TradeoffError(Exception):
    """Base of every error that tradeoff raises on purpose; the command line prints it without a traceback."""


def warning_line(message: Warning | str, category: type[Warning], filename: str, lineno: int) -> str:
    """A warning as people read it: without the place in the code, unless it is one for developers."""
    if issubclass(category, UserWarning | RuntimeWarning):
        return str(message)
    return f"{filename}:{lineno}: {category.__name__}: {message}"


class RecipeError(TradeoffError, ValueError):
    """A recipe has an unknown key, a value of the wrong type or one out of range."""


class MissingExtra(TradeoffError, ImportError):
    """An optional dependency is absent.

    Args:
        package: the module that could not be imported.
        extra: the extra of this project that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'tradeoff[{extra}]'")
        self.package = package
        self.extra = extra


class MissingTool(TradeoffError, FileNotFoundError):
    """An external program is absent; the message names the package that brings it."""


class DeviceError(TradeoffError, ValueError):
    """No device has this name, or this machine has none of it."""


class DataError(TradeoffError, ValueError):
    """A data set is absent, incomplete or malformed."""


class EngineError(TradeoffError, RuntimeError):
    """An engine could not execute what it was asked to."""


class ProtocolError(EngineError):
    """A peer broke the protocol: a malformed, unexpected or replayed message."""


class StoreError(TradeoffError, OSError):
    """A file of the store is corrupt, foreign or cannot be written."""


class UnknownName(TradeoffError, LookupError):
    """No method, recipe, run or other thing has this name; the message gives the nearest one."""


class UnknownQuantity(UnknownName):
    """A quantity is not in the table of :mod:`tradeoff.core.quantities`."""


class OutcomeError(TradeoffError, ValueError):
    """A trial returned something that is no valid outcome of it."""


class MissingOutcome(TradeoffError, LookupError):
    """An outcome that a claim or a table needs is absent: its trial failed or is not in the recipe."""


class TrialFailed(TradeoffError, RuntimeError):
    """A trial raised an error or its process died."""


class CardError(TradeoffError, ValueError):
    """A method card is incomplete or malformed."""


class MethodError(TradeoffError, ImportError):
    """A method's package is broken and cannot be loaded."""


class SandboxUnavailable(EngineError):
    """No way to box a program works here; the message names the package that brings one."""


class ContractViolation(TradeoffError, AssertionError):
    """A method breaks a point of the contract that every method keeps."""
