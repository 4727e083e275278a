"""What a notebook shows of a value: short text, and HTML that needs no package and no script."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from lmaas_tune import Comparison, TextPrompt, TuneResult
from tests.lab.made import a_comparison
from tests.support.small_models import TRAIN, VALIDATION, Bowl, small_tuner

EVIL = "<script>alert('&')</script>"
VOID = {"br", "line", "circle", "polyline", "polygon"}


class Page(HTMLParser):
    """Reads HTML, whose elements have to be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture(scope="module")
def result() -> TuneResult:
    """A run with validation rows, whose labels and template could be markup."""
    rows, validation = (
        [(text, f"{EVIL} {label}") for text, label in part] for part in (TRAIN, VALIDATION)
    )
    words = {f"{EVIL} {word}": word for word in ("good", "bad")}
    template = EVIL + " {text} {prompt} {label}"
    backend = Bowl(identity=f"bowl {EVIL}")
    tuner = small_tuner(backend, template=template, labels=words, budget="calls=101")
    return tuner.fit(rows, validation)


@pytest.fixture(scope="module")
def comparison(result: TuneResult) -> Comparison:
    return result.compare([(text, f"{EVIL} {label}") for text, label in TRAIN])


def test_every_value_has_a_short_text_without_its_arrays(
    result: TuneResult, comparison: Comparison
) -> None:
    compared = a_comparison()
    tuner = small_tuner(Bowl())
    values: dict[str, Any] = {
        "SoftPrompt(vectors=<array (2, 3)>)": result.prompt.prompt,
        "TunedPrompt(prompt=SoftPrompt(": result.prompt,
        "TuneResult(prompt=SoftPrompt(": result,
        "Candidate(generation=": result.best,
        "Step(generation=1": result.steps[1],
        "FittedHead(bias=<array (2,)>)": result.prompt.head,
        "Spent(calls=1": result.spent,
        "Score(accuracy=0.": comparison.tuned,
        "Comparison(\n  baseline=Score(": comparison,
        "Tuner(backend='bowl', optimizer='cma', budget='calls=26'": tuner,
        "Plan(rows=10, starts=1": tuner.plan(TRAIN),
        "Client(backend=": result.client,
        "ComparisonResult('The lowest mean rank is that of cma": compared,
        "Record(task='films', method='cma'": compared.records[0],
        "Significance(blocks=9": compared.tests,
        "TextPrompt(text='so so ": TextPrompt("so " * 1000),
    }
    for beginning, value in values.items():
        text = repr(value)
        assert text.startswith(beginning)
        assert "array([" not in text and " at 0x" not in text
        assert len(text) < 1200 and text.count("\n") <= 4


def test_a_run_shows_its_scores_its_spending_and_its_curve(result: TuneResult) -> None:
    page = Page(result._repr_html_())
    best = result.best.validation
    assert best is not None and f"{best.loss:.4f}" in page.text
    assert f"{result.spent.calls}" in page.text
    assert "kept" in page.text and "validation" in page.text
    points = [value for name, value in page.attributes if name == "points"]
    # steps: a generation's loss holds until the next one
    assert [len(str(each).split()) for each in points] == [21, 21, 2 * 21 - 1]
    assert page.tags.count("circle") == len(result.history["validation_loss"].dropna())


def test_markup_of_the_user_is_text(result: TuneResult, comparison: Comparison) -> None:
    for html in (result._repr_html_(), comparison._repr_html_(), a_comparison()._repr_html_()):
        page = Page(html)
        assert set(page.tags) <= {
            *("div", "p", "b", "small", "span", "table", "tr", "th", "td"),
            *("svg", "text", "line", "polyline", "polygon", "circle"),
        }
        assert not any(name.startswith("on") for name, _ in page.attributes)
    assert EVIL in Page(result._repr_html_()).text
    assert "news & <b>more</b>: lowest" in Page(a_comparison()._repr_html_()).text


def test_a_comparison_shows_what_helped_and_optimizers_their_ranks(comparison: Comparison) -> None:
    assert comparison.verdict in Page(comparison._repr_html_()).text
    page = Page(a_comparison()._repr_html_())
    assert "The lowest mean rank is that of cma" in page.text
    assert page.tags.count("svg") == 2
    assert page.tags.count("polygon") == page.tags.count("polyline") == 10


def test_the_html_needs_none_of_the_extras(
    result: TuneResult, comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("jinja2", "plotly", "matplotlib", "IPython"):
        monkeypatch.setitem(sys.modules, package, None)
    assert result._repr_html_() and comparison._repr_html_()
