"""`lmaas-tune reproduce` and `pretrain`, as scripts use them, on tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmaas_tune.cli import main
from lmaas_tune.lab.paper import METHODS
from lmaas_tune.lab.paper.methods import Outcome
from lmaas_tune.lab.paper.table import table_rows

pytest.importorskip("peft", reason="the extra 'reproduce' is not installed")

EVERY = ",".join(METHODS)


@pytest.fixture
def reproduce(
    folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """reproduce(model, tasks, methods, *flags): what --json prints."""

    def run(model: str, tasks: str, methods: str, *flags: str, code: int = 0) -> Any:
        given = {"--model": str(folder(model)), "--tasks": tasks, "--methods": methods}
        given |= {"--data": str(data), "--out": str(tmp_path / "out"), "--shots": "4"}
        given |= {"--seeds": "1,2", "--budget": "calls=45"}
        given |= dict(zip(flags[::2], flags[1::2], strict=True))
        words = [word for flag in given.items() for word in flag]
        capsys.readouterr()
        assert main(["reproduce", *words, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


def test_every_row_is_made_beside_the_papers_numbers(
    reproduce: Callable[..., Any], folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    prompt = str(tmp_path / "prompt")
    source = ["--task", "snli", "--data", str(data), "--model", str(folder("llama"))]
    assert main(["pretrain", *source, "--out", prompt]) == 0
    flags = ["--seeds", "1", "--pretrained", f"mrpc={prompt}"]
    content = reproduce("llama", "mrpc", EVERY, *flags)
    assert content["failed"] == []
    row = content["table"]["mrpc"]
    assert set(row) == set(table_rows())  # the variants too, as "p-tuning-v2/head"
    for cell in row.values():
        for value in (cell["accuracy"], cell["f1"], cell["calibration_error"]):
            assert 0 <= value["mean"] <= 1 and value["std"] is None
        assert cell["loss"]["mean"] > 0
    assert row["bbt-pretrained"]["paper"] == {"mean": 0.7551, "std": 0.0554}
    assert row["manual-calibrated"]["paper"] is None


def test_a_cell_has_the_mean_and_the_spread_of_its_seeds(reproduce: Callable[..., Any]) -> None:
    row = reproduce("llama", "sst2", "manual,manual-calibrated,bbt,bbt-pretrained")["table"]["sst2"]
    assert set(row) == {"manual", "manual-calibrated", "bbt"}  # one sentence, so no prompt to start
    assert (row["manual"]["n"], row["bbt"]["n"], row["manual-calibrated"]["n"]) == (1, 2, 2)
    assert row["manual"]["accuracy"]["std"] is None
    assert row["bbt"]["accuracy"]["std"] is not None and row["bbt"]["f1"] is None
    assert row["manual"]["paper"] == {"mean": 0.7982, "std": None}
    assert row["bbt"]["paper"] == {"mean": 0.8956, "std": 0.0025}


@pytest.mark.parametrize(
    ("model", "tasks"),
    [("roberta", "sst2,snli"), ("t5", "sst2")],  # whose vocabulary has no Y
)
def test_the_papers_own_layout_is_that_of_models_that_fill_in(
    reproduce: Callable[..., Any], model: str, tasks: str
) -> None:
    content = reproduce(model, tasks, "manual,bbt", "--seeds", "1")
    assert content["failed"] == []
    assert not any("text stands first" in sentence for sentence in content["deviations"])


def test_the_same_command_makes_nothing_twice_and_goes_on(
    reproduce: Callable[..., Any], tmp_path: Path
) -> None:
    first = reproduce("llama", "sst2", "manual,bbt", "--seeds", "1")
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("run.jsonl")}
    assert len(files) == 2
    second = reproduce("llama", "sst2", "manual,bbt")
    assert {path: path.read_bytes() for path in files} == files
    assert second["table"]["sst2"]["bbt"]["n"] == 2
    assert first["table"]["sst2"]["manual"] == second["table"]["sst2"]["manual"]


def test_the_notes_of_a_search_are_kept_and_name_its_run(
    folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--model": str(folder("llama")), "--tasks": "sst2", "--methods": "bbt"}
    given |= {"--data": str(data), "--out": str(tmp_path / "out"), "--shots": "4"}
    given |= {"--seeds": "1", "--budget": "calls=45"}
    assert main(["reproduce", *(word for flag in given.items() for word in flag)]) == 0
    (path,) = (tmp_path / "out").rglob("run.jsonl")
    notes = json.loads(path.read_text())["notes"]
    assert any(note.startswith("the budget pays ") for note in notes)
    said = capsys.readouterr().err
    assert all(f"sst2, bbt, seed 1: {note}" in said for note in notes)


def test_a_sentence_below_the_table_is_about_a_row_of_it(reproduce: Callable[..., Any]) -> None:
    bias, half = "fit a bias a label", "this library's default"
    for method, said, unsaid in (("bbt", bias, half), ("default", half, bias)):
        text = " ".join(reproduce("llama", "sst2", method, "--seeds", "1")["deviations"])
        assert said in text
        assert unsaid not in text


def test_a_run_that_was_made_otherwise_is_not_mixed_in(
    reproduce: Callable[..., Any],
) -> None:
    reproduce("llama", "sst2", "bbt", "--seeds", "1")
    error = reproduce("llama", "sst2", "bbt", "--seeds", "1", "--budget", "calls=60", code=2)
    assert "the budget of 'bbt' on 'sst2' is 'calls=45' there and 'calls=60' here" in error["error"]


def test_a_row_that_no_seed_changes_is_made_once_whatever_is_asked(
    reproduce: Callable[..., Any], tmp_path: Path
) -> None:
    first = reproduce("llama", "sst2", "manual,manual-calibrated", "--seeds", "2")
    more = reproduce(
        "llama", "sst2", "manual,manual-calibrated", "--seeds", "1,2", "--budget", "calls=60"
    )
    assert more["table"]["sst2"]["manual"] == first["table"]["sst2"]["manual"]
    assert more["table"]["sst2"]["manual-calibrated"]["n"] == 2
    files = sorted((tmp_path / "out").rglob("manual/*/run.jsonl"))
    assert [file.parent.name for file in files] == ["seed-2"]


def test_a_search_begun_under_a_larger_budget_is_no_run_of_this(
    reproduce: Callable[..., Any], tmp_path: Path
) -> None:
    reproduce("llama", "sst2", "bbt", "--seeds", "1", "--budget", "calls=60")
    (file,) = (tmp_path / "out").rglob("run.jsonl")
    file.unlink()  # as if it was cut short before its end
    (failed,) = reproduce("llama", "sst2", "bbt", "--seeds", "1", code=1)["failed"]
    assert "calls, and the budget is 45: delete" in failed["reason"]
    assert str(file.parent) in failed["reason"]


def test_seeds_that_a_method_lacks_are_said(
    reproduce: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce("llama", "sst2", "manual,manual-calibrated", "--seeds", "1,2")
    reproduce("llama", "sst2", "feature-mlp", "--seeds", "2")
    assert main(["reproduce", "--table", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Seeds: sst2 2 (feature-mlp 1)." in said
    assert "Wall time of the 4 runs: 0.0 hours, each " in said
    some = ["--seeds", "2", "--methods", "feature-mlp", "--out", str(tmp_path / "out")]
    assert main(["reproduce", "--table", *some]) == 0
    said = capsys.readouterr().out
    assert "Wall time of the 1 run" in said
    assert "Manual" not in said
    assert main(["reproduce", "--table", "--seeds", "3", "--out", str(tmp_path / "out")]) == 2
    assert "no run is of these tasks, methods and seeds" in capsys.readouterr().err


def test_what_the_papers_settings_leave_out_is_said(
    reproduce: Callable[..., Any], folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    prompt = str(tmp_path / "prompt")
    source = ["--task", "snli", "--data", str(data), "--model", str(folder("roberta"))]
    assert main(["pretrain", *source, "--out", prompt]) == 0
    flags = ["--seeds", "1", "--pretrained", f"mrpc={prompt}"]
    said = " ".join(reproduce("roberta", "mrpc", "bbt-pretrained", *flags)["deviations"])
    assert "On mrpc the validation accuracy chooses the prompt" in said
    assert "in the reference code it stands before all other tokens" in said


def test_a_cell_that_fails_is_said_and_the_others_go_on(
    reproduce: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(trial: Any) -> Any:
        raise RuntimeError("out of memory")

    def no_numbers(trial: Any) -> Any:
        return Outcome(np.full((len(trial.rows.test), 2), np.nan), 0)

    for name, make in (("icl", no_memory), ("manual-calibrated", no_numbers)):
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], make=make))
    rows = "icl,manual-calibrated,manual"
    content = reproduce("llama", "sst2", rows, "--seeds", "1", code=1)
    assert {r["method"]: r["reason"] for r in content["failed"]} == {
        "icl": "RuntimeError: out of memory",
        "manual-calibrated": "not all scores of the test rows are finite",
    }
    assert content["table"]["sst2"]["icl"]["accuracy"]["mean"] is None
    assert content["table"]["sst2"]["manual"]["n"] == 1


def test_rows_that_the_model_cannot_read_are_left_out_for_all_methods_and_counted(
    reproduce: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    long = {"sentence": "so long " * 200, "label": 0}
    with (data / "sst2" / "test.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(long) + "\n")
    content = reproduce("llama", "sst2", "manual,bbt", "--seeds", "1")
    assert content["failed"] == []
    files = list((tmp_path / "out").rglob("run.jsonl"))
    for record in (json.loads(file.read_text()) for file in files):
        assert record["rows"]["test"]["rows"] == 20
        assert record["conditions"]["left_out"] == {"train": 0, "validation": 0, "test": 1}
    assert any("cannot read in one piece" in s and "sst2 1" in s for s in content["deviations"])


def test_a_label_without_a_word_is_refused_before_anything_is_scored(
    reproduce: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    with (data / "sst2" / "test.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"sentence": "fine", "label": "pos"}) + "\n")
    error = reproduce("llama", "sst2", "bbt", "--seeds", "1", code=2)
    assert "'pos', which has no label word" in error["error"]
    assert not (tmp_path / "out").exists()


def test_other_rows_under_the_same_names_are_not_mixed_in(
    reproduce: Callable[..., Any], data: Path
) -> None:
    reproduce("llama", "sst2", "manual", "--seeds", "1")
    file = data / "sst2" / "test.jsonl"
    file.write_text(file.read_text().replace("gripping", "boring"), encoding="utf-8")
    error = reproduce("llama", "sst2", "manual", "--seeds", "1", code=2)
    assert "are not of one table: the set of test rows of 'sst2' is" in error["error"]
    error = reproduce("llama", "sst2", "bbt", "--seeds", "1", code=2)
    assert "are not of one table: the set of test rows of 'sst2' is" in error["error"]


def test_methods_made_otherwise_are_not_averaged(
    reproduce: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(tmp_path / "other")
    reproduce("llama", "sst2", "bbt", "--seeds", "1")
    error = reproduce("llama", "sst2", "bbt", "--seeds", "2", "--budget", "calls=30", code=2)
    assert "seed-1/run.jsonl, line 1 and " in error["error"]
    assert "sst2/bbt/seed-2 are not of one table: the budget of 'bbt'" in error["error"]
    reproduce("llama", "sst2", "bbt", "--seeds", "2", "--budget", "calls=30", "--out", other)
    shutil.copytree(tmp_path / "other", tmp_path / "out", dirs_exist_ok=True)
    capsys.readouterr()
    assert main(["reproduce", "--table", "--out", str(tmp_path / "out")]) == 2
    assert "the budget of 'bbt' on 'sst2' is" in capsys.readouterr().err


def test_a_table_without_a_row_is_refused(reproduce: Callable[..., Any]) -> None:
    error = reproduce("llama", "sst2", "bbt-pretrained", code=2)
    assert "nothing to do for bbt-pretrained on sst2" in error["error"]


def test_the_table_of_a_folder_needs_neither_model_nor_rows(
    reproduce: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce("llama", "sst2", "manual", "--seeds", "1")
    reproduce("llama", "snli", "manual", "--seeds", "1", "--shots", "3")
    assert main(["reproduce", "--table", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "SST-2" in said and "SNLI" in said and "79.8" in said and "(paper)" in said
    assert "Rows a class for sst2: 4, in the paper 16." in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--methods", "bbt,magic"], "unknown method 'magic'"),
        (["--tasks", "sst3"], "unknown task 'sst3'; did you mean 'sst2'"),
        (["--seeds", "1,1"], "give some, each once"),
        (["--seeds", "one"], "give whole numbers"),
        (["--shots", "many"], "write 16, or 16,dbpedia=4"),
        (["--preset", "bbtv2"], "name it among the methods"),
        (["--layout", "prompt-last"], "unknown layout"),
        (["--tasks", "mrpc", "--methods", "bbt-pretrained"], "make one with `lmaas-tune pretrain`"),
        (["--pretrained", "somewhere"], "write TASK=DIR"),
        (["--backend", "toy", "--model", ""], "takes no model"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(
    reproduce: Callable[..., Any], flags: list[str], says: str
) -> None:
    assert says in reproduce("llama", "sst2", "manual", *flags, code=2)["error"]


def test_a_model_behind_an_api_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--backend", "toy", "--data", str(data), "--out", str(tmp_path / "out"), "--json"]
    assert main(["reproduce", *flags]) == 2
    assert "need the model itself" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize("flags", [["--tasks", "sst3"], ["--methods", "magic"]])
def test_a_mistyped_name_is_told_before_the_model_is_loaded(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "--model", "no/such-model", "--data", "rows", "--out", str(tmp_path)]
    assert main([*command, *flags, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"].startswith("unknown ")
