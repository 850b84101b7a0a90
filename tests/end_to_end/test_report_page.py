"""The report in a real browser."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Tradeoff

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def report(tradeoff: Tradeoff, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study with a claim of each verdict."""
    folder = tmp_path_factory.mktemp("workplace")
    done = tradeoff("run", "toy-rounding", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    path: Path = folder / json.loads(done.stdout)["run"] / "report.html"
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    from tests.conftest import require

    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        require(False, "Playwright is not installed: pip install 'tradeoff[dev]'")
    require(CHROMIUM.exists(), "Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The page, which must ask for nothing and complain about nothing."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(120_000)  # milliseconds: a busy machine is no failure
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri())
    page.wait_for_selector("#chart .scatterlayer")
    yield page
    assert requests == [report.as_uri()]
    assert complaints == []
    page.close()


def wait_until(page: Any, expression: str) -> None:
    """Wait for a condition; Playwright's own way evaluates text in the page, which the page forbids."""
    deadline = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)


def visible_variants(page: Any) -> list[str]:
    return page.eval_on_selector_all(
        "#outcomes tbody tr", "rows => rows.filter(r => r.offsetParent).map(r => r.dataset.variant)"
    )


def markers(page: Any) -> int:
    return page.locator("#chart .scatterlayer .points path.point").count()


def test_hover_shows_the_trial(page: Any) -> None:
    box = page.locator("#chart .scatterlayer .points path.point").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    page.wait_for_selector(".hoverlayer .hovertext")
    text = page.locator(".hoverlayer .hovertext").text_content()
    assert "bits=8" in text
    assert "accuracy: 1 (measured)" in text
    assert "model_bytes: 200 B (counted)" in text


def test_filter_by_variant(page: Any) -> None:
    assert set(visible_variants(page)) == {"rounding", "cutting"}
    before = markers(page)
    page.get_by_label("cutting").uncheck()
    assert set(visible_variants(page)) == {"rounding"}
    assert markers(page) == before / 2
    page.get_by_label("cutting").check()
    assert markers(page) == before


def test_failed_claims_are_seen(page: Any) -> None:
    badges = page.locator("#claims .badge")
    assert badges.all_inner_texts() == ["holds", "fails", "undecided"]
    failed = page.locator("#claims li.failed")
    assert failed.is_visible()
    assert "rounding is exact" in failed.inner_text()
    assert "worst accuracy" in failed.locator(".numbers").inner_text()
    assert failed.bounding_box()["y"] < 1000, "the failed claim is below the fold"


def test_text_from_files_stays_text(page: Any) -> None:
    assert "<script>alert(1)</script>" in page.locator("#claims").inner_text()
    assert "On Rounding <b>Toys</b>" in page.locator("header").inner_text()
    assert page.locator("header b").count() == 0


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_at_any_width(page: Any, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    wait_until(page, f"document.querySelector('#chart .main-svg').clientWidth <= {width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    chart = page.locator("#chart").bounding_box()
    assert chart["width"] > 0.7 * min(width, 1200)
    for selector in ("h1", "#claims li", "#outcomes table", "#provenance dl"):
        assert page.locator(selector).first.is_visible()
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('#outcomes td')).fontSize)")
    assert size >= 13


def test_sort_and_axes(page: Any) -> None:
    heading = page.locator("#outcomes th", has_text="accuracy").get_by_role("button")
    heading.click()
    heading.click()
    values = page.eval_on_selector_all(
        "#outcomes tbody tr", "rows => rows.map(r => parseFloat(r.cells[4].dataset.value))"
    )
    assert values == sorted(values, reverse=True)
    page.select_option("#y-axis", "training_seconds")
    title = "document.querySelector('#chart .ytitle').textContent"
    wait_until(page, f"{title}.startsWith('training_seconds')")


def test_paper_numbers_stand_apart(page: Any) -> None:
    assert "abacus" in page.locator("#paper").inner_text()
    assert "abacus" not in page.locator("#outcomes").inner_text()


def test_without_outcomes_the_page_says_so(
    tradeoff: Tradeoff, browser: Any, tmp_path: Path, require: Callable[[object, str], None]
) -> None:
    words = ("run", "toy-rounding", "--recipe", "smoke", "--set", "bits=[4]", "--set", "fail_at=4", "--json")
    done = tradeoff(*words, cwd=tmp_path)
    assert done.returncode == 1
    page = browser.new_page()
    page.goto((tmp_path / json.loads(done.stdout)["run"] / "report.html").as_uri())
    assert "4 of 4 trials have no outcome" in page.locator("#missing").inner_text()
    page.close()
