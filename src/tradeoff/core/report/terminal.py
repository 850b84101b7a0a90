"""A study in the terminal: the table, the claims, and where the files are."""

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..claims import Verdict
from ..method import Method
from .summary import Row, kinds, readable, summarize

if TYPE_CHECKING:
    from ..study import Study

VERDICT_STYLES = {
    Verdict.HOLDS: "bold green",
    Verdict.FAILS: "bold red",
    Verdict.UNDECIDED: "bold yellow",
}


def print_study(study: "Study", console: Console) -> None:
    """Print the table of cells, the claims and the paths of the report."""
    card = study.method.card
    console.print(Text(card.title, style="bold"))
    rows = summarize(card.name, study.outcomes, study.frontier)
    if rows:
        console.print(outcome_tables(rows, study.quantities, console))
        console.print(
            f"mean ± 95 % interval over seeds; * on the frontier of {card.frontier.x} and {card.frontier.y}",
            style="dim",
        )
    for trial in study.missing:
        console.print(Text(f"no outcome: {trial}", style="yellow"))
    if study.findings:
        console.print(claims_table(study))
    console.print(Text(f"report: {study.folder.shown}/report.html"), soft_wrap=True)


def outcome_tables(rows: Sequence[Row], quantities: Sequence[str], console: Console) -> RenderableType:
    """One row per cell. Quantities that do not fit beside the others go to a further table below."""
    remaining = list(quantities)
    tables = []
    while remaining:
        count = len(remaining)
        while count > 1 and _width(_table(rows, remaining[:count]), console) > console.width:
            count -= 1
        tables.append(_table(rows, remaining[:count]))
        remaining = remaining[count:]
    return Group(*tables)


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _table(rows: Sequence[Row], quantities: Sequence[str]) -> Table:
    keys = list(dict.fromkeys(key for row in rows for key in row.setting))
    several_methods = len({row.method for row in rows}) > 1
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in (["method"] if several_methods else []) + ["variant", *keys]:
        table.add_column(name, no_wrap=True, vertical="bottom")
    table.add_column("seeds", justify="right")
    mixed = {name: "," in kinds(rows, name) for name in quantities}
    for name in quantities:
        heading = Text(f"{name}\n").append(kinds(rows, name), style="dim")
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        mark = " *" if row.on_frontier else ""
        cells = [row.method] if several_methods else []
        cells += [row.variant + mark, *(_shown(row.setting.get(key, "")) for key in keys)]
        cells += [str(len(row.outcomes))]
        cells += [row.shown(name, mixed[name]) for name in quantities]
        table.add_row(*map(Text, cells), style="bold" if row.on_frontier else "")
    return table


def claims_table(study: "Study") -> Table:
    """Each claim of the paper with its verdict and the numbers that decided it."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("verdict", "claim of the paper", "numbers"):
        table.add_column(name, overflow="fold")
    for claim, finding in study.findings:
        numbers = ", ".join(f"{key} {_shown(value)}" for key, value in finding.numbers.items())
        table.add_row(
            Text(finding.verdict, style=VERDICT_STYLES[finding.verdict]),
            Text(f"{claim.text} ({claim.source})"),
            Text(numbers, style="dim"),
        )
    return table


def _shown(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return readable(value, "")
    return str(value)


def methods_table(methods: Sequence[Method[Any]]) -> Table:
    """The installed methods with what each trades."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("name", "method", "trades"):
        table.add_column(name, overflow="fold")
    for method in methods:
        card = method.card
        table.add_row(
            Text(card.name, style="bold"), Text(card.title), f"{card.frontier.x}, {card.frontier.y}"
        )
    return table


def describe_method(method: Method[Any]) -> RenderableType:
    """A method's card, its recipes' parameters and its claims."""
    card = method.card
    paper = (
        f"{card.paper.authors}. {card.paper.title}. {card.paper.venue}, {card.paper.year}. {card.paper.url}"
    )
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    recipes = ", ".join(f"{name} ({_minutes(method, name)})" for name in method.recipe_names())
    for label, value in (
        ("paper", paper),
        ("code", card.code or "not published"),
        ("quantities", ", ".join(card.quantities)),
        ("recipes", recipes),
    ):
        facts.add_row(label, Text(value))
    parameters = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("parameter", "type", "default", "description"):
        parameters.add_column(name, overflow="fold")
    for parameter in recipe_parameters(method):
        parameters.add_row(*(Text(parameter[key]) for key in ("name", "type", "default", "description")))
    claims = [Text(f"  - {claim.text} ({claim.source})") for claim in method.claims]
    nested = [
        Text(f"{path}: {', '.join(names)}", style="dim") for path, names in nested_parameters(method.Recipe)
    ]
    return Group(
        Text(card.title, style="bold"),
        Text(card.summary),
        "",
        facts,
        parameters,
        *nested,
        *([Text("set one with --set KEY.NAME=VALUE\n", style="dim")] if nested else []),
        Text("Claims that the study checks", style="bold"),
        *claims,
    )


def method_document(method: Method[Any]) -> dict[str, Any]:
    """What :func:`describe_method` shows, as JSON."""
    return {
        **method.card.model_dump(mode="json", exclude={"body"}),
        "recipes": method.recipe_names(),
        "parameters": recipe_parameters(method),
        "claims": [{"text": claim.text, "source": claim.source} for claim in method.claims],
    }


def recipe_parameters(method: Method[Any]) -> list[dict[str, str]]:
    """Name, type, default and description of each parameter of a method's recipe."""
    return [
        {
            "name": name,
            "type": _type_name(field.annotation),
            "default": "required"
            if field.is_required()
            else str(field.get_default(call_default_factory=True)),
            "description": field.description or "",
        }
        for name, field in method.Recipe.model_fields.items()
    ]


def nested_parameters(model: type[BaseModel]) -> list[tuple[str, list[str]]]:
    """For the parameters that hold further ones: their names, parameters of one type together."""
    names: dict[type[BaseModel], list[str]] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names.setdefault(field.annotation, []).append(name)
    return [(", ".join(those), list(inner.model_fields)) for inner, those in names.items()]


def _minutes(method: Method[Any], recipe: str) -> str:
    return f"{readable(method.load_recipe(recipe).minutes, '')} min"


def _type_name(annotation: Any) -> str:
    """``int``, ``list[int]``, ``int | None``: the type without module names and bounds."""
    origin = get_origin(annotation)
    inner = get_args(annotation)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " | ".join(map(_type_name, inner))
    if annotation in (None, NoneType, Ellipsis):
        return "..." if annotation is Ellipsis else "None"
    name = getattr(origin or annotation, "__name__", str(annotation))
    return f"{name}[{', '.join(map(_type_name, inner))}]" if inner else name
