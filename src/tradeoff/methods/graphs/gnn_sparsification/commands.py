"""Make a network for your own graph sparse by several routes, and see what each costs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

if TYPE_CHECKING:
    from tradeoff.core.study import Study

    from .study import GNNSparsification, SparsificationRecipe

app = typer.Typer(help="Make a network for your own graph sparse by several routes.", no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """Make a network for your own graph sparse by several routes, and see what each costs."""


@app.command()
def train(
    task: Annotated[Literal["node", "link"], typer.Option(help="Classes of nodes, or links of the future.")],
    data: Annotated[
        str,
        typer.Option(
            help="A name of tradeoff.data.graphs; for nodes an .npz with x, y, edge_index, train, validation "
            "and test; for links a text of 'source target time' in each line."
        ),
    ] = "",
    method: Annotated[
        str,
        typer.Option(
            help="Which of: dense, prune, prune-retrain, prune-retrain-longer, admm, slr, static, set, "
            "momentum, explore, rigl, static-uniform, rigl-uniform; with commas."
        ),
    ] = "dense,prune-retrain,admm,slr,static,set,rigl",
    density: Annotated[str, typer.Option(help="Parts of the weights to keep, with commas.")] = "0.1,0.03",
    update_every: Annotated[int, typer.Option(min=1, help="Steps between two moves of a mask.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat each cell with this many seeds.")] = 3,
    device: Annotated[str, typer.Option(help="A torch device; auto takes an accelerator if any.")] = "auto",
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    report: Annotated[
        Path | None, typer.Option(help="JSON file for the outcomes; a .png beside it shows them.")
    ] = None,
) -> None:
    """Train by each route at each density, and print one table; the same command goes on where it was
    interrupted.

    Train-and-prune starts from the dense network, which is trained once for each seed and counted in its
    FLOPs. Epochs and learning rates are those of the study's default recipe. FLOPs are arithmetic: masked
    weights are multiplied as zeros, so no route runs faster than another for its sparsity.
    """
    from rich.console import Console

    from tradeoff.core.files import write_json
    from tradeoff.core.progress import ConsoleMonitor
    from tradeoff.core.report.figure import figure_png
    from tradeoff.core.report.summary import summarize
    from tradeoff.core.report.terminal import outcome_tables
    from tradeoff.core.study import pending_trials, run_study

    from .study import GNNSparsification

    study_method = GNNSparsification()
    recipe = _recipe(study_method, task, data, method, density, update_every, seeds)
    pending, _ = pending_trials(study_method, recipe, runs)
    with ConsoleMonitor(Console(stderr=True), pending) as monitor:
        study = run_study(study_method, recipe, runs, device=device, monitor=monitor)
    study = _by_quality(study, task)
    rows = summarize(study.method.card.name, study.outcomes, study.frontier)
    console = Console()
    console.print(outcome_tables(rows, study.quantities, console))
    for line in _published_averages(study, recipe.routes(task).growth.update_every):
        typer.echo(line)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_json(report, study.document())
        report.with_suffix(".png").write_bytes(figure_png(study))
        typer.echo(f"written to {report} and {report.with_suffix('.png')}")
    if study.failures:
        raise typer.Exit(1)


def _recipe(
    study_method: "GNNSparsification",
    task: str,
    data: str,
    method: str,
    density: str,
    update_every: int,
    seeds: int,
) -> "SparsificationRecipe":
    """The default recipe with one task and the user's choices."""
    from tradeoff.core.errors import RecipeError
    from tradeoff.core.suggest import did_you_mean

    from .study import Variant

    known = ["dense", *get_args(Variant)]
    values = study_method.load_recipe("default").model_dump(mode="json")
    routes: dict[str, Any] = values[task]
    names = [name.strip() for name in method.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise RecipeError(f"--method {unknown[0]!r} is none{did_you_mean(unknown[0], known)}")
    try:
        routes["densities"] = list(dict.fromkeys(float(part) for part in density.split(",")))
    except ValueError:
        raise RecipeError(f"--density {density!r}: write numbers with commas, as 0.1,0.03") from None
    routes["variants"] = [name for name in dict.fromkeys(names) if name != "dense"]
    routes["growth"]["update_every"] = update_every
    if data:
        routes["source"]["data"] = data
    other = "link" if task == "node" else "node"
    return study_method.Recipe(**{**values, other: None, "seeds": seeds})


def _by_quality(study: "Study", task: str) -> "Study":
    """The study with the task's own quality on its frontier: AUC for links."""
    from tradeoff.core.card import Frontier

    class Links(type(study.method)):  # type: ignore[misc]
        card = study.method.card.model_copy(update={"frontier": Frontier(x="training_flops", y="auc")})

    return study if task == "node" else replace(study, method=Links())


def _published_averages(study: "Study", update_every: int) -> Iterator[str]:
    """What the RigL paper's formula gives in place of the exact count, which counts an update as a step."""
    from tradeoff.nn.masks import rigl_average_flops

    dense = study.outcomes.where("dense").values("flops")[0]
    for cell in study.outcomes.where("rigl").cells():
        sparse = cell.mean("flops")
        average = rigl_average_flops(dense, sparse, update_every)
        yield (
            f"rigl at density {cell[0].trial.setting['density']}: a step costs {average:,.0f} FLOP a sample "
            f"by the RigL paper's average, {3 * sparse:,.0f} without growth, {3 * dense:,.0f} dense"
        )
