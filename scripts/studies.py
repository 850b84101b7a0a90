"""Run studies, keep their results in docs/results, and refresh the cards and the README that quote them.

python scripts/studies.py                       every method's default recipe
python scripts/studies.py autorep --recipe cifar10
python scripts/studies.py --no-run              refresh the quotations only
"""

import argparse
import shutil
import sys
from pathlib import Path

from tradeoff.core.progress import ConsoleMonitor
from tradeoff.core.registry import PACKAGE, load_method, methods
from tradeoff.core.report import write_report
from tradeoff.core.results import fill_quotes, quoted_files, readme_with_systems, save_results
from tradeoff.core.study import pending_trials, run_study

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
IMAGES = ROOT / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="methods; all when none is given")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--no-run", action="store_true")
    arguments = parser.parse_args()
    if not arguments.no_run:
        for name in arguments.names or methods():
            run(name, arguments.recipe)
    refresh()


def run(name: str, recipe_name: str) -> None:
    """Run one study, or go on with it, and keep its results and figure."""
    from rich.console import Console

    method = load_method(name)
    recipe = method.load_recipe(recipe_name)
    pending, _ = pending_trials(method, recipe, ROOT / "runs")
    with ConsoleMonitor(Console(stderr=True), pending) as monitor:
        study = run_study(method, recipe, ROOT / "runs", monitor=monitor)
    if study.failures:
        sys.exit(f"{name}: {len(study.failures)} trials failed; the first: {study.failures[0].error}")
    write_report(study)
    stem = name if recipe_name == "default" else f"{name}-{recipe_name}"
    save_results(study, recipe_name, RESULTS / f"{stem}.json")
    IMAGES.mkdir(exist_ok=True)
    shutil.copyfile(study.folder.path / "report.png", IMAGES / f"{stem}.png")


def refresh() -> None:
    """Bring what cards and the README quote up to date."""
    for card in sorted(PACKAGE.glob("methods/*/*/card.md")):
        absent = [
            name for name in quoted_files(card.read_text(encoding="utf-8")) if not (RESULTS / name).exists()
        ]
        if absent:
            print(
                f"{card.parent.name}: left as it is, since {', '.join(absent)} is not there yet",
                file=sys.stderr,
            )
            continue
        card.write_text(fill_quotes(card.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(readme_with_systems(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
