"""The contract that every method keeps, as checks that any package can run on its own::

from tradeoff.core.contract import check_method

@pytest.mark.parametrize("check", check_method(MyMethod()), ids=str)
def test_contract(check):
    check()
"""

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import resolve_name
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .card import Card
from .errors import ContractViolation, MissingOutcome, RecipeError, TradeoffError
from .executors import SerialExecutor
from .method import Method
from .outcome import Outcome
from .quantities import quantity
from .study import Study, load_study, run_study

RECIPES = ("smoke", "default", "full")


@dataclass(frozen=True)
class Check:
    """One point of the contract for one method; call it to check.

    Raises:
        ContractViolation: from the call, where the method breaks this point.
    """

    name: str
    subject: "_Subject" = field(repr=False)

    def __call__(self) -> None:
        """Check."""
        try:
            _CHECKS[self.name](self.subject)
        except ContractViolation:
            raise
        except TradeoffError as error:
            raise ContractViolation(f"{self.name}: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self.name


def check_method(method: Method[Any]) -> Iterator[Check]:
    """The points of the contract for a method, in an order where each relies on those before.

    The ``smoke`` study is run once, when the first check needs it, and shared by the others.
    """
    subject = _Subject(method)
    return (Check(name, subject) for name in _CHECKS)


class _Subject:
    """A method under check and its smoke study."""

    def __init__(self, method: Method[Any]) -> None:
        self.method = method
        self._folder = TemporaryDirectory(prefix="tradeoff-contract-")

    @property
    def runs(self) -> Path:
        """Where the smoke study is stored."""
        return Path(self._folder.name)

    @cached_property
    def smoke(self) -> Study:
        """The smoke study, all trials run."""
        study = self.run()
        for failure in study.failures:
            raise ContractViolation(f"smoke: {failure.trial}: {failure.error}\n{failure.traceback}")
        return study

    def run(self) -> Study:
        """Run those trials of the smoke recipe that are not stored."""
        return run_study(self.method, self.method.load_recipe("smoke"), self.runs, executor=SerialExecutor())


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ContractViolation(message)


def _card_is_complete(subject: _Subject) -> None:
    method = subject.method
    card = getattr(method, "card", None)
    _require(isinstance(card, Card), "the method has no Card")
    card = Card.load(method.folder / "card.md")
    _require(card == method.card, "the method's card is not that of card.md")
    _require(card.body, "card.md says nothing below its facts")
    _require(method.claims, "the method checks no claim of the paper")
    for axis in (card.frontier.x, card.frontier.y):
        _require(axis in card.quantities, f"the frontier's {axis} is not among the card's quantities")


def _recipes_are_valid(subject: _Subject) -> None:
    for name in RECIPES:
        recipe = subject.method.load_recipe(name)
        _require(subject.method.trials(recipe), f"recipe {name} gives no trials")
    for name, parameter in subject.method.Recipe.model_fields.items():
        _require(parameter.description, f"parameter {name} of the recipe has no description")


def _bad_recipes_are_refused(subject: _Subject) -> None:
    for change in ("no_such_parameter=1", "seeds=many", "minutes=-1"):
        try:
            subject.method.load_recipe("smoke", [change])
        except RecipeError as error:
            _require(change.partition("=")[0] in str(error), f"the error for {change} does not name it")
        else:
            raise ContractViolation(f"{change} is accepted")


def _imports_point_down(subject: _Subject) -> None:
    """Static: a method imports no other method and nothing of the command line."""
    package = type(subject.method).__module__.rpartition(".")[0]
    for path in sorted(subject.method.folder.rglob("*.py")):
        inner = path.relative_to(subject.method.folder).with_suffix("").parts
        module = ".".join([package, *inner]).removesuffix(".__init__")
        for name in _imports(path, module):
            own = f"{name}.".startswith(f"{package}.")
            other = name.startswith(("tradeoff.methods.", "tradeoff.cli")) and not own
            _require(not other, f"{path.name} imports {name}: a method imports no other, nor the command")


def _imports(path: Path, module: str) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            base = resolve_name(dots + (node.module or ""), package) if dots else node.module
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _smoke_runs(subject: _Subject) -> None:
    study = subject.smoke
    _require(not study.missing, f"no outcome for {', '.join(map(str, study.missing))}")
    _require(study.frontier, "no outcome has both quantities of the card's frontier")


def _quantities_are_declared(subject: _Subject) -> None:
    """Registered ones (the outcomes' own validation sees to that) that the card lists, too."""
    undeclared = set(subject.smoke.quantities) - set(subject.method.card.quantities)
    _require(not undeclared, f"the outcomes hold {sorted(undeclared)}, which the card does not list")


def _resumes_with_equal_outcomes(subject: _Subject) -> None:
    """Without the stored outcome of one trial of each variant, just those run again, and give the same."""
    before = subject.smoke.outcomes
    chosen = [before.where(variant)[0] for variant in before.variants]
    folder = subject.smoke.folder
    with TemporaryDirectory(prefix="tradeoff-contract-") as aside:
        for outcome in chosen:
            stored = folder.path / "trials" / f"{outcome.trial.key}.json"
            stored.rename(Path(aside) / stored.name)
        if (subject.runs / ".cache").exists():
            (subject.runs / ".cache").rename(Path(aside) / "cache")
        with _counted_runs(subject.method) as ran:
            after = subject.run()
    _require(not after.failures, f"a second run fails: {[failure.error for failure in after.failures]}")
    _require(sorted(ran) == sorted(outcome.trial.key for outcome in chosen), "resuming ran other trials, too")
    again = {outcome.trial.key: outcome for outcome in after.outcomes}
    for outcome in chosen:
        _require_equal(outcome, again[outcome.trial.key])


@contextmanager
def _counted_runs(method: Method[Any]) -> Iterator[list[str]]:
    """Keys of the trials that the method runs inside the block."""
    ran: list[str] = []
    original: Callable[..., Outcome] = type(method).run

    def run(self: Method[Any], trial: Any, recipe: Any, context: Any) -> Outcome:
        ran.append(trial.key)
        return original(self, trial, recipe, context)

    type(method).run = run  # type: ignore[method-assign]
    try:
        yield ran
    finally:
        type(method).run = original  # type: ignore[method-assign]


def _require_equal(first: Outcome, second: Outcome) -> None:
    """Both outcomes hold the same values, those of clocks and memory aside."""
    _require(first.metrics.keys() == second.metrics.keys(), f"{first.trial} gave other quantities again")
    for name, metric in first.metrics.items():
        other = second.metrics[name]
        same = metric == other if quantity(name).repeatable else metric.kind == other.kind
        _require(same, f"{first.trial} gave {name} {metric.value}, then {other.value}: not reproducible")


def _claims_evaluate_with_numbers(subject: _Subject) -> None:
    """A claim may need cells that ``smoke`` leaves out, but not all claims may."""
    checked = 0
    for claim in subject.method.claims:
        _require(claim.text and claim.source, "a claim has no text or no source")
        try:
            finding = claim.check(subject.smoke.outcomes)
        except MissingOutcome:
            continue
        except Exception as error:
            raise ContractViolation(f"claim {claim.text!r} cannot be checked on smoke: {error}") from error
        _require(finding.numbers, f"claim {claim.text!r} decides without numbers")
        checked += 1
    _require(checked, "the smoke study has the outcomes for none of the claims")


def _report_is_written(subject: _Subject) -> None:
    from .report import write_report

    study = load_study(subject.smoke.folder, subject.method)
    _require(len(study.outcomes) == len(subject.smoke.outcomes), "the store holds another study than ran")
    write_report(study)


_CHECKS: dict[str, Callable[[_Subject], None]] = {
    "card is complete": _card_is_complete,
    "three recipes are valid": _recipes_are_valid,
    "bad recipes are refused": _bad_recipes_are_refused,
    "imports no other method": _imports_point_down,
    "smoke study runs": _smoke_runs,
    "quantities are those of the card": _quantities_are_declared,
    "resumes, and gives equal outcomes again": _resumes_with_equal_outcomes,
    "claims evaluate with numbers": _claims_evaluate_with_numbers,
    "report is written": _report_is_written,
}
