"""Recipes and cards: what is accepted, and what each refusal says."""

from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from tests.conftest import TOY
from tradeoff.core import Card, Recipe
from tradeoff.core.errors import CardError, RecipeError


class Training(BaseModel, extra="forbid", frozen=True):
    epochs: int = Field(default=1, ge=1)
    learning_rate: float = 0.1


class ExampleRecipe(Recipe):
    budgets: list[int] = Field(default=[400])
    name: str = "x"
    limit: int | None = 3
    training: Training = Training()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "example.yaml"
    path.write_text("minutes: 2\nbudgets: [1, 2]\ntraining:\n  epochs: 4\n")
    return path


def test_load_with_changes(file: Path) -> None:
    changes = ["budgets=[7]", "training.learning_rate=1e-3", "name=123", "limit=null", "seeds=5"]
    recipe = ExampleRecipe.load(file, changes)
    assert recipe.budgets == [7]
    assert recipe.training == Training(epochs=4, learning_rate=1e-3)
    assert recipe.name == "123"
    assert recipe.limit is None
    assert recipe.seeds == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("budgts=[1]", "unknown key 'budgts'; did you mean 'budgets'?"),
        ("training.epoch=3", "unknown key 'training.epoch'; did you mean 'epochs'?"),
        ("budgets=many", "budgets: input should be a valid list (got 'many')"),
        ("training.epochs=0", "training.epochs: input should be greater than or equal to 1 (got '0')"),
        ("seeds=0", "seeds"),
        ("minutes=.inf", "minutes"),
        ("training.learning_rate=.inf", "training.learning_rate: must be a finite number (got inf)"),
        ("training.learning_rate=.nan", "training.learning_rate: must be a finite number (got nan)"),
        ("budgets", "--set 'budgets': write key=value"),
        ("=3", "write key=value"),
        ("name=[", "not valid YAML"),
    ],
)
def test_bad_changes(file: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        ExampleRecipe.load(file, [change])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must be a mapping"),
        ("3: 4", "must be a mapping"),
        ("minutes: 1\nminutes: 2", "stands twice"),
        ("a: &x [1]\nb: *x", "aliases are not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("[" * 2000, "nested too deep"),
        ("# " + "x" * 300_000, "larger than"),
        ("", "minutes: field required"),
        ("\x00", "not valid YAML"),
    ],
)
def test_hostile_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        ExampleRecipe.load(path)


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read recipe"):
        ExampleRecipe.load(tmp_path / "absent.yaml")


def test_hash_names_what_changes_outcomes() -> None:
    base = ExampleRecipe(minutes=1)
    assert ExampleRecipe(minutes=9, seeds=7).hash == base.hash
    assert ExampleRecipe(minutes=1, budgets=[1]).hash != base.hash


def test_constructor_refuses_unknown_keys_and_changes() -> None:
    with pytest.raises(RecipeError, match="did you mean 'budgets'"):
        ExampleRecipe(minutes=1, budget=[1])
    with pytest.raises(ValueError, match="frozen"):
        ExampleRecipe(minutes=1).seeds = 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  venue: Journal of Examples\n", "", "paper.venue: Field required"),
        ("name: toy-rounding", "name: Toy Rounding", "name"),
        ("quantities: [accuracy,", "quantities: [acuracy,", "did you mean 'accuracy'"),
        ("x: model_bytes", "x: modelbytes", "did you mean 'model_bytes'"),
        ("summary:", "sumary:", "sumary"),
        ("url: https://example.org/rounding", "url: javascript:alert(1)", "paper.url"),
        ("---\nname", "name", "between two lines of ---"),
    ],
)
def test_faulty_cards(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (TOY / "src" / "toy_rounding" / "card.md").read_text()
    assert old in text
    path = tmp_path / "card.md"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(CardError) as error:
        Card.load(path)
    assert message in str(error.value)
