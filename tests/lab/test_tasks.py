"""Tasks, as a file gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmaas_tune import InputError
from lmaas_tune.lab.optimizers import NamedTask, OptimizerSpec, read_tasks
from tests.lab.films import rows

TOML = """
[films]
train = "films/{seed}.csv"
template = "{text} {prompt} {label}"
labels = {0 = "bad", 1 = "good"}

[news]
train = "news.csv"
test = "news-test.csv"
shots = 16
label_field = "topic"
"""


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_file_has_a_table_for_each_task(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("tomllib") if suffix == ".toml" else None
    file = tmp_path / f"tasks{suffix}"
    content = {
        "films": {
            "train": "films/{seed}.csv",
            "template": "{text} {prompt} {label}",
            "labels": {"0": "bad", "1": "good"},
        },
        "news": {
            "train": "news.csv",
            "test": "news-test.csv",
            "shots": 16,
            "label_field": "topic",
        },
    }
    file.write_text(TOML if suffix == ".toml" else json.dumps(content))
    films, news = read_tasks(file)
    assert films.train == str(tmp_path / "films" / "{seed}.csv")  # beside the file
    assert films.labels == {"0": "bad", "1": "good"}
    assert (news.name, news.shots, news.label_field) == ("news", 16, "topic")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "7.csv").write_text("text,label\nfine,1\npoor,0\n")
    assert [row.label for row in films.split(7).train] == ["1", "0"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({}, "it has no tasks"),
        ([], "it has no tasks"),
        ({"a": {"test": "x"}}, "task 'a': give at least train"),
        ({"a": "x.csv"}, "task 'a': give at least train"),
        ({"a": {"train": "x", "tets": "y"}}, "unknown key 'tets'; did you mean 'test'"),
        ({"a": {"train": 3}}, "train = 3 is no text"),
        ({"a": {"train": "x", "shots": "many"}}, "shots = 'many' is no whole number"),
        ({"a": {"train": "x", "labels": "good"}}, "labels = 'good' is no table of words"),
        ({" ": {"train": "x"}}, "a task has no name"),
    ],
)
def test_what_is_no_task_is_named(tmp_path: Path, content: Any, what: str) -> None:
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=what):
        read_tasks(file)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("tasks.json", "{", "not JSON"),
        ("tasks.toml", "a b", "not TOML"),
        ("tasks.yaml", "", "ends in .toml or .json"),
        ("none.json", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, text: str | None, what: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: .*{what}"):
        read_tasks(tmp_path / name)


def test_shots_leave_no_room_for_other_validation_rows() -> None:
    with pytest.raises(InputError, match="leave validation out"):
        NamedTask(name="a", train=rows(8), validation=rows(8), shots=2)


def test_an_optimizer_is_called_by_its_name_and_options() -> None:
    assert OptimizerSpec(optimizer="cma").label == "cma"
    assert OptimizerSpec(optimizer="cma", options={"population": 8}).label == "cma(population=8)"
    assert OptimizerSpec(optimizer="cma", options={"population": 8}, label="small").label == "small"
    with pytest.raises(InputError, match="set them in the function"):
        OptimizerSpec(optimizer=OptimizerSpec, options={"population": 8})  # type: ignore[arg-type]
