"""The ``tradeoff`` command: it assembles what the other parts do, and computes nothing.

Every import that costs time stands inside the command that needs it, so that help comes at once.
"""

import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from tradeoff.core.errors import EngineError, StoreError, TradeoffError, TrialFailed, warning_line

if TYPE_CHECKING:
    from rich.console import Console

    from tradeoff.core.executors import Executor
    from tradeoff.core.registry import Entry
    from tradeoff.core.study import Study
    from tradeoff.data.workloads import Workload
    from tradeoff.nn.graphs import Adjacency

_LONG_RUN_MINUTES = 3.0
_INTERRUPTED = 130


class _Verbs(TyperGroup):
    """The verbs of one method or engine, imported when one of them is called."""

    def __init__(self, entry: "Entry") -> None:
        super().__init__(name=entry.name, help=entry.summary)
        self._entry = entry

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Hand over to the real command."""
        command = typer.main.get_group(self._entry.load())
        return command.make_context(info_name, args, parent=parent, **extra)


class _Commands(TyperGroup):
    """The commands below, and the verbs of the methods and engines that are installed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names for the help: the commands in the order of this file, then the verbs."""
        from tradeoff.core.registry import verbs

        return [*self.commands, *(name for name in verbs() if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, or None."""
        from tradeoff.core.registry import verbs

        if cmd_name in self.commands:
            return self.commands[cmd_name]
        return _Verbs(verbs()[cmd_name]) if cmd_name in verbs() else None


app = typer.Typer(
    cls=_Commands,
    help="Spend less on a neural network, by published methods, each checked against its paper's claims.",
    epilog="Any command takes --debug, which shows where an error comes from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its import takes longer than all the rest of the help
)


class ExecutorName(StrEnum):
    """Where trials run."""

    LOCAL = "local"
    RAY = "ray"


Name = Annotated[str, typer.Argument(help="A method; `tradeoff list` shows them.")]
Runs = Annotated[Path, typer.Option(help="The folder that holds all runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def _version(wanted: bool) -> None:
    if wanted:
        import tradeoff

        typer.echo(tradeoff.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    name: Name,
    recipe: Annotated[str, typer.Option(help="smoke, default, full, or a YAML file.")] = "default",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Repeat each cell with this many seeds.")] = None,
    executor: Annotated[ExecutorName, typer.Option(help="Where trials run.")] = ExecutorName.LOCAL,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Local processes; one for each core if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="A torch device; auto takes an accelerator if any.")] = "auto",
    runs: Runs = Path("runs"),
    json: Json = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a claim fails.")] = False,
) -> None:
    """Run a study, or go on with one.

    Prints the table, the frontier and the claims, and writes a page to open.

    Exits with 0 after all trials ran, 1 if one failed, 2 for bad input.
    """
    from tradeoff.core.context import usable_device
    from tradeoff.core.progress import ConsoleMonitor
    from tradeoff.core.registry import load_method
    from tradeoff.core.report import write_report
    from tradeoff.core.study import pending_trials, run_study

    with redirect_stdout(sys.stderr) if json else nullcontext():
        method = load_method(name)
        repeats = [] if seeds is None else [f"seeds={seeds}"]
        chosen = method.load_recipe(recipe, [*(changes or []), *repeats])
        pending, total = pending_trials(method, chosen, runs)
        console = _console(stderr=True)
        if device != "auto":
            usable_device(device)
        if method.timed and pending > 1 and (executor is ExecutorName.RAY or (workers or 1) > 1):
            console.print(f"warning: {name} times its trials; at once they slow each other", style="yellow")
        minutes = chosen.minutes * pending / max(total, 1)
        if minutes > _LONG_RUN_MINUTES:
            console.print(f"{pending} of {total} trials to run, about {minutes:.0f} minutes on 2 cores")
        try:
            with ConsoleMonitor(console, pending) as monitor:
                study = run_study(
                    method,
                    chosen,
                    runs,
                    executor=_executor(executor, workers),
                    device=device,
                    monitor=monitor,
                )
        except KeyboardInterrupt:
            left, _ = pending_trials(method, chosen, runs)
            console.print(f"stopped; {total - left} of {total} trials are stored. To go on:")
            console.print(f"  tradeoff {shlex.join(sys.argv[1:])}", markup=False, highlight=False)
            raise typer.Exit(_INTERRUPTED) from None
        write_report(study)
    _show_study(study, json)
    if study.failures or (strict and study.claims_fail):
        raise typer.Exit(1)


