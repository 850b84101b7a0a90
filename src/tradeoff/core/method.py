"""The contract of a method: what a study needs from it, and nothing else."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from .claims import Claim
from .errors import RecipeError
from .outcome import Outcome
from .suggest import did_you_mean
from .trial import Trial

if TYPE_CHECKING:
    from .card import Card
    from .context import Context
    from .recipe import Recipe

R = TypeVar("R", bound="Recipe")


class Method(ABC, Generic[R]):
    """A published technique, as a study sees it. Instances hold no state.

    A subclass sets the class attributes and the two methods::

        class Magic(Method[MagicRecipe]):
            card = Card.load(Path(__file__).with_name("card.md"))
            Recipe = MagicRecipe
            claims = (Claim("magic beats none", "abstract", check_magic),)

            def trials(self, recipe): ...
            def run(self, trial, recipe, context): ...

    Its folder holds ``card.md`` and ``recipes/`` with ``smoke.yaml``, ``default.yaml`` and ``full.yaml``.

    Attributes:
        card: facts about the method.
        Recipe: the type of its recipes.
        claims: the paper's statements as checks.
        timed: whether its trials read a clock for a result, so that they run one at a time.
    """

    card: ClassVar["Card"]
    Recipe: type[R]
    claims: ClassVar[Sequence[Claim]] = ()
    timed: ClassVar[bool] = False

    @abstractmethod
    def trials(self, recipe: R) -> list[Trial]:
        """The cells of the study, baselines included."""

    @abstractmethod
    def run(self, trial: Trial, recipe: R, context: "Context") -> Outcome:
        """Run one cell. Pure: the same trial gives the same outcome, measured times aside."""

    @property
    def folder(self) -> Path:
        """Where the method's module, card and recipes are."""
        return Path(inspect.getfile(type(self))).parent

    def recipe_names(self) -> list[str]:
        """Names of the recipes that ship with the method."""
        return sorted(path.stem for path in (self.folder / "recipes").glob("*.yaml"))

    def load_recipe(self, name: str, changes: Sequence[str] = ()) -> R:
        """A recipe by its name, or from a file where ``name`` ends in ``.yaml``.

        Args:
            name: ``smoke``, ``default``, ``full`` or the path of a YAML file.
            changes: ``key=value`` texts that replace values.

        Raises:
            RecipeError: no such recipe, an unknown key or a bad value.
        """
        if name.endswith((".yaml", ".yml")):
            return self.Recipe.load(Path(name), changes)
        if name not in self.recipe_names():
            raise RecipeError(
                f"{self.card.name} has no recipe {name!r}{did_you_mean(name, self.recipe_names())}"
            )
        return self.Recipe.load(self.folder / "recipes" / f"{name}.yaml", changes)
