"""Rows are the same rows in whatever form they come, and a split of them is fair."""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmaas_tune.data import few_shot_split, labels_of, read_examples
from lmaas_tune.errors import InputError
from lmaas_tune.task import Example

Pairs = list[tuple[str, str]]

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
labels = texts.map(str.strip).filter(bool)
pairs = st.lists(st.tuples(texts, labels), min_size=1, max_size=5)


def examples_of(rows: Pairs) -> list[Example]:
    return [Example({"text": text}, label) for text, label in rows]


def dicts_of(rows: Pairs) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in rows]


# One set of rows, many forms


def as_frame(rows: Pairs, folder: Path) -> Any:
    return pytest.importorskip("pandas").DataFrame(dicts_of(rows))


def as_polars(rows: Pairs, folder: Path) -> Any:
    return pytest.importorskip("polars").DataFrame(dicts_of(rows))


def as_arrow(rows: Pairs, folder: Path) -> Any:
    return pytest.importorskip("pyarrow").Table.from_pylist(dicts_of(rows))


def as_stream(rows: Pairs, folder: Path) -> Any:
    stream = as_dataset(rows, folder).to_iterable_dataset().map(dict)
    assert stream.features is None
    return stream


def as_dataset(rows: Pairs, folder: Path) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(dicts_of(rows))


def as_classes(rows: Pairs, folder: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    names = list(dict.fromkeys(label for _, label in rows))
    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    content = {
        "text": [text for text, _ in rows],
        "label": [names.index(label) for _, label in rows],
    }
    return datasets.Dataset.from_dict(content, features=datasets.Features(kinds))


def as_jsonl(rows: Pairs, folder: Path) -> Path:
    path = folder / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in dicts_of(rows)]
    path.write_bytes("\n".join(["", *lines, ""]).encode())
    return path


def as_json(rows: Pairs, folder: Path) -> str:
    path = folder / "rows.json"
    path.write_text(json.dumps(dicts_of(rows)), encoding="utf-8-sig")
    return str(path)


def as_table(rows: Pairs, path: Path, delimiter: str) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(dicts_of(rows))
    return path


FORMS: dict[str, Callable[[Pairs, Path], Any]] = {
    "pairs": lambda rows, folder: rows,
    "dicts": lambda rows, folder: dicts_of(rows),
    "examples": lambda rows, folder: examples_of(rows),
    "a generator": lambda rows, folder: (list(row) for row in rows),
    "frame": as_frame,
    "polars": as_polars,
    "arrow": as_arrow,
    "stream": as_stream,
    "dataset": as_dataset,
    "dataset of classes": as_classes,
    "jsonl": as_jsonl,
    "json": as_json,
    "csv": lambda rows, folder: as_table(rows, folder / "rows.CSV", ","),
    "tsv": lambda rows, folder: as_table(rows, folder / "rows.tsv", "\t"),
}


def _splits(rows: Pairs) -> bool:
    """Whether a cell has tabs and line breaks, which may make it look like rows of a .tsv."""
    return any("\t" in cell and set(cell) & {"\r", "\n"} for row in rows for cell in row)


@pytest.mark.parametrize("form", FORMS)
@given(rows=pairs.filter(lambda rows: not _splits(rows)))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_the_same_in_every_form(form: str, tmp_path: Path, rows: Pairs) -> None:
    assert read_examples(FORMS[form](rows, tmp_path)) == examples_of(rows)


@pytest.mark.parametrize("form", FORMS)
def test_what_looks_like_structure_inside_a_text_is_text(form: str, tmp_path: Path) -> None:
    odd = ["a\r\nb", "a\rb", "a\nb", 'he said "no"', "a,b\tc", "x\u2028y\x0bz\x85", " ", "'", "{a}"]
    rows = [(text, f"l{number}") for number, text in enumerate(odd)]
    assert read_examples(FORMS[form](rows, tmp_path)) == examples_of(rows)


