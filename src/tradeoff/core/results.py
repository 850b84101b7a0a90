"""Results that are kept with the project, and the parts of cards that quote them.

``docs/results/NAME.json`` holds a study as its JSON document, with the name of its recipe and where it ran. A
card quotes it between two comments, ``<!-- results: NAME.json -->`` and ``<!-- end of results -->``; what
stands between them is written by :func:`fill_quotes`, never by hand.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .card import Card
from .errors import StoreError
from .files import read_json, write_json
from .method import Method
from .outcome import Outcome, Outcomes
from .registry import PACKAGE, load_method
from .report.summary import Row, kinds, origin, readable, summarize
from .store import RunFolder
from .study import Study

_QUOTE = re.compile(r"(<!-- results: (?P<file>[\w.-]+\.json) -->\n).*?(<!-- end of results -->)", re.DOTALL)

_SYSTEMS = re.compile(r"(<!-- systems -->\n).*?(<!-- end of systems -->)", re.DOTALL)


def save_results(study: Study, recipe: str, path: Path) -> None:
    """Keep a complete study.

    Args:
        recipe: the name of its recipe.
        path: the file, in ``docs/results``.

    Raises:
        StoreError: a trial has no outcome, or the file cannot be written.
    """
    if study.missing:
        raise StoreError(f"{study.method.card.name}: {len(study.missing)} trials have no outcome")
    document = study.document() | {
        "recipe_name": recipe,
        "provenance": dict(origin(study.outcomes)),
    }
    del document["run"], document["seconds"]  # of one checkout and one call, not of the results
    write_json(path, document)


def load_results(path: Path) -> tuple[Study, dict[str, Any]]:
    """A kept study, its claims to be checked by today's code, and its document.

    Raises:
        StoreError: the file is damaged. RecipeError: its recipe is not one of the method any more.
    """
    document = read_json(path)
    try:
        method: Method[Any] = load_method(document["method"])
        recipe = method.Recipe(**document["recipe"])
        outcomes = Outcomes(Outcome.model_validate(outcome) for outcome in document["outcomes"])
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path}: not a document of results ({type(error).__name__}: {error})") from error
    return Study(method, recipe, RunFolder(path.parent), method.trials(recipe), outcomes), document


def fill_quotes(text: str, folder: Path) -> str:
    """The card's text with each quotation as the files in ``folder`` have it."""

    def quote(match: re.Match[str]) -> str:
        study, document = load_results(folder / match["file"])
        return match[1] + markdown(study, document) + match[3]

    return _QUOTE.sub(quote, text)


def quoted_files(text: str) -> list[str]:
    """Names of the results that a card quotes."""
    return [match["file"] for match in _QUOTE.finditer(text)]


def markdown(study: Study, document: dict[str, Any]) -> str:
    """Table, claims and origin of a kept study as Markdown."""
    rows = summarize(study.method.card.name, study.outcomes, study.frontier)
    facts = document["provenance"]
    seeds = max(len(row.outcomes) for row in rows)
    return "\n".join(
        [
            f"Recipe `{document['recipe_name']}`, {seeds} {'seeds' if seeds > 1 else 'seed'}; mean ± 95 % "
            f"interval, * on the frontier. Measured on {facts['machine']} with {facts['versions']}.",
            "",
            *_outcome_lines(rows, study.quantities),
            "",
            *_claim_lines(study),
            "",
        ]
    )


def _outcome_lines(rows: Sequence[Row], quantities: Sequence[str]) -> list[str]:
    settings = list(dict.fromkeys(key for row in rows for key in row.setting))
    heading = ["variant", *settings, *(f"`{name}` ({kinds(rows, name)})" for name in quantities)]
    lines = [_line(heading), _line(["---"] * len(heading))]
    for row in rows:
        cells = [row.variant + (" *" if row.on_frontier else "")]
        cells += [str(row.setting.get(key, "")) for key in settings]
        cells += [row.shown(name, with_kind="," in kinds(rows, name)) for name in quantities]
        lines.append(_line(cells))
    return lines


def _claim_lines(study: Study) -> list[str]:
    lines = [_line(["claim", "source", "verdict", "numbers"]), _line(["---"] * 4)]
    for claim, finding in study.findings:
        numbers = ", ".join(
            f"{name} {value if isinstance(value, str) else readable(value, '')}"
            for name, value in finding.numbers.items()
        )
        lines.append(_line([claim.text, claim.source, f"**{finding.verdict}**", numbers]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def readme_with_systems(text: str) -> str:
    """The README's text with its table of systems made from the cards."""
    lines = [_line(["system", "what it does for you", "paper"]), _line(["---"] * 3)]
    for path in sorted(PACKAGE.glob("methods/*/*/card.md")):
        card = Card.load(path)
        link = path.relative_to(PACKAGE.parents[1]).as_posix()
        paper = f"[{card.paper.venue} {card.paper.year}]({card.paper.url})"
        lines.append(_line([f"[`{card.name}`]({link})", card.summary, paper]))
    return _SYSTEMS.sub(lambda match: match[1] + "\n".join(lines) + "\n" + match[2], text)
