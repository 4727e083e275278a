"""The report as a file; how a browser shows it is in `test_browser`."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmaas_tune import MissingExtraError, StorageError, Tuner
from lmaas_tune.lab.report import ComparisonResult
from lmaas_tune.testing.toy import ToyBackend
from tests.lab.films import FILMS, SMALL
from tests.lab.made import a_comparison, run, table


class Reader(HTMLParser):
    """Takes the tables and the words of a page, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.loads = "", []
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and value]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while tag in self.tags and self.tags.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self.tags):
            return
        self.words += data
        if {"td", "th"} & set(self.tags):
            self.rows[-1][-1] += data.strip()


def read(result: ComparisonResult, folder: Path) -> Reader:
    return Reader(result.report(folder / "report.html").read_text(encoding="utf-8"))


def figures(page: str) -> list[dict[str, object]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    assert found is not None
    content: list[dict[str, object]] = json.loads(found[1])
    return content


def test_the_report_has_the_numbers_of_the_comparison(tmp_path: Path) -> None:
    result = ComparisonResult(table({"a": [0.1, 0.2], "b": [0.3, 0.25]}))
    page = read(result, tmp_path)
    assert ["a", "1.00", "0.1500 ± 0.0707", "0.1500", "85.0% ± 7.1%", "40", "2"] in page.rows
    assert ["films", "b", "2", "0.2750 ± 0.0354", "0.2750", "72.5% ± 3.5%", "72.5%"] in page.rows
    assert "2 optimizers on 1 task with 2 seeds: 4 runs, of which none failed" in page.words
    assert "2 blocks are too few" in page.words
    assert "the means of the tasks" not in page.words


def test_several_tasks_are_also_tested_as_such(tmp_path: Path) -> None:
    page = read(a_comparison(tasks=2), tmp_path)
    assert "Do the means of the tasks differ? Friedman's test over 2 tasks: p" in page.words


def test_those_who_share_the_lowest_rank_are_all_named(tmp_path: Path) -> None:
    page = read(
        ComparisonResult(table({"a": [0.1, 0.2], "b": [0.2, 0.1], "c": [0.3, 0.3]})), tmp_path
    )
    assert "a, b share the lowest mean rank: 1.50 of 3, over 2 blocks." in page.words


def test_what_failed_or_ended_early_is_shown(tmp_path: Path) -> None:
    page = read(a_comparison(), tmp_path)
    assert "50 runs, of which 1 failed and 1 was stopped early" in page.words
    assert "Runs that failed, which are not counted" in page.words
    assert any(row[-1] == "failed: the server <is> gone" for row in page.rows)
    assert any(row[-1] == "stopped early: after 101 calls it was behind" for row in page.rows)
    assert "Left out, because an optimizer has no loss there: 1 block." in page.words
    assert "which favours the other runs" in " ".join(page.words.split())


def test_words_of_users_are_words_and_no_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    page = ComparisonResult([run("a", task=evil), run(evil, task=evil)]).report(tmp_path / "r.html")
    html = page.read_text(encoding="utf-8")
    assert evil not in html
    assert evil in Reader(html).words
    assert figures(html)[0]["caption"] == f"{evil}: lowest training loss so far"


def test_the_report_loads_nothing(tmp_path: Path) -> None:
    page = read(a_comparison(), tmp_path)
    assert [load for load in page.loads if not load.startswith("#")] == ["data:,"]


def test_one_seed_has_no_band(tmp_path: Path) -> None:
    html = (
        ComparisonResult([run("a"), run("b")])
        .report(tmp_path / "r.html")
        .read_text(encoding="utf-8")
    )
    series = figures(html)[0]["series"]
    assert isinstance(series, list) and series[0]["low"] is None


def test_a_report_replaces_the_one_before_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(StorageError, match=r"report\.html: the report cannot be written"):
        ComparisonResult([run()]).report(tmp_path / "report.html")


def test_without_the_extra_the_package_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmaas_tune.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmaas-tune\[compare\]'"):
        ComparisonResult([run()]).report(tmp_path / "report.html")


def test_a_single_run_has_a_report_too(tmp_path: Path) -> None:
    tuner = Tuner(ToyBackend(), "cma", settings=SMALL, budget="calls=41", callbacks=())
    result = tuner.fit(FILMS.train, FILMS.validation)
    comparison = result.compare(FILMS.test)
    path = result.report(tmp_path / "run.html", comparison=comparison)
    html = path.read_text(encoding="utf-8")
    page = Reader(html)
    tuned = comparison.tuned
    shares = [f"{share:.1%}" for share in (tuned.accuracy, *tuned.interval)]
    losses = [f"{loss:.4f}" for loss in (tuned.loss, tuned.calibration_error)]
    assert ["tuned prompt", *shares, *losses] in page.rows
    assert f"The run ended: {result.stop_reason}." in page.words
    assert ["intrinsic dim", "6"] in page.rows
    series = figures(html)[0]["series"]
    assert isinstance(series, list)
    assert series[-1]["name"] == "kept"
    assert series[-1]["y"] == result.history["best_loss"].tolist()
    assert "Before and after" not in Reader(result.report(path).read_text(encoding="utf-8")).words