@app.command("list")
def list_(json: Json = False) -> None:
    """The methods that are installed."""
    from tradeoff.core.method import Method
    from tradeoff.core.registry import load_methods

    found = list(load_methods())
    good = [method for _, method in found if isinstance(method, Method)]
    for name, error in found:
        if not isinstance(error, Method):
            _console(stderr=True).print(f"warning: {name} is left out: {error}", style="yellow", markup=False)
    if json:
        facts = ("name", "title", "summary", "quantities")
        _print_json({"methods": [method.card.model_dump(mode="json", include=set(facts)) for method in good]})
        return
    from tradeoff.core.report.terminal import methods_table

    _console().print(methods_table(good))


@app.command()
def show(name: Name, json: Json = False) -> None:
    """A method: facts, recipe parameters, claims."""
    from tradeoff.core.registry import load_method
    from tradeoff.core.report.terminal import describe_method, method_document

    method = load_method(name)
    if json:
        _print_json(method_document(method))
    else:
        _console().print(describe_method(method))


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(help="Methods (their last runs) or run folders.")],
    runs: Runs = Path("runs"),
    json: Json = False,
) -> None:
    """Outcomes of methods beside each other.

    Shows the quantities that all of them have.
    """
    from tradeoff.core.report.comparison import compare_studies

    comparison = compare_studies([_stored_study(name, runs) for name in names])
    if json:
        _print_json(comparison.document())
    else:
        console = _console()
        console.print(comparison.table(console))


@app.command()
def report(
    run_: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a method for its last run.")],
    runs: Runs = Path("runs"),
    json: Json = False,
) -> None:
    """Write the page of a run again.

    From the outcomes that are stored, without running a trial.
    """
    from tradeoff.core.report import write_report

    study = _stored_study(run_, runs)
    write_report(study)
    _show_study(study, json)


@app.command()
def doctor(json: Json = False) -> None:
    """What works here, and how to get the rest.

    Looks at extras, native code, outside tools, the sandbox and data.
    """
    from tradeoff.core.doctor import examination_table, examine

    findings = examine()
    if json:
        _print_json({"findings": [finding.document() for finding in findings]})
    else:
        _console().print(examination_table(findings))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every error becomes a line on standard error and an exit status.

    Status 2 means bad input; 1 means that something failed while working.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _show_warning
            app(
                args=[word for word in words if word != "--debug"],
                prog_name="tradeoff",
                obj={"load_graph": _load_graph, "load_workload": _load_workload},
            )
    except Exception as error:
        if debug:
            raise
        at_work = isinstance(error, EngineError | StoreError | TrialFailed) and not isinstance(
            error, ValueError
        )
        expected = isinstance(error, TradeoffError | OSError)
        hint = "" if expected else " (unexpected; --debug shows where)"
        print(f"error: {type(error).__name__}: {error}{hint}", file=sys.stderr)
        sys.exit(1 if at_work or not expected else 2)


def _load_graph(text: str, seed: int) -> "Adjacency":
    """A graph by its text, for the verbs of engines: these know generators and files, but no data sets."""
    from tradeoff.data.graphs import load_structure

    return load_structure(text, seed=seed)


def _load_workload(model: str, task: str, weights: Path | None, seed: int) -> "Workload":
    """A trained network and its task by name, for the verbs of engines that run networks."""
    from tradeoff.data.workloads import load_workload

    return load_workload(model, task, weights, seed)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {warning_line(message, category, filename, lineno)}", file=sys.stderr)


def _executor(name: ExecutorName, workers: int | None) -> "Executor | None":
    """The executor that the user asked for; None leaves the choice to the study."""
    from tradeoff.core.executors import LocalExecutor, RayExecutor

    if name is ExecutorName.RAY:
        return RayExecutor()
    return LocalExecutor(workers) if workers else None


def _stored_study(name: str, runs: Path) -> "Study":
    """The study of a run folder, or of the last run of a method."""
    from tradeoff.core.registry import load_method
    from tradeoff.core.store import RunFolder, latest_run
    from tradeoff.core.study import load_study

    folder: RunFolder
    if Path(name).is_dir() or len(Path(name).parts) > 1:
        folder = RunFolder.open(Path(name))
    else:
        folder = latest_run(runs, load_method(name).card.name)
    return load_study(folder, load_method(folder.header[0]))


def _show_study(study: "Study", json: bool) -> None:
    from tradeoff.core.report.terminal import print_study

    for problem in study.problems:
        _console(stderr=True).print(f"ignored {problem}", style="yellow", markup=False)
    if json:
        _print_json(study.document())
    else:
        print_study(study, _console())


def _print_json(document: dict[str, Any]) -> None:
    import json

    print(json.dumps(document, indent=1, allow_nan=False))


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)