def test_every_column_but_the_label_is_a_field(tmp_path: Path) -> None:
    rows = [{"premise": "a", "hypothesis": "b", "n": 3, "gold": 1}]
    (example,) = read_examples(rows, label_field="gold")
    assert example == Example({"premise": "a", "hypothesis": "b", "n": "3"}, "1")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1, "1"),
        (1.0, "1"),
        (0.5, "0.5"),
        (True, "True"),
        (" a ", "a"),
        (np.int64(3), "3"),
        (np.float32(2), "2"),
        (np.bool_(True), "True"),
        (float("inf"), "inf"),
    ],
)
def test_labels_become_strings(value: Any, label: str) -> None:
    assert read_examples([("x", value)])[0].label == label


def test_empty_cells_of_a_frame_are_missing_labels() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", "b"], "label": [1, None]})
    assert [e.label for e in read_examples(frame, labelled=False)] == ["1", None]
    for column in (frame, frame.astype({"label": "Int64"})):
        with pytest.raises(InputError, match="row 2: no label: its 'label' is empty: fill it in"):
            read_examples(column)


def test_a_dataset_tells_withheld_labels_by_minus_one() -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    rows = datasets.Dataset.from_dict(
        {"text": ["a", "b"], "label": [1, -1]}, features=datasets.Features(kinds)
    )
    for form in (rows, rows.with_format("numpy")):
        assert [e.label for e in read_examples(form, labelled=False)] == ["yes", None]


def test_bare_texts_serve_where_no_label_is_needed() -> None:
    assert read_examples(["a", "b"], labelled=False) == [
        Example({"text": "a"}),
        Example({"text": "b"}),
    ]
    with pytest.raises(
        InputError, match="train, row 1: no label in the field 'label'; known: text"
    ):
        read_examples(["a", "b"], what="train")


def test_numbers_in_an_example_are_read_as_in_any_row() -> None:
    (row,) = read_examples([Example({"text": 3}, 1)])  # type: ignore[dict-item, arg-type]
    assert row == Example({"text": "3"}, "1")


def test_a_label_that_nobody_needs_may_be_anything() -> None:
    odd: Any = [{"text": "a", "label": [1]}, ("a", {"x": 1}), Example({"text": "a"}, {})]  # type: ignore[arg-type]
    assert read_examples(odd, labelled=False) == [Example({"text": "a"})] * 3
    assert read_examples([("a", 1)], labelled=False) == [Example({"text": "a"}, "1")]


