"""Few-shot rows: from split folders, from a whole training set, from the hub."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lmaas_tune.errors import InputError
from lmaas_tune.lab.paper.rows import DataSource
from lmaas_tune.lab.paper.tasks import paper_task

from .conftest import write_rows

SST2, MRPC, SNLI = map(paper_task, ("sst2", "mrpc", "snli"))


def texts(rows: Any) -> list[str]:
    return [" ".join(row.fields.values()) for row in rows]


def test_a_split_folder_gives_its_rows_and_as_many_of_each_class(data: Path) -> None:
    rows = DataSource(data=str(data), shots=3).few_shot(SNLI, 2)
    for part in (rows.train, rows.validation):
        assert Counter(row.label for row in part) == {"0": 3, "1": 3, "2": 3}
    assert len(rows.test) == 30
    assert all(" train " in text for text in texts(rows.train))
    assert all(" dev " in text for text in texts(rows.validation))


def test_a_task_may_have_shots_of_its_own(data: Path) -> None:
    source = DataSource(data=str(data), shots=4, other_shots={"snli": 2})
    assert len(source.few_shot(SNLI, 1).train) == 6
    assert len(source.few_shot(SST2, 1).train) == 8


def test_a_whole_training_set_is_split_by_the_seed(data: Path) -> None:
    source = DataSource(data=str(data), shots=4)
    one, same, other = (source.few_shot(MRPC, seed) for seed in (5, 5, 6))
    assert texts(one.train) == texts(same.train) != texts(other.train)
    assert not set(texts(one.train)) & set(texts(one.validation))
    assert len(one.train) == len(one.validation) == 8


def test_test_rows_are_drawn_once_for_all_seeds(data: Path) -> None:
    source = DataSource(data=str(data), shots=4, test_rows=7)
    drawn = [texts(source.few_shot(SST2, seed).test) for seed in (1, 2)]
    assert drawn[0] == drawn[1]
    every = texts(DataSource(data=str(data), shots=4).test(SST2))
    assert len(drawn[0]) == 7 and drawn[0] == [text for text in every if text in drawn[0]]


def test_all_training_rows_have_none_of_the_test_and_each_once(data: Path) -> None:
    shutil.copy(data / "sst2/test.jsonl", data / "sst2/seed-1/test.jsonl")  # some tools write it
    rows = texts(DataSource(data=str(data)).all_training_rows(SST2))
    assert len(rows) == len(set(rows)) == 16  # of both seeds, which are alike here
    assert not any(" test " in text for text in rows)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data / "nowhere", "no such folder"),
        (
            lambda data: write_rows(data / "sst2/seed-3/train.jsonl", "sst2", (0, 1), 1),
            "label '0' has 1 rows, which is no 4 shots",
        ),
        (
            lambda data: write_rows(data / "sst2/seed-3/train.jsonl", "sst2", (0,), 4),
            "label '1' has 0 rows",
        ),
        (lambda data: (data / "sst2/seed-3").rename(data / "sst2/3"), "neither seed-3/ nor train"),
        (lambda data: write_rows(data / "sst2/seed-3/train.jsonl", "snli", (0,), 4), "no field"),
    ],
)
def test_rows_that_are_not_there_are_named(data: Path, change: Any, says: str) -> None:
    write_rows(data / "sst2/seed-3/train.jsonl", "sst2", (0, 1), 4)
    changed = change(data)
    root = changed if isinstance(changed, Path) and changed.name == "nowhere" else data
    with pytest.raises(InputError, match=says):
        DataSource(data=str(root), shots=4).few_shot(SST2, 3)


def test_the_hub_is_asked_for_the_public_sets_and_unlabelled_rows_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path: str, name: str | None, *, split: str) -> Any:
        """The hub cannot be had in a test; what it gives is a `datasets.Dataset`."""
        asked.append((path, name, split))
        return datasets.Dataset.from_list(
            [{"premise": f"p{i}", "hypothesis": " h", "label": i % 4 - 1} for i in range(40)]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = DataSource(data="hub", shots=5).few_shot(SNLI, 0)
    assert asked == [("stanfordnlp/snli", None, "train"), ("stanfordnlp/snli", None, "test")]
    assert {row.label for row in rows.test} == {"0", "1", "2"} and len(rows.test) == 30
    assert rows.test[0].fields == {"premise": "p1", "hypothesis": "h"}


def test_a_hub_that_cannot_be_reached_is_said_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"cannot be had from the hub.*no route.*--data"):
        DataSource(data="hub").test(SST2)
