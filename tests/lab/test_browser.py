"""The report as a browser shows it: headless Chromium, with no network.

Where none is installed these tests are skipped; the variable CHROMIUM names one that has to work.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from lmaas_tune import Tuner
from lmaas_tune.lab.report import ComparisonResult
from lmaas_tune.testing.toy import ToyBackend
from tests.lab.films import FILMS, SMALL
from tests.lab.made import a_comparison, table

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

if CHROMIUM is None:
    pytest.skip("no Chromium is installed here", allow_module_level=True)

if "CHROMIUM" in os.environ:
    playwright = importlib.import_module("playwright.sync_api")
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}

ALIKE = {
    "a": [0.1 + seed % 3 / 100 for seed in range(9)],
    "b": [0.1 + (seed + 1) % 3 / 100 for seed in range(9)],
    "c": [0.9] * 9,
}
"""Losses of optimizers, of which the tests tell the last one apart."""

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests."""
    with playwright.sync_playwright() as running:
        # the sandbox wants rights that a container may not give
        with_browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield with_browser
        with_browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of either kind."""
    folder = tmp_path_factory.mktemp("reports")
    tuner = Tuner(ToyBackend(), "cma", settings=SMALL, budget="calls=41", callbacks=())
    result = tuner.fit(FILMS.train, FILMS.validation)
    comparison = result.compare(FILMS.test)
    return {
        "comparison": a_comparison(optimizers=10).report(folder / "comparison.html"),
        "alike": ComparisonResult(table(ALIKE)).report(folder / "alike.html"),
        "run": result.report(folder / "run.html", comparison=comparison),
    }


def _leaves(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:"))


@pytest.fixture
def show(browser: Any, reports: dict[str, Path]) -> Iterator[Open]:
    """Opens a report; in the end nothing may have gone wrong in it."""
    contexts, wrong = [], []

    def open_report(kind: str = "comparison", **device: Any) -> Any:
        context = browser.new_context(offline=True, **(device or DESKTOP))
        context.set_default_timeout(120_000)  # milliseconds; a busy machine is no defect
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if _leaves(request.url) else 0)
        page.goto(reports[kind].as_uri())
        page.wait_for_selector(".plot .scatterlayer path")
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert not wrong, f"the browser complained, or asked for something: {wrong}"


@pytest.mark.parametrize("kind", ["comparison", "run"])
@pytest.mark.parametrize("device", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_complaint_and_fits_the_screen(
    show: Open, kind: str, device: dict[str, Any], scheme: str
) -> None:
    page = show(kind, color_scheme=scheme, **device)
    drawn = page.eval_on_selector_all(".plot", "all => all.every(it => it.querySelector('path'))")
    assert drawn
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= device["viewport"]["width"]
    plots = page.eval_on_selector_all(
        ".plot .main-svg", "all => all.map(it => it.getBoundingClientRect().right)"
    )
    assert max(plots) <= width


def visible_lines(page: Any) -> int:
    count: int = page.locator("#search-0 .scatterlayer .trace .js-line:visible").count()
    return count


def test_a_button_takes_a_series_away_and_brings_it_back(show: Open) -> None:
    page = show()
    button = page.locator(".series button").first
    before = visible_lines(page)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    page.wait_for_function(
        "before => document.querySelectorAll('#search-0 .js-line').length < before", arg=before
    )
    # the buttons of the other sections follow
    assert page.locator(".series button[aria-pressed=false]").count() == 4
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "before => document.querySelectorAll('#search-0 .js-line').length === before", arg=before
    )


def test_pointing_at_a_curve_tells_its_numbers(show: Open) -> None:
    page = show()
    plot = page.locator("#search-0 .nsewdrag")
    plot.scroll_into_view_if_needed()
    plot.hover()
    page.wait_for_function("document.querySelector('#search-0 .hoverlayer').textContent !== ''")
    assert "cma: 0." in page.locator("#search-0 .hoverlayer").text_content()


def test_a_tap_tells_the_numbers_on_a_phone(show: Open) -> None:
    page = show(**PHONE)
    plot = page.locator("#search-0 .nsewdrag")
    plot.scroll_into_view_if_needed()
    box = page.evaluate(
        """() => {
            const path = document.querySelector('#search-0 .js-line[style*="stroke-width: 2px"]');
            const at = path.getPointAtLength(path.getTotalLength() / 2);
            const place = new DOMPoint(at.x, at.y).matrixTransform(path.getScreenCTM());
            return [place.x, place.y];
        }"""
    )
    page.touchscreen.tap(*box)
    page.wait_for_function("document.querySelector('#search-0 .hoverlayer').textContent !== ''")


def test_colours_follow_the_reader(show: Open) -> None:
    page = show(color_scheme="light", **DESKTOP)
    ink = "getComputedStyle(document.querySelector('#search-0 .xtick text')).fill"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{ink} !== '{light}'")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"


def test_paper_is_white_has_all_tables_and_room_for_the_curves(show: Open) -> None:
    page = show(color_scheme="dark", **DESKTOP)
    page.evaluate(
        "window.addEventListener('beforeprint', () => {"
        " window.printed = ["
        "  [...document.querySelectorAll('details')].every(it => it.open),"
        "  Math.max(...[...document.querySelectorAll('.plot .main-svg')]"
        "   .map(it => it.clientWidth)),"
        "  getComputedStyle(document.querySelector('#search-0 .xtick text')).fill]})"
    )
    assert page.pdf(format="A4").startswith(b"%PDF")
    opened, widest, ink = page.evaluate("window.printed")
    assert opened and widest <= 660 and ink == "rgb(28, 33, 39)"
    assert not page.locator("details[open]").count()  # as before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_wide_table_shows_by_a_shadow_that_there_is_more(show: Open, scheme: str) -> None:
    phone = {**PHONE, "viewport": {"width": 390, "height": 740}}
    table = show(color_scheme=scheme, **phone).locator("#ranking .scroll")
    table.scroll_into_view_if_needed()

    def edge() -> Any:
        """The colours of the last column of pixels, beside the cells' text and lines."""
        pixels = image.imread(io.BytesIO(table.screenshot()), format="png")[:, -1, :3]
        return np.median(pixels, axis=0)

    paper = 1.0 if scheme == "light" else 20 / 255
    assert abs(edge()[0] - paper) > 0.15
    table.evaluate("it => it.scrollLeft = it.scrollWidth")
    assert abs(edge()[0] - paper) < 0.02


def test_the_bars_beside_the_ranks_join_those_who_are_alike(show: Open) -> None:
    page = show("alike", **PHONE)
    rows = page.locator("#ranks .ytick text").count()
    bars = page.evaluate(
        "() => document.getElementById('ranks').data.filter(it => it.xaxis === 'x2')"
        ".map(it => it.y)"
    )
    assert rows == 3 and bars == [["a", "b"]]


def test_every_table_and_figure_has_a_name_for_those_who_hear_it(show: Open) -> None:
    page = show()
    for selector in ("table", ".scroll", ".series"):
        names = page.eval_on_selector_all(selector, "all => all.map(it => it.ariaLabel)")
        assert names and all(names)
    captions = page.eval_on_selector_all(
        ".plot",
        "all => all.map(it => document.getElementById(it.getAttribute('aria-labelledby'))"
        ".textContent)",
    )
    assert len(set(captions)) == len(captions) == 8
    assert page.locator("th:not([scope])").count() == 0