class ColumnsFirst:
    """A frame of a library that nobody here knows."""

    columns = ("text", "label")

    def to_dict(self) -> dict[str, list[str]]:
        return {"text": ["a"], "label": ["x"]}

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "rows: it has no rows"),
        (3, "cannot read examples from int; give a path"),
        ({"text": ["a"]}, "cannot read examples from dict"),
        (ColumnsFirst(), "cannot read examples from ColumnsFirst; .* a pandas or polars frame"),
        ([3], "row 1: 3 is neither a mapping nor a"),
        ([("a", "x"), ("a", "b", "c")], "row 2: .* is neither a mapping nor a"),
        ([("a", "x"), (None, "x")], "row 2: it is empty"),
        ([{"text": ["a"], "label": 1}], r"row 1, field 'text': \['a'\] is not text"),
        ([{"text": float("nan"), "label": 1}], "field 'text': it is empty"),
        ([{"text": "a", "label": [1, 0]}], r"row 1: the label \[1, 0\] is neither text nor"),
        ([{"text": "a", "label": np.zeros(2)}], "row 1: the label .* is neither text nor"),
        (
            [{"text": "a", "lable": "x"}],
            r"no label in the field 'label'; did you mean 'lable'\? \(name",
        ),
        ([("caf\udce9", "x")], "row 1: .* is half a character"),
        ([Example({"text": None}, "x")], "row 1, field 'text': it is empty"),  # type: ignore[dict-item]
        ([Example("a", "x")], "row 1: the fields 'a' are no mapping"),  # type: ignore[arg-type]
        ([Example({"text": "a"}, [1])], r"row 1: the label \[1\] is"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_set_of_rows_gets_one_sentence(rows: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_examples(rows)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.jsonl", b"", "it has no rows"),
        ("rows.csv", b"", "it has no rows"),
        ("rows.csv", b"text,label\n", "it has no rows"),
        ("rows.jsonl", b'{"text": "a", "label": 1}\n{"text": "a"', "line 2: not JSON"),
        ("rows.jsonl", b'"a"\n', "row 1: no label"),
        ("rows.json", b'{"text": "a"}', "holds one list of rows; for a row a line use .jsonl"),
        ("rows.json", b"[", "not JSON"),
        ("rows.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("rows.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "line 1: not JSON"),
        ("rows.csv", b"text,label\na,b,c\n", "line 2: not as many cells as the header's 2"),
        ("rows.csv", b"text,label\na\n", "line 2: not as many cells as the header's 2"),
        ("rows.csv", b'text,label\n"a"b,c\n', r"line 2: a cell begins .* \(',' expected"),
        ("rows.csv", b'text,label\n"a,b\nc,d\n', r"line 2: a cell begins .* \(unexpected end of"),
        ("rows.tsv", b'text\tlabel\n"a\tb\tc\td\n', "line 2: not as many cells as the header's 2"),
        ("rows.tsv", b'text\tlabel\na\tb\n"a\tb"\tc\td\n', "line 3: not as many cells"),
        ("rows.jsonl", b'{"text": "caf\xe9", "label": 1}', "cannot be read as UTF-8 .* --encoding"),
        ("rows.csv", "text,label\na,b\n".encode("utf-16-le"), "UTF-16 without a mark: give"),
        ("rows.csv", b"text,label\ncaf\x81,x\n", "cannot be read as UTF-8 text .* --encoding"),
        ("rows.xlsx", b"PK", "cannot be read as .xlsx"),
        ("rows.parquet", b"PAR1", "cannot be read as .parquet"),
        (
            "rows.txt",
            b"a",
            "ends in .jsonl, .json, .csv, .tsv, .parquet or .xlsx, and this one in .txt",
        ),
        ("rows", b"a", "or .xlsx, and this one in nothing"),
    ],
)
def test_a_file_that_cannot_be_read_gets_one_sentence(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        read_examples(tmp_path / name, what="train")
    assert name in str(caught.value)


TABLE = 'Betreff;Text;label\n"Rück;frage";é € ok;Zahlung\nzwei;"a\nb";Retoure\n'
TABLE_ROWS = [
    Example({"Betreff": "Rück;frage", "Text": "é € ok"}, "Zahlung"),
    Example({"Betreff": "zwei", "Text": "a\nb"}, "Retoure"),
]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (TABLE.encode(), "read as UTF-8, with semicolons between cells"),
        (TABLE.encode("utf-8-sig"), "read as UTF-8, with semicolons between cells"),
        (TABLE.encode("cp1252"), "read as cp1252, with semicolons .*; --encoding"),
        (TABLE.encode("utf-16"), "read as utf-16, with semicolons"),
        (("sep=;\r\n" + TABLE).encode("cp1252"), "read as cp1252, with semicolons"),
        (TABLE.replace(";", "|").replace("Rück|", "Rück;").encode(), "UTF-8, with bars"),
        (TABLE.replace(";", "\t").replace("Rück\t", "Rück;").encode(), "UTF-8, with tabs"),
        (("sep=#\n" + TABLE.replace(";", "#").replace("Rück#", "Rück;")).encode(), "with '#'"),
    ],
)
def test_tables_of_spreadsheets_are_read_and_how_is_told(
    tmp_path: Path, data: bytes, told: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(data)
    notes: list[str] = []
    assert read_examples(path, on_note=notes.append) == TABLE_ROWS
    (note,) = notes
    assert re.search(f"rows.csv: .*{told}", note)


def test_commas_in_utf8_are_nothing_to_tell_and_an_encoding_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    notes: list[str] = []
    path.write_text("text,label\na; b; c,x\n", encoding="utf-8-sig")
    assert read_examples(path, on_note=notes.append) == [Example({"text": "a; b; c"}, "x")]
    assert notes == []
    path.write_bytes("text,label\nżółw,x\n".encode("cp1250"))
    rows = read_examples(path, encoding="cp1250", on_note=notes.append)
    assert rows == [Example({"text": "żółw"}, "x")]
    assert notes == [f"{path}: read as cp1250, with commas between cells"]
    with pytest.raises(InputError, match="unknown encoding 'latin-99'"):
        read_examples(path, encoding="latin-99")


@pytest.mark.parametrize("ending", ["parquet", "xlsx"])
def test_parquet_and_excel_are_read(tmp_path: Path, ending: str) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip({"parquet": "pyarrow", "xlsx": "openpyxl"}[ending])
    frame = pandas.DataFrame(
        {
            "text": ["a", "b"],
            "when": [pandas.Timestamp("2026-01-02")] * 2,
            "amount": [3, 4],
            "label": [1, 0],
        }
    )
    path = tmp_path / f"rows.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_excel(path, index=False)
    assert read_examples(path) == [
        Example({"text": "a", "amount": "3"}, "1"),
        Example({"text": "b", "amount": "4"}, "0"),
    ]
    with pytest.raises(InputError, match="no such file"):
        read_examples(path.with_stem("other"))


def test_of_several_sheets_the_first_with_rows_is_read(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("openpyxl")
    frame = pandas.DataFrame({"text": ["a"], "label": ["x"]})
    path, notes = tmp_path / "rows.xlsx", list[str]()
    with pandas.ExcelWriter(path) as book:
        pandas.DataFrame().to_excel(book, sheet_name="empty")
        frame.to_excel(book, sheet_name="one", index=False)
        frame.assign(text="b").to_excel(book, sheet_name="two", index=False)
    assert read_examples(path, on_note=notes.append) == [Example({"text": "a"}, "x")]
    assert notes == [f"{path}: read the first of its sheets 'one', 'two'"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv: no such file"):
        read_examples(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match=r"ends in \.jsonl, .* or \.xlsx, and this one in nothing"):
        read_examples(tmp_path)


def test_labels_stand_in_an_order_that_people_expect() -> None:
    found = [Example({}, label) for label in ("10", "9", "b", None, "a", "9", "-1")]
    assert labels_of(found) == ("9", "10", "-1", "a", "b")


# The few-shot protocol


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[Example], int]:
    shots = draw(st.integers(1, 4))
    counts = draw(st.lists(st.integers(2 * shots, 4 * shots), min_size=2, max_size=5))
    pool = [
        Example({"text": f"{c} {n}"}, str(c)) for c, many in enumerate(counts) for n in range(many)
    ]
    draw(st.randoms()).shuffle(pool)
    return pool, shots


@given(pools(), st.integers(0, 2**32))
def test_a_split_is_balanced_disjoint_and_repeats(
    case: tuple[list[Example], int], seed: int
) -> None:
    pool, shots = case
    train, validation = few_shot_split(pool, shots=shots, seed=seed)
    classes = {e.label for e in pool}
    for part in (train, validation):
        assert Counter(e.label for e in part) == dict.fromkeys(classes, shots)
    chosen = [e.fields["text"] for e in train + validation]
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= {e.fields["text"] for e in pool}
    assert few_shot_split(pool, shots=shots, seed=seed) == (train, validation)


def test_another_seed_gives_another_split() -> None:
    pool = [Example({"text": str(n)}, str(n % 2)) for n in range(100)]
    seen = {str(few_shot_split(pool, shots=4, seed=seed)) for seed in range(5)}
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"shots": 2, "seed": 0}, "label 'b' has 3 rows; 2 shots .* need 4"),
        ({"shots": 0, "seed": 0}, "shots=0: at least 1"),
        ({"shots": 1, "seed": -1}, "seed=-1: it must be 0 or more"),
    ],
)
def test_a_split_that_cannot_be_gets_one_sentence(wish: Any, sentence: str) -> None:
    pool = [Example({}, label) for label in "aaaabbb"]
    with pytest.raises(InputError, match=sentence):
        few_shot_split(pool, **wish)


