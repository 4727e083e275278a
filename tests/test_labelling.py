"""Rows are labelled with their columns kept, in frames and in files of any length."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lmaas_tune import Client, TextPrompt, TunedPrompt, load_backend
from lmaas_tune.cli import main
from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.heads import FittedHead
from lmaas_tune.labelling import Labelled, label_file, label_frame
from lmaas_tune.task import Task, Template, Verbalizer
from lmaas_tune.testing.toy import ToyBackend
from tests.support.waiting import until

TASK = Task(Template("{subject} {body} {prompt} {label}"), Verbalizer({"0": "bad", "1": "good"}))
HEAD = FittedHead(np.array([0.3, -0.3]))
TUNED = TunedPrompt(TextPrompt("It was"), TASK, HEAD, label_type="int")

FRAME = pd.DataFrame(
    {
        "id": ["007", "8", "9", "10"],
        "subject": ["good day", "bad day", None, "a day"],
        "body": ["truly good", "so bad", "good", "of things"],
        "amount": [1.5, 2.0, 3.0, np.nan],
    },
    index=[3, 1, 2, 7],
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return TUNED.save(tmp_path / "prompt")


def expected(frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    return TUNED.predict_proba(
        ToyBackend(),
        [{"subject": s, "body": b} for s, b in zip(frame.subject, frame.body, strict=True)],
    )


def test_a_frame_keeps_its_columns_and_gets_three() -> None:
    labelled = label_frame(FRAME, TUNED, ToyBackend())
    pd.testing.assert_frame_equal(labelled[FRAME.columns.tolist()], FRAME)
    assert list(labelled.columns) == [*FRAME.columns, "label", "probability", "margin"]
    whole = FRAME.drop(index=2)
    probabilities = expected(whole)
    found = labelled.drop(index=2)
    assert found["label"].tolist() == probabilities.argmax(axis=1).tolist()
    np.testing.assert_allclose(found["probability"].tolist(), probabilities.max(axis=1))
    np.testing.assert_allclose(found["margin"].tolist(), abs(probabilities @ [1, -1]))
    lost = labelled.loc[2]
    assert lost["label"] is None
    assert np.isnan(lost["probability"])


def test_improbable_labels_are_left_to_a_person() -> None:
    sure = label_frame(FRAME, TUNED, ToyBackend())["probability"]
    bound = float(sure.dropna().median())
    labelled = label_frame(FRAME, TUNED, ToyBackend(), min_probability=bound)
    assert labelled["label"].notna().tolist() == (sure >= bound).tolist()
    pd.testing.assert_series_equal(labelled["probability"], sure)


def test_columns_of_the_same_name_stay_and_a_missing_one_is_named() -> None:
    labelled = label_frame(FRAME.assign(label="mine"), TUNED, ToyBackend())
    assert set(labelled["label"]) == {"mine"}
    assert list(labelled.columns[-3:]) == [
        "predicted_label",
        "predicted_probability",
        "predicted_margin",
    ]
    with pytest.raises(InputError, match="no column 'body'; did you mean 'bdy'"):
        label_frame(FRAME.rename(columns={"body": "bdy"}), TUNED, ToyBackend())


def test_a_cluster_labels_the_parts_of_a_frame(saved: Path) -> None:
    distributed = pytest.importorskip("distributed")
    frames = pytest.importorskip("dask.dataframe")
    whole = pd.concat([FRAME] * 30, ignore_index=True).dropna()
    parts = frames.from_pandas(whole, npartitions=4)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as c,
        distributed.Client(c),
    ):
        meta = label_frame(whole.head(0), TUNED, ToyBackend())
        found = parts.map_partitions(
            label_frame, str(saved), partial(load_backend("toy")), meta=meta
        ).compute()
    pd.testing.assert_frame_equal(found, label_frame(whole, TUNED, ToyBackend()), check_dtype=False)


# Files


def write(path: Path, count: int) -> pd.DataFrame:
    rows = pd.DataFrame(
        {
            "id": [f"{n:03}" for n in range(count)],
            "subject": [("good", "bad")[n % 2] + f' "day", {n}' for n in range(count)],
            "body": [f"line\nof {n}" for n in range(count)],
        }
    )
    if path.suffix == ".csv":
        rows.to_csv(path, index=False, sep=";", encoding="cp1252")
    elif path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        rows.to_parquet(path)
    elif path.suffix == ".json":
        rows.to_json(path, orient="records")
    else:
        rows.to_json(path, orient="records", lines=True)
    return rows


def read(path: Path, **types: Any) -> pd.DataFrame:
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype={"id": str, **types})
    return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])


@pytest.mark.parametrize("source", ["rows.csv", "rows.jsonl", "rows.json", "rows.parquet"])
@pytest.mark.parametrize("target", ["done.csv", "done.jsonl"])
def test_a_file_is_labelled_part_by_part(
    source: str, target: str, saved: Path, tmp_path: Path
) -> None:
    rows, seen = write(tmp_path / source, 1100), list[int]()
    label_file(
        tmp_path / source,
        tmp_path / target,
        saved,
        ToyBackend(),
        on_rows=lambda done: seen.append(done.rows),
        on_note=lambda note: None,
    )
    assert seen == [512, 1024, 1100]
    found = read(tmp_path / target)
    wanted = label_frame(rows, TUNED, ToyBackend())
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False, rtol=0, atol=5e-7)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source, target, "prompt"])


class StoppedError(Exception):
    pass


def test_a_stopped_file_goes_on_and_torn_rows_are_cut_off(saved: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "rows.csv", tmp_path / "done.csv"
    write(source, 1600)
    asked: list[int] = []

    class Counting(ToyBackend):
        def score(self, requests: Any, /) -> Any:
            asked.extend(len(request.batch) for request in requests)
            return super().score(requests)

    def stop(done: Labelled) -> None:
        if done.rows == stop_at:
            raise StoppedError

    for stop_at in (512, 1024, 1600, 0):  # the third before the file gets its name
        with pytest.raises(StoppedError) if stop_at else pytest.MonkeyPatch.context():
            done = label_file(
                source, target, saved, Counting(), on_rows=stop, on_note=lambda note: None
            )
        if stop_at:
            assert not target.exists()
            with target.with_name("done.csv.part").open("ab") as file:
                file.write(b'1234,"half a r')
    assert sum(asked) == 1600 == done.rows
    whole = tmp_path / "whole.csv"
    label_file(source, whole, saved, ToyBackend(), on_note=lambda note: None)
    assert target.read_bytes() == whole.read_bytes()


def test_what_does_not_fit_gets_one_sentence_and_loses_nothing(saved: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "rows.jsonl", tmp_path / "done.csv"
    write(source, 600)

    def stop(done: Labelled) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        label_file(source, target, saved, ToyBackend(), on_rows=stop)
    part = target.with_name("done.csv.part")
    before = part.read_bytes()
    with pytest.raises(InputError, match="of another prompt, other rows or other settings"):
        label_file(source, target, saved, ToyBackend(), min_probability=0.9)
    state = target.with_name("done.csv.state")
    text = state.read_text()
    for damaged in ("{", text.replace('"bytes": ', '"bytes": 9')):
        state.write_text(damaged)
        with pytest.raises(StorageError, match=r"done.csv.state: the progress is damaged"):
            label_file(source, target, saved, ToyBackend())
    assert part.read_bytes() == before
    state.write_text(text)
    label_file(source, target, saved, ToyBackend())
    with pytest.raises(InputError, match=r"done.csv exists: name another file"):
        label_file(source, target, saved, ToyBackend())
    with pytest.raises(InputError, match=r"ends in .csv or .jsonl"):
        label_file(source, tmp_path / "done.txt", saved, ToyBackend())
    with pytest.raises(InputError, match=r"nowhere.csv: .* be read"):
        label_file(tmp_path / "nowhere.csv", tmp_path / "x.csv", saved, ToyBackend())
    with pytest.raises(StorageError, match="the rows cannot be written"):
        label_file(source, tmp_path / "no" / "x.csv", saved, ToyBackend())


@pytest.mark.parametrize("row", ["1,a,b,c\n", '1,a,"b\n', "1,a,b\n2,a,b,c\n"])
def test_a_table_with_ragged_rows_gets_one_sentence(row: str, saved: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("id,subject,body\n" + row)
    with pytest.raises(
        InputError, match=r"rows.csv: (a row has more cells|cannot be read as .csv)"
    ):
        label_file(source, tmp_path / "done.csv", saved, ToyBackend())


def test_a_killed_command_goes_on(saved: Path, tmp_path: Path, capsys: Any) -> None:
    source, target = tmp_path / "rows.csv", tmp_path / "done.csv"
    write(source, 30_000)
    command = ["predict", "--prompt", str(saved), "--backend", "toy", "--input", str(source)]
    command += ["--output", str(target), "--min-probability", "0.6", "--json"]
    with subprocess.Popen([sys.executable, "-m", "lmaas_tune", *command]) as process:
        until(target.with_name("done.csv.state").exists)
        process.kill()
    assert not target.exists()
    assert main(command) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["rows"] == 30_000
    assert content["without_label"] == read(target)["label"].isna().sum()
    assert content["spent"]["sequences"] < 30_000
    assert set(read(target, label=str)["label"].dropna()) == {"0", "1"}
    assert read(target)["id"].tolist() == [f"{n:03}" for n in range(30_000)]


def test_output_is_for_the_rows_of_a_file(saved: Path, capsys: Any) -> None:
    command = ["predict", "--prompt", str(saved), "--backend", "toy", "--text", "good"]
    assert main([*command, "--output", "x.csv"]) == 2
    assert "--output is for the rows of a file: give --input" in capsys.readouterr().err


def test_a_client_is_taken_too() -> None:
    client = Client(ToyBackend())
    pd.testing.assert_frame_equal(
        label_frame(FRAME, TUNED, client), label_frame(FRAME, TUNED, ToyBackend())
    )
