"""`lmaas-tune compare` and `lmaas-tune report`, as scripts use them."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmaas_tune.cli import main
from lmaas_tune.cli.compare import _repeating
from tests.lab.films import rows

SMALL = ["--intrinsic-dim", "6", "--prompt-init", "so very"]
TASK = ["--train", "train.jsonl", "--validation", "validation.jsonl", "--test", "test.jsonl"]
RUNS = ["--backend", "toy", "--budget", "calls=41", "--seeds", "1,2", "--out", "out", *SMALL]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with files of rows."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 8), ("validation", 6), ("test", 12)):
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def called(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_scripts_get_a_ranking_the_tests_and_the_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizers = ["--optimizers", "cma(population=8,sigma0=0.5), random,nevergrad:PSO"]
    content = called(capsys, "compare", *optimizers, *TASK, *RUNS)
    assert {line["optimizer"] for line in content["ranking"]} == {
        "cma(population=8,sigma0=0.5)",
        "random",
        "nevergrad:PSO",
    }
    keys = {"optimizer", "mean_rank", "loss_mean", "loss_std", "accuracy_mean"}
    assert keys <= content["ranking"][0].keys()
    ranks = [line["mean_rank"] for line in content["ranking"]]
    assert ranks == sorted(ranks)
    assert content["tests"]["blocks"] == 2
    assert len(content["runs"]) == 6
    assert content["judged_on"] == "test"
    again = called(capsys, "report", "out", "-o", "report.html")
    assert again["ranking"] == content["ranking"]
    assert (folder / "report.html").stat().st_size > 1e6


def test_people_get_the_ranking_in_words_and_what_to_do_next(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--optimizers", "cma,random", *TASK, *RUNS]) == 0
    said = capsys.readouterr().out
    assert "On test rows, loss cross-entropy, with 95% intervals:" in said and "mean rank" in said
    assert "Not tested: 2 blocks are too few: with any losses, p would be 0.5 or more" in said
    assert said.endswith("lmaas-tune report out -o report.html\n")
    assert main(["report", "out"]) == 0
    assert capsys.readouterr().out.endswith("Written: report.html\n")


def test_a_log_gets_a_line_for_each_run_in_place_of_the_bar(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--optimizers", "random", *TASK, *RUNS]) == 0
    assert capsys.readouterr().err.startswith("1 of 2 runs\n2 of 2 runs\n")
    assert main(["compare", "--optimizers", "random,cma", *TASK, *RUNS]) == 0
    assert capsys.readouterr().err.startswith("3 of 4 runs\n4 of 4 runs\n")


def test_a_failed_run_is_told_and_seen_in_the_exit_status(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--optimizers", "random,cma(population=60)", *TASK, *RUNS]) == 1
    printed = capsys.readouterr()
    assert "failed: cma(population=60) on task with seed 2: no call was made" in printed.err
    assert "mean rank" in printed.out


def test_the_command_that_is_printed_makes_the_same_anew(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizers = ["--optimizers", "cma(population=8), random"]
    assert main(["compare", *optimizers, *TASK, *RUNS]) == 0
    (line,) = re.findall("The same anew: (.*)", capsys.readouterr().out)
    assert main(["report", "out"]) == 0
    assert f"To repeat it: {line}\n" in capsys.readouterr().out
    assert line in html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    subprocess.run(f"{sys.executable} -m {line.replace('-', '_', 1)}", shell=True, check=True)
    assert (folder / "out-again").is_dir()
    first, again = (called(capsys, "report", name)["ranking"] for name in ("out", "out-again"))
    assert first == again


def test_a_key_on_the_command_line_is_not_stored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--backend-options", '{"seed": 3}', "--labels", '{"good": "sk-0123456789abcdef"}']
    argv = ["compare", "--optimizers", "random", *TASK, *RUNS, *options[:2], "--json"]
    assert "sk-0123" not in _repeating([*argv, *options[2:]])
    assert _repeating(argv).endswith("--backend-options '{\"seed\": 3}'")
    assert " --out out-again " in _repeating(argv)
    assert _repeating(["compare", "--out=a/"]) == "lmaas-tune compare --out=a-again"


def test_one_seed_is_said_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = [*TASK, *RUNS, "--seeds", "1"]
    assert main(["compare", "--optimizers", "cma,random", *one]) == 0
    assert capsys.readouterr().out.startswith("No ranking: one seed. ")


def test_several_backends_come_from_a_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = RUNS[2:]  # without --backend
    file = folder / "backends.json"
    toy = {"backend": "toy", "cache": "cache.sqlite"}
    dear = {"backend": "toy", "price_in": 900, "backend_options": {"width": 32, "seed": 2}}
    file.write_text(json.dumps({"small": toy, "large": dear}))
    flags = ["--backends", "backends.json", "--price-in", "100"]
    argv = ["compare", "--optimizers", "cma,random", *TASK, *several, *flags]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "Accuracy against money of a search (front: no other is as accurate for less):" in said
    assert (folder / "cache.sqlite").exists()
    content = called(capsys, "report", "out", "--tables", "tables")
    assert [file.rpartition("/")[2] for file in content["tables"][::2]] == [
        "ranking.csv",
        "by_task.csv",
        "costs.csv",
    ]
    assert {(line["backend"], line["optimizer"]) for line in content["costs"]} == {
        (backend, optimizer) for backend in ("small", "large") for optimizer in ("cma", "random")
    }
    spent = {run["backend"]: run["spent"] for run in content["runs"]}
    price = {name: 1e6 * own["money"] / own["tokens"] for name, own in spent.items()}
    assert price == pytest.approx({"small": 100, "large": 900})


@pytest.mark.parametrize(
    ("content", "flags", "what"),
    [
        ({"a": {"backend": "toy"}}, ["--model", "x"], "--backends and --model exclude each other"),
        ({}, [], "it has no backends"),
        ({"a": {}}, [], "backend 'a': give at least backend"),
        ({"a": {"backend": "toy", "pricein": 1}}, [], "unknown key 'pricein'; did you mean"),
        ({"a": {"backend": "toy", "price_in": "1"}}, [], "price_in = '1' is no number"),
    ],
)
def test_a_file_of_backends_that_is_wrong_is_told_in_a_sentence(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    content: Any,
    flags: list[str],
    what: str,
) -> None:
    (folder / "b.json").write_text(json.dumps(content))
    argv = ["compare", "--optimizers", "random", *TASK, *RUNS[2:], "--backends", "b.json", *flags]
    assert main(argv) == 2
    assert what in capsys.readouterr().err


def test_a_file_of_tasks_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {"films": {"train": "train.jsonl"}, "others": {"train": "test.jsonl"}}
    (folder / "tasks.json").write_text(json.dumps(tasks))
    content = called(capsys, "compare", "--optimizers", "random", "--tasks", "tasks.json", *RUNS)
    assert [run["task"] for run in content["runs"]] == ["films", "others"] * 2
    assert content["judged_on"] == "train"


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--optimizers", "random"], "there is no task: give --train, or a file of tasks"),
        (
            ["--optimizers", "random", "--tasks", "t.toml", "--train", "x"],
            "--tasks and --train exclude each other",
        ),
        (["--optimizers", "cma(", "--train", "train.jsonl"], "'cma(' is no optimizer"),
        (["--optimizers", "cma(8)", "--train", "train.jsonl"], "'8' is no name=value"),
        (["--optimizers", "random", *TASK, "--seeds", "1;2"], "give whole numbers, as 13,21,42"),
        (["--optimizers", "random", *TASK, "--labels", "x"], "--labels 'x' is not JSON"),
        (["--optimizers", "random", *TASK, "--stop-early", "2"], "after=2.0: a share"),
    ],
)
def test_what_cannot_work_is_told_in_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], what: str
) -> None:
    assert main(["compare", *RUNS, *argv]) == 2
    printed = capsys.readouterr()
    assert what in printed.err and printed.err.startswith("error: ")


def test_an_interrupted_comparison_says_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lmaas_tune.lab.optimizers.compare", interrupted)
    assert main(["compare", "--optimizers", "random", *TASK, *RUNS]) == 130
    assert (
        "finished runs are kept in out: the same command resumes the others"
        in capsys.readouterr().err
    )


def test_a_folder_without_runs_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nothing"]) == 2
    assert "nothing: no runs of a comparison are there" in capsys.readouterr().err


def test_runs_may_be_limited_in_money_and_share_a_cache(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dear = [*TASK, *RUNS, "--price-in", "1000", "--cache", "cache.sqlite"]
    dear[dear.index("calls=41")] = "money=3"
    content = called(capsys, "compare", "--optimizers", "cma,random", *dear)
    spent = [run["spent"]["money"] for run in content["runs"]]
    assert len(spent) == 4 and all(0 < money <= 3 for money in spent)
    assert sum(run["spent"]["hits"] for run in content["runs"]) > 0  # the start is every run's
