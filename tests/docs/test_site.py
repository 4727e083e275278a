"""The site as `make docs` builds it: complete, whole on a phone, and without a network.

Where no Chromium is installed, the tests in a browser are skipped; the variable CHROMIUM names one
that has to work.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import lmaas_tune
from lmaas_tune import testing
from tests.docs.pages import ROOT

pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors.add(given.get("id") or "")
        if tag in LOADED:
            self.loads.append(given.get(LOADED[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_and_styles_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for path in pages:
        assert not [url for url in Page(path).loads if re.match(r"(\w+:)?//", url)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(\w+:)?//", path.read_text(encoding="utf-8")), path


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    anchors = Page(site / "api" / "lmaas_tune.html").anchors
    names = {anchor.rpartition(".")[2] for anchor in anchors if anchor.startswith("lmaas_tune.")}
    assert set(lmaas_tune.__all__) <= names
    anchors = Page(site / "api" / "testing.html").anchors
    assert {f"lmaas_tune.testing.{name}" for name in testing.__all__} <= anchors


def test_lists_are_lists(site: Path) -> None:
    """Python-Markdown wants an empty line before a list; GitHub does not."""
    for path in site.rglob("*.html"):
        paragraphs = re.findall(r"<p>(.*?)</p>", path.read_text(encoding="utf-8"), re.DOTALL)
        assert not [text for text in paragraphs if "\n- " in text], path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        # the sandbox wants rights that a container may not give
        with_browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield with_browser
        with_browser.close()


def test_pages_fit_a_phone_and_ask_for_nothing_but_files(site: Path, browser: Any) -> None:
    wrong: list[str] = []
    page = browser.new_context(offline=True, **PHONE).new_page()
    page.set_default_timeout(120_000)  # milliseconds; a busy machine is no defect
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if _leaves(request.url) else 0)
    for path in sorted(set(site.rglob("*.html")) - {site / "404.html"}):  # which a server shows
        page.goto(path.as_uri())
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["viewport"]["width"], f"{path.name} is {width} wide"  # type: ignore[index]
    assert not wrong


def test_the_search_finds_a_page_that_was_opened_as_a_file(site: Path, browser: Any) -> None:
    page = browser.new_context(offline=True).new_page()
    page.goto((site / "api" / "settings.html").as_uri())
    page.click("input.md-search__input")
    page.keyboard.type("journal")
    link = page.wait_for_selector(".md-search-result__link", state="attached", timeout=120_000)
    assert link.get_attribute("href").startswith(site.as_uri())


def _leaves(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:", "about:"))
