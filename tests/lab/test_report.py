"""The report as a file; how a browser shows it is in `test_browser`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
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


def figure(page: str, anchor: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    assert found is not None
    (content,) = [each for each in json.loads(found[1]) if each["anchor"] == anchor]
    return dict(content)


def html_of(result: ComparisonResult, folder: Path) -> str:
    return result.report(folder / "report.html").read_text(encoding="utf-8")


def priced(seeds: int = 2) -> ComparisonResult:
    """Two optimizers on two backends, the large one better and dearer."""
    return ComparisonResult(
        [
            run(
                optimizer,
                seed,
                loss=loss + place / 10 + seed / 100,
                backend=backend,
                spent={"calls": 40, "seconds": 2.0, "money": money, "tokens": 20_000},
                command="lmaas-tune compare --out again",
            )
            for backend, loss, money in (("small", 0.5, 0.1), ("large <b>", 0.2, 2.0))
            for place, optimizer in enumerate(("cma", "random_50%"))
            for seed in range(1, seeds + 1)
        ]
    )


def test_the_report_has_the_numbers_of_the_comparison(tmp_path: Path) -> None:
    result = ComparisonResult(table({"a": [0.1, 0.2], "b": [0.3, 0.25]}))
    page = read(result, tmp_path)
    loss = ["0.1500 ± 0.0707", "-0.4853 to 0.7853", "0.1500"]
    accuracy = ["85.0% ± 7.1%", "21.5% to 100.0%"]
    assert ["a", "1.00", "-", *loss, *accuracy, "40", "2"] in page.rows
    loss = ["0.2750 ± 0.0354", "-0.0427 to 0.5927", "0.2750"]
    accuracy = ["72.5% ± 3.5%", "40.7% to 100.0%", "72.5%"]
    assert ["films", "b", *loss, *accuracy, "2"] in page.rows
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
    assert figure(html, "search-0")["caption"] == f"{evil}: lowest training loss so far"


def test_the_report_loads_nothing(tmp_path: Path) -> None:
    page = read(a_comparison(), tmp_path)
    assert [load for load in page.loads if not load.startswith("#")] == ["data:,"]


def test_one_seed_has_no_band(tmp_path: Path) -> None:
    html = (
        ComparisonResult([run("a"), run("b")])
        .report(tmp_path / "r.html")
        .read_text(encoding="utf-8")
    )
    assert figure(html, "search-0")["series"][0]["low"] is None
    assert figure(html, "runtimes")["series"][0]["low"] is None
    assert figure(html, "final-0")["series"][0]["interval"] is None


def test_one_seed_is_said_before_all_else(tmp_path: Path) -> None:
    page = read(ComparisonResult([run("a"), run("b", loss=0.7)]), tmp_path)
    words = " ".join(page.words.split())
    title = "Comparison of optimizers "
    assert words.startswith(2 * title + "No ranking: one seed. Another seed may turn the order")


def test_a_bar_joins_those_whom_the_tests_do_not_tell_apart(tmp_path: Path) -> None:
    near = {name: [0.1 + (seed + place) % 3 / 100 for seed in range(9)] for place, name in
            enumerate(("a", "b"))}  # fmt: skip
    result = ComparisonResult(table({**near, "c": [0.9] * 9}))
    ranks = figure(html_of(result, tmp_path), "ranks")
    assert ranks["groups"] == [["a", "b"]]
    assert "A bar on the right joins" in ranks["caption"]
    assert [each["name"] for each in ranks["series"]] == ["a", "b", "c"]
    line = result.ranking.iloc[0]
    assert ranks["series"][0]["mean"] == line.mean_rank
    assert ranks["series"][0]["interval"] == [line.rank_low, line.rank_high]
    few = ComparisonResult(table({"a": [0.1], "b": [0.2]}))
    ranks = figure(html_of(few, tmp_path), "ranks")
    assert ranks["groups"] == [] and "was not tested: 1 block is too few" in ranks["caption"]


def test_several_backends_show_price_against_accuracy(tmp_path: Path) -> None:
    html = html_of(priced(), tmp_path)
    points = figure(html, "costs")
    assert points["marks"] == ["small", "large <b>"]
    assert [(each["name"], each["x"]) for each in points["series"]] == [
        ("cma", [0.1, 2.0]),
        ("random_50%", [0.1, 2.0]),
    ]
    assert points["front"] == [[0.1, pytest.approx(0.485)], [2.0, pytest.approx(0.785)]]
    row = ["large <b>", "cma", "78.5%", "2", "yes", "72.1% to 84.9%", "0.2150", "20,000", "40", "2"]
    assert row in Reader(html).rows
    assert ["small", "films", "cma"] in [row[:3] for row in Reader(html).rows]
    assert "Price against accuracy" not in read(a_comparison(), tmp_path).words


def test_the_command_that_repeats_it_stands_in_the_report(tmp_path: Path) -> None:
    assert "lmaas-tune compare --out again" in read(priced(), tmp_path).words
    assert "To repeat it" not in read(a_comparison(), tmp_path).words  # made from Python


def test_the_tables_are_read_by_other_programs(tmp_path: Path) -> None:
    result = priced()
    files = result.tables(tmp_path / "tables")
    assert [file.name for file in files] == [
        f"{name}.{kind}" for name in ("ranking", "by_task", "costs") for kind in ("csv", "tex")
    ]
    read_again = pd.read_csv(tmp_path / "tables" / "ranking.csv")
    pd.testing.assert_frame_equal(read_again, result.ranking)
    one = a_comparison(tasks=2).tables(tmp_path / "one")
    assert len(one) == 4 and "backend" not in pd.read_csv(one[2])


EVIL = r"[a_b & 50% {x} $y$ #1 \input"


def test_the_latex_has_its_rules_and_escapes_the_names_of_users(tmp_path: Path) -> None:
    records = [
        run(name, seed, task=task, loss=seed / 10)
        for name in ("cma", EVIL)
        for task in (EVIL, "films")
        for seed in (1, 2)
    ]
    ComparisonResult(records).tables(tmp_path)
    text = (tmp_path / "by_task.tex").read_text(encoding="utf-8")
    lines = text.splitlines()
    rules = [line for line in lines if line.endswith("rule")]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert (
        "films & cma & 0.1500 [-0.4853 to 0.7853] & 85.0\\% [21.5\\% to 100.0\\%] & 2 \\\\" in lines
    )
    escaped = r"[a\_b \& 50\% \{x\} \$y\$ \#1 \textbackslash input"
    assert " ".join(text.split()).count(escaped) == 2 + 2
    assert not any(line.startswith("[") for line in lines)
    if shutil.which("pdflatex") is None:
        return
    tables = r" \par ".join(rf"\input{{{name}}}" for name in ("ranking", "by_task"))
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    paper = rf"{head}{tables}\end{{document}}"
    (tmp_path / "paper.tex").write_text(paper, encoding="utf-8")
    flags = ["-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    subprocess.run(["pdflatex", *flags], cwd=tmp_path, check=True, capture_output=True)


def test_a_table_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file: the tables cannot be written"):
        priced().tables(tmp_path / "file")


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
    series = figure(html, "history")["series"]
    assert series[-1]["name"] == "kept"
    assert series[-1]["y"] == result.history["best_loss"].tolist()
    assert "Before and after" not in Reader(result.report(path).read_text(encoding="utf-8")).words
