"""The results that are kept in docs/results: complete, of today's recipes, and quoted as they are."""

from pathlib import Path

import pytest

from tradeoff.core.registry import PACKAGE
from tradeoff.core.results import fill_quotes, load_results, quoted_files, readme_with_systems

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
CARDS = sorted(PACKAGE.glob("methods/*/*/card.md"))
FILES = sorted(RESULTS.glob("*.json"))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_every_method_has_results_of_its_default_recipe_and_quotes_them(card: Path) -> None:
    text = card.read_text(encoding="utf-8")
    name = card.parent.name.replace("_", "-")
    assert f"{name}.json" in quoted_files(text), "run: make studies"
    assert fill_quotes(text, RESULTS) == text, "the card quotes other numbers; run: make studies"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_are_complete_and_of_todays_recipe(path: Path) -> None:
    study, document = load_results(path)
    recipe = study.method.load_recipe(document["recipe_name"])
    assert study.recipe.hash == recipe.hash, "the recipe changed since; run: make studies"
    assert study.missing == []
    assert [o.trial.key for o in study.outcomes] == [t.key for t in study.trials]
    assert study.recipe.seeds >= recipe.seeds


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kept_verdicts_are_what_todays_claims_say(path: Path) -> None:
    study, document = load_results(path)
    kept = [(claim["text"], claim["verdict"]) for claim in document["claims"]]
    assert kept == [(claim.text, finding.verdict) for claim, finding in study.findings]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_say_where_they_come_from(path: Path) -> None:
    provenance = load_results(path)[1]["provenance"]
    assert {"host", "machine", "versions", "commit"} <= set(provenance)
    assert "dirty" not in provenance["commit"]


def test_the_readme_lists_every_system() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_with_systems(text) == text, "run: python scripts/studies.py --no-run"