def test_a_column_that_stands_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label,text\na,b,c\n")
    with pytest.raises(InputError, match="the column 'text' stands twice"):
        read_examples(tmp_path / "rows.csv")


def test_a_column_that_no_model_could_read_is_no_field() -> None:
    rows = [{"text": "a", "label": 1, "vector": [0.1], "note": None, "meta": {"n": 1}, "n": 3}]
    assert read_examples(rows)[0].fields == {"text": "a", "n": "3"}


def test_blank_lines_of_a_table_are_no_rows_and_long_cells_are(tmp_path: Path) -> None:
    limit, long = csv.field_size_limit(), "a" * 200_000
    (tmp_path / "rows.csv").write_text(f"\ntext,label\n{long},x\n \nb,y\n  ")
    rows = read_examples(tmp_path / "rows.csv")
    assert [(len(row.fields["text"]), row.label) for row in rows] == [(200_000, "x"), (1, "y")]
    assert csv.field_size_limit() == limit


# Quotation marks in tables


def test_a_cell_that_begins_with_a_quote_swallows_no_rows(tmp_path: Path) -> None:
    rows = [
        ('" A film to love', "1"),
        ("the plot is thin", "0"),
        ('he said "yes"', "1"),
        ('"', "0"),
    ]
    lines = ["text\tlabel", *("\t".join(row) for row in rows)]
    (tmp_path / "rows.tsv").write_text("\n".join(lines))
    assert read_examples(tmp_path / "rows.tsv") == examples_of(rows)


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_table_of_a_quoting_writer_is_read_by_its_rules(tmp_path: Path, quoting: Any) -> None:
    rows = [("a\tb", "1"), ("a\nb\n\nc", "0"), ('he said "no"', "1"), ("", "0"), ('"', "1")]
    with (tmp_path / "rows.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=quoting).writerows([("text", "label"), *rows])
    assert read_examples(tmp_path / "rows.tsv") == examples_of(rows)


def test_a_frame_that_was_written_with_tabs_comes_back(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = [("a\tb", "1"), ('say "no"\nto that', "0")]
    pandas.DataFrame(dicts_of(rows)).to_csv(tmp_path / "rows.tsv", sep="\t", index=False)
    assert read_examples(tmp_path / "rows.tsv") == examples_of(rows)


@pytest.mark.parametrize(
    "content",
    [
        'text\tlabel\na\t1\n" A film to love\t1\nthe plot is thin\t0\nhe said yes "\t1\n',
        'text\tlabel\na\t1\n"a\tb\nc"\t1\n',
        'text\na\n"a\nb"\n',
    ],
)
def test_a_tsv_that_is_other_rows_with_quoting_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.tsv").write_text(content)
    with pytest.raises(InputError, match=r"line 3: .* \d rows if that is text and \d if it quotes"):
        read_examples(tmp_path / "rows.tsv", labelled=False)


def test_a_quoted_cell_of_a_csv_that_may_have_swallowed_rows_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text,label\n"A film,1\nthin,0\nhe said yes",1\n')
    with pytest.warns(UserWarning, match=r"line 2: a quoted cell .* 3 lines are 1 rows"):
        assert len(read_examples(tmp_path / "rows.csv")) == 1


def test_line_breaks_in_the_cells_of_a_csv_are_nothing_to_tell(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text,label\n"A film\n\nto love, twice",1\nthin,0\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_examples(tmp_path / "rows.csv")) == 2


cells = st.text(st.sampled_from('ab"\t\r\n'), max_size=6)


@given(st.lists(st.tuples(cells, cells.map("l".__add__)), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_quoting_writers_table_is_read_as_other_rows(tmp_path: Path, rows: Pairs) -> None:
    path = as_table(rows, tmp_path / "rows.tsv", "\t")
    try:
        found = read_examples(path)
    except InputError as error:
        assert "if it quotes line breaks" in str(error)
        assert _splits(rows)
    else:
        assert found == [Example({"text": text}, label.strip()) for text, label in rows]


@given(st.lists(st.lists(st.text(st.sampled_from('ab" '), min_size=1), min_size=2, max_size=2)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_line_of_a_table_without_quoting_is_lost(tmp_path: Path, rows: Any) -> None:
    lines = ["\t".join(row) for row in [["text", "label"], *rows, ["a", "x"]]]
    (tmp_path / "rows.tsv").write_text("\n".join(lines))
    try:
        assert len(read_examples(tmp_path / "rows.tsv", labelled=False)) == len(lines) - 1
    except InputError as error:
        assert "if it quotes line breaks" in str(error)
