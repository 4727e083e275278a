"""Odd files, frames and labels that users of other tools reported, and what each gives here.

Many cases name a thread, as owner/repository#number.
"""

from __future__ import annotations

import enum
import fractions
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import openpyxl
import pandas as pd
import polars as pl
import pytest

from lmaas_tune import InputError, read_examples
from lmaas_tune.dataset import Dataset, default_template
from lmaas_tune.labelling import label_frame
from lmaas_tune.row_files import read_frames
from lmaas_tune.testing.toy import ToyBackend
from tests.test_labelling import TUNED

TEXTS = ["good day", "bad day", "so good", "so bad"]
LABELS = ["up", "down", "up", "down"]
GOOD = [("good day", "up"), ("bad day", "down")]


def read(rows: Any) -> list[tuple[str, str | None]]:
    """The texts that a model would read, and the labels."""
    examples = read_examples(rows, on_note=lambda note: None)
    fields = default_template(examples, on_note=lambda note: None).fields
    assert fields == ("text",)
    return [(example.fields["text"], example.label) for example in examples]


TABLES = {
    "onaio/onadata#757, lines that end as on an old Mac": "text,label\rgood day,up\rbad day,down\r",
    "evanplaice/jquery-csv#142, semicolons and a line break in a cell": (
        'text;label\r\n"good day";up\r\n"bad day";down\r\n'
    ),
    "wireservice/csvkit#426, columns that were formatted and never filled": (
        "text,label,,\ngood day,up,,\nbad day,down,,\n"
    ),
    "pandas-dev/pandas#10670, an index without a name": (
        ",text,label\n0,good day,up\n1,bad day,down\n"
    ),
    "mafintosh/csv-parser#105, space beside names": "text , label\ngood day, up\nbad day, down \n",
    "mafintosh/csv-parser#140, a mark before a name": (
        "\ufeff\u200btext,label\ngood day,up\nbad day,down\n"
    ),
    "bars and quotation marks everywhere": ('"text"|"label"\n"good day"|"up"\n"bad day"|"down"\n'),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_gives_the_rows_that_its_writer_meant(tmp_path: Path, case: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(TABLES[case].encode())
    assert read(file) == GOOD
    (frame,) = read_frames(file, on_note=lambda note: None)
    assert frame["text"].tolist() == ["good day", "bad day"]


def test_words_for_nothing_are_text(tmp_path: Path) -> None:
    """huggingface/datasets#4467: a transcript "null" became None."""
    file = tmp_path / "rows.csv"
    file.write_text("text,label\nnull,NA\nnan,None\n")
    assert read(file) == [("null", "NA"), ("nan", "None")]


def test_labels_with_leading_zeros_are_not_one_label(tmp_path: Path) -> None:
    """turicas/rows#302: what starts with a zero is more likely a code than an amount."""
    file = tmp_path / "rows.csv"
    file.write_text("text,label\na,007\nb,7\n")
    assert read(file) == [("a", "007"), ("b", "7")]


def test_labels_with_spaces_inside_are_labels() -> None:
    """huggingface/datasets#1989: "not nurse" failed where "surgeon" did not."""
    rows = [("a", "nurse"), ("b", "not nurse")]
    assert read(rows) == rows


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "MarkPflug/Sylvan.Data.Excel#158, a title above the header": (
        "rows.csv",
        b"Tickets,,\n\ntext,label,\ngood,up,\n",
        "no label .*; known: Tickets .* the first line of a table",
    ),
    "h2oai/datatable#1330, no header": (
        "rows.csv",
        b"good day,up\nbad day,down\n",
        "no label .*; known: good day, up .* the first line of a table",
    ),
    "two columns without a name": (
        "rows.csv",
        b"text,label,,\ngood,up,1,2\n",
        "columns have no name: is the first line the header",
    ),
    "cells without a name or a text": ("rows.csv", b",\n,\n", "no label in the field 'label'"),
    "a comment above the header": (
        "rows.csv",
        b"# made by a tool\ntext,label\ngood,up\n",
        "line 2: not as many cells as the header's 1",
    ),
    "FlatFilers/csvjson-app#1, quotation marks after a backslash": (
        "rows.csv",
        b'text,label\n"said \\"good\\", no",up\n',
        "line 2: a cell begins with a quotation mark",
    ),
    "a packed file": ("rows.csv.gz", gzip.compress(b"text,label\n"), "gz: unpack it first"),
    "an old workbook": ("rows.xls", b"\xd0\xcf\x11\xe0", r"xls: save it as \.xlsx or \.csv"),
    "rows in an object": (
        "rows.json",
        json.dumps({"data": [{"text": "a", "label": "b"}]}).encode(),
        "holds one list of rows",
    ),
    "commas after lines of JSON": (
        "rows.jsonl",
        b'{"text": "a", "label": "b"},\n',
        "line 1: not JSON",
    ),
    "doccano/doccano#17, several labels of a row": (
        "rows.jsonl",
        b'{"text": "a", "label": ["b", "c"]}\n',
        r"row 1: the label \['b', 'c'\] is neither text nor a number",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_meant_gets_one_sentence(tmp_path: Path, case: str) -> None:
    name, content, sentence = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read(tmp_path / name)


def test_excel_rows_that_are_empty_are_no_rows(tmp_path: Path) -> None:
    """tidyverse/readxl#157: so are empty columns no columns."""
    write_excel(
        tmp_path, ["text", None, "label"], ["good day", None, "up"], [], ["bad day", "", "down"]
    )
    assert read(tmp_path / "rows.xlsx") == GOOD


def test_merged_excel_cells_leave_rows_without_a_label(tmp_path: Path) -> None:
    """tidyverse/readxl#355: only the first of the merged cells has the value."""
    sheet = write_excel(tmp_path, ["text", "label"], ["good day", "up"], ["bad day", None])
    with pytest.raises(InputError, match="row 2: no label: its 'label' is empty: fill it in"):
        read(sheet)


def test_an_excel_formula_that_was_never_computed_is_empty(tmp_path: Path) -> None:
    sheet = write_excel(tmp_path, ["text", "label"], ["=A1", "up"])
    with pytest.raises(InputError, match="row 1, field 'text': it is empty"):
        read(sheet)


def write_excel(folder: Path, *rows: list[Any]) -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    book.save(folder / "rows.xlsx")
    return folder / "rows.xlsx"


class Mood(str, enum.Enum):
    UP = "up"
    DOWN = "down"


MOODS = [Mood.UP, Mood.DOWN, Mood.UP, Mood.DOWN]
CLASSES = datasets.ClassLabel(names=["down", "up"])

FRAMES: dict[str, Callable[[], Any]] = {
    "shaypal5/skift#14, texts as labels": lambda: pd.DataFrame({"text": TEXTS, "label": LABELS}),
    "cleanlab/cleanlab#1070, categories, one of them unused": lambda: pd.DataFrame(
        {"text": TEXTS, "label": pd.Categorical(LABELS, categories=["up", "none", "down"])}
    ),
    "an index with doubles": lambda: pd.DataFrame(
        {"text": TEXTS, "label": LABELS}, index=[0, 0, 1, 1]
    ),
    "scikit-learn-contrib/category_encoders#421, columns of pyarrow": lambda: pd.DataFrame(
        {"text": TEXTS, "label": LABELS}
    ).convert_dtypes(dtype_backend="pyarrow"),
    "huggingface/datasets#6892, polars with categories": lambda: pl.DataFrame(
        {"text": TEXTS, "label": LABELS}, schema_overrides={"label": pl.Categorical}
    ),
    "an array of pairs": lambda: np.array(list(zip(TEXTS, LABELS, strict=True))),
    "pairs that are used up by reading": lambda: zip(TEXTS, LABELS, strict=True),
    "huggingface/datasets#2365, class labels": lambda: datasets.Dataset.from_dict(
        {"text": TEXTS, "label": [1, 0, 1, 0]}
    ).cast_column("label", CLASSES),
    "members of an enumeration of texts": lambda: list(zip(TEXTS, MOODS, strict=True)),
}


@pytest.mark.parametrize("case", FRAMES)
def test_frames_and_pairs_of_any_make_give_the_same_rows(case: str) -> None:
    assert read(FRAMES[case]()) == list(zip(TEXTS, LABELS, strict=True))


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (pd.array([True, False, True, False], dtype="boolean"), "bool"),  # scikit-learn#17675
        (pd.array([1, 0, 1, 0], dtype="Int64"), "int"),
        (pd.Categorical([3, 1, 3, 1]), "int"),
        (np.array([1, 0, 1, 0], dtype=np.int8), "int"),
        (np.array([1, 0, 1, 0], dtype=bool), "bool"),  # felixbur/nkululeko#239
        ([0.5, 1.5, 0.5, 1.5], "float"),
        ([1, "no", 1, "no"], "str"),
        ([True, 0, True, 0], "str"),  # True is an int to Python
        ([True, 2.5, True, 2.5], "str"),
        ([fractions.Fraction(1, 2), 1, fractions.Fraction(1, 2), 1], "str"),
        ([0.5, 1, 0.5, 1], "float"),
    ],
)
def test_labels_keep_their_type(labels: Any, kind: str) -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": pd.Series(labels)})
    assert Dataset.read(frame, "train").label_type == kind


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (lambda: datasets.DatasetDict({}), r"from DatasetDict; give one of its parts"),
        (lambda: pl.DataFrame({"text": TEXTS}).lazy(), r"LazyFrame; give rows\.collect\(\)"),
        (lambda: {"text": TEXTS, "label": LABELS}, r"dict; give pandas\.DataFrame\(rows\)"),
        (lambda: [("a", [1, 0])], r"the label \[1, 0\] is neither text nor a number"),
        (lambda: [("a", pd.Timestamp("2026-01-01"))], "the label Timestamp.* is neither text"),
        (lambda: [(b"a", "b")], "b'a' is not text"),
        (lambda: [("a", "b", "c")], "is neither a mapping nor a .text, label. pair"),
    ],
)
def test_what_is_meant_otherwise_is_told(rows: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read(rows())


def test_a_row_without_text_is_noted_and_gets_no_label() -> None:
    assert (
        "train: a row has no text: remove it, or fill it in"
        in Dataset.read([("", "a"), ("x", "a"), ("y", "b")], "train").notes()
    )
    frame = pd.DataFrame({"subject": ["", "good"], "body": [" ", ""]})
    assert label_frame(frame, TUNED, ToyBackend())["label"].isna().tolist() == [True, False]


def test_copies_of_rows_are_noted() -> None:
    rows = [("x", "a"), ("x", "a"), ("y", "b"), ("x", "b"), ("x", "a")]
    told, *others = (note for note in Dataset.read(rows, "train").notes() if "copies" in note)
    assert told.startswith("train: 2 of 5 rows are copies of others: each call pays for them again")
    assert not others
    assert not [n for n in Dataset.read(rows[1:4], "train").notes() if "copies" in n]
