"""Stores of runs: folders and files, merged, and those of format 1."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lmaas_tune import InputError, StorageError
from lmaas_tune.lab.comparison import COMPARISON
from lmaas_tune.lab.paper import TABLE, read_table
from lmaas_tune.lab.paper.cell import conditions_of
from lmaas_tune.lab.record import Record
from lmaas_tune.lab.report import ComparisonResult
from lmaas_tune.lab.store import Store
from tests.lab.films import compare_films
from tests.lab.made import run

RUNS = [
    Record.from_json(
        json.loads(json.dumps(run(name, seed, loss=seed / 10 + (name == "pso")).to_json()))
    )
    for name in ("cma", "pso")
    for seed in (1, 2)
]

OLD_CELL: dict[str, Any] = {
    "format": 1,
    "task": "sst2",
    "method": "bbt",
    "seed": 13,
    "conditions": {
        "model": "hf tiny",
        "preset": "default",
        "layout": "text-first",
        "budget": "calls=45",
        "template": "Review: {sentence}\n {prompt} {label}",
        "label_words": ["negative", "positive"],
        "words": "The sentiment is",
        "shots": 4,
        "test_rows": 20,
        "left_out": {"train": 0, "validation": 1, "test": 2},
        "rows": {"train": "a", "validation": "b", "test": "c"},
        "settings": {"optimizer": "cma"},
    },
    "value": 0.75,
    "accuracy": 0.75,
    "loss": 0.5,
    "reason": "",
    "parameters": 52,
    "seconds": 3.5,
    "details": {"spent": {"calls": 41}, "stop_reason": "budget", "validation_loss": 0.4},
    "versions": {"python": "3.11.7"},
}


def stored(place: Path) -> Store:
    store = Store(place, COMPARISON)
    for record in RUNS:
        store.put(record)
    return store


def test_a_run_is_read_as_it_was_stored(tmp_path: Path) -> None:
    store = stored(tmp_path)
    assert [record for _, record in store.found()] == RUNS
    assert store.get(RUNS[2].key) == RUNS[2]
    store.delete(RUNS[2].key)
    assert store.get(RUNS[2].key) is None and len(store.found()) == 3


def test_the_lines_of_a_folder_are_a_store_as_one_file(tmp_path: Path) -> None:
    stored(tmp_path / "folder")
    file = tmp_path / "all.jsonl"
    for path in sorted((tmp_path / "folder").rglob("run.jsonl"), reverse=True):
        with file.open("a") as lines:
            lines.write(path.read_text())
    assert [record for _, record in Store(file, COMPARISON).found()] == RUNS[::-1]
    found, folder = ComparisonResult.of(file), ComparisonResult.of(tmp_path / "folder")
    pd.testing.assert_frame_equal(found.ranking, folder.ranking, check_exact=False)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{", *lines[2:]]))
    with pytest.raises(StorageError, match=r"all\.jsonl, line 2: the run is damaged"):
        ComparisonResult.of(file)


def test_of_two_records_of_a_run_one_that_succeeded_counts(tmp_path: Path) -> None:
    failed = replace(RUNS[0], status="failed", final={})
    Store(tmp_path / "a", COMPARISON).put(failed)
    stored(tmp_path / "b")
    found = ComparisonResult.of(tmp_path / "a", tmp_path / "b").records
    assert sorted(record.key for record in found) == [record.key for record in RUNS]
    assert all(record.done for record in found)


def test_a_comparison_that_format_1_began_goes_on(tmp_path: Path) -> None:
    first = compare_films(tmp_path, "random", seeds=[1])
    (path,) = tmp_path.rglob("run.jsonl")
    content = json.loads(path.read_text())
    content |= {"format": 1, "optimizer": content.pop("method")}
    path.with_name("run.json").write_text(json.dumps(content))
    path.unlink()
    assert ComparisonResult.of(tmp_path).records == first.records
    assert compare_films(tmp_path, "random", "cma", seeds=[1]).records[0] == first.records[0]
    assert [file.parent.parent.name for file in tmp_path.rglob("run.jsonl")] == ["cma"]


def test_a_cell_of_format_1_is_read_with_all_its_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "sst2" / "bbt" / "seed-13"
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps(OLD_CELL))
    record = read_table(tmp_path).records[0]
    assert record.key == ("sst2", "bbt", 13) and record.identity == "hf tiny"
    assert (record.value, record.accuracy("test"), record.loss("test")) == (0.75, 0.75, 0.5)
    assert (record.parameters, record.wall_seconds, record.reason) == (52, 3.5, "budget")
    assert {part: own and own.rows for part, own in record.rows.items()} == {
        "train": 8,
        "validation": 7,
        "test": 20,
    }
    assert conditions_of(record).left_out.test == 2
    assert record.spent["calls"] == 41 and record.details == {"validation_loss": 0.4}
    failed = {**OLD_CELL, "value": None, "accuracy": None, "loss": None, "reason": "no memory"}
    (folder / "cell.json").write_text(json.dumps(failed))
    record = Store(tmp_path, TABLE).found()[0][1]
    assert (record.status, record.reason) == ("failed", "no memory")


def test_runs_of_another_kind_of_experiment_are_refused(tmp_path: Path) -> None:
    stored(tmp_path)
    with pytest.raises(StorageError, match="belongs to a 'comparison', and here a table is read"):
        read_table(tmp_path)
    with pytest.raises(InputError, match="no runs of a table are there"):
        read_table(tmp_path / "nothing")
