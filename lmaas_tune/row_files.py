"""Reads rows from files: JSON, tables of spreadsheets, Parquet and Excel."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from lmaas_tune.errors import InputError
from lmaas_tune.extras import need
from lmaas_tune.notes import OnNote, warn

if TYPE_CHECKING:
    import pandas as pd

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the bytes that a file begins with."""

_OFFICE = "cp1252"
"""What spreadsheets write on Windows where it is not UTF-8."""

_TABLES = {".csv": ",", ".tsv": "\t"}
"""Endings of tables, and what usually stands between their cells."""

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

_NAMED_DELIMITER = re.compile(r"sep=(.)(?=[\r\n])")
"""The line with which Excel names the delimiter."""

_SAMPLE = 1 << 16  # characters

_UNSEEN = "\ufeff\u200b\u200c\u200d\u2060"

_LIBRARIES = {".parquet": "pyarrow", ".xlsx": "openpyxl"}

KINDS = (".jsonl", ".json", ".csv", ".tsv", *_LIBRARIES)
"""Endings of files of rows."""

_NAMES = (*KINDS, ".ndjson")

_REMEDIES = {
    ".xls": "save it as .xlsx or .csv",
    ".ods": "save it as .xlsx or .csv",
    ".gz": "unpack it first",
    ".zip": "unpack it first",
}


def read_file(path: Path, *, encoding: str | None = None, on_note: OnNote = warn) -> list[Any]:
    """Read the rows of a file.

    A ``.csv`` file may have commas, semicolons, tabs or bars between its cells. Text is UTF-8 or
    UTF-16 with a mark; a table that is neither is read as cp1252. What is not UTF-8 with commas
    (``.tsv``: tabs) is told in a note.

    Args:
        path: A file that ends in one of `KINDS`.
        encoding: Encoding of a text file; by default it is found.
        on_note: Called with notes on how the file was read.

    Raises:
        InputError: The file cannot be read.
        MissingExtraError: The extra ``tables``, for Parquet and Excel, is not installed.
    """
    kind = _kind(path)
    if kind in _LIBRARIES:
        return [row for frame in read_frames(path, on_note=on_note) for row in records_of(frame)]
    if kind in _TABLES:
        layout = _layout(path, encoding, on_note)
        text = layout.after_name(_text(path, layout.encoding))
        if kind == ".tsv":
            return _table_rows(_tab_separated(text, path), path)
        return _table_rows(_separated(text, layout.delimiter, path, on_note), path)
    text = _text(path, _encoding(path, encoding, is_table=False))
    if kind in (".jsonl", ".ndjson"):
        return [
            _json(line, f"{path}, line {number}")
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
    rows = _json(text, str(path))
    if not isinstance(rows, list):
        raise InputError(
            f"{path}: a .json file holds one list of rows; for a row a line use .jsonl"
        )
    return rows


def _kind(path: Path) -> str:
    """The ending of a file of rows.

    Raises:
        InputError: It is another.
    """
    kind = path.suffix.lower()
    if kind in _NAMES:
        return kind
    known = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
    remedy = f": {_REMEDIES[kind]}" if kind in _REMEDIES else ""
    raise InputError(
        f"{path}: a file of rows ends in {known}, and this one in {kind or 'nothing'}{remedy}"
    )


def read_frames(
    path: Path, *, rows: int = 512, encoding: str | None = None, on_note: OnNote = warn
) -> Iterator[pd.DataFrame]:
    """The rows of a file as frames of at most `rows` rows, with all columns.

    ``.csv``, ``.jsonl`` and ``.parquet`` are read as they are used, so that they may be larger than
    the memory. The cells of tables are texts.

    Args:
        path: See `read_file`.
        rows: Most rows of a frame.
        encoding: See `read_file`.
        on_note: See `read_file`.

    Raises:
        InputError: The file cannot be read.
        MissingExtraError: The extra ``tables``, for Parquet and Excel, is not installed.
    """
    import pandas as pd  # slow to import

    kind = _kind(path)
    if kind in _LIBRARIES:
        need(f"a {kind} file", _LIBRARIES[kind], extra="tables")
    if not path.exists():
        raise _missing(path)
    with _reading(path):
        for frame in _frames(path, rows, encoding, on_note):
            if kind == ".csv" and not isinstance(frame.index, pd.RangeIndex):
                # pandas takes a cell too many as the name of the row
                raise InputError(f"{path}: a row has more cells than the header")
            yield frame.rename(columns=_column_name) if kind in (".csv", ".xlsx") else frame


def _frames(path: Path, rows: int, encoding: str | None, on_note: OnNote) -> Iterable[pd.DataFrame]:
    import pandas as pd

    kind = path.suffix.lower()
    if kind == ".csv":
        layout = _layout(path, encoding, on_note)
        frames: Iterable[pd.DataFrame] = pd.read_csv(
            path,
            sep=layout.delimiter,
            encoding=layout.encoding,
            skiprows=int(layout.named),
            dtype=str,
            keep_default_na=False,
            chunksize=rows,
        )
        return frames
    if kind == ".parquet":
        return _parquet(path, rows)
    if kind in (".jsonl", ".ndjson"):
        return _lines(path, _encoding(path, encoding, is_table=False), rows)
    if kind == ".xlsx":
        whole = _first_sheet(pd.read_excel(path, sheet_name=None), path, on_note).dropna(how="all")
    else:
        whole = pd.DataFrame(read_file(path, encoding=encoding, on_note=on_note))
    return (whole[first : first + rows] for first in range(0, len(whole), rows))


def records_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as mappings."""
    return cast("list[dict[str, Any]]", frame.to_dict(orient="records"))


def _parquet(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=rows):
            yield batch.to_pandas()


def _lines(path: Path, encoding: str, rows: int) -> Iterator[pd.DataFrame]:
    import pandas as pd

    with path.open(encoding=encoding, newline="\n") as file:
        numbered = ((n, line) for n, line in enumerate(file, start=1) if line.strip())
        while part := list(itertools.islice(numbered, rows)):
            found = [_json(line, f"{path}, line {number}") for number, line in part]
            yield pd.DataFrame(found, dtype=object)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert whatever pandas, pyarrow and openpyxl raise to an `InputError`."""
    try:
        yield
    except (InputError, GeneratorExit):
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot be read as {path.suffix.lower()} ({error})") from error


@dataclass(frozen=True)
class Layout:
    """How a table is written.

    Attributes:
        encoding: Its encoding.
        delimiter: What stands between cells.
        named: Whether its first line names the delimiter, as Excel writes it.
    """

    encoding: str
    delimiter: str
    named: bool = False

    def after_name(self, text: str) -> str:
        """The text without the name of the delimiter; the line stays, for line numbers."""
        return text[len("sep=;") :] if self.named else text


def _layout(path: Path, encoding: str | None, on_note: OnNote) -> Layout:
    """How a table is written; a note says it, unless it is the usual way."""
    usual = _TABLES[path.suffix.lower()]
    found = _encoding(path, encoding, is_table=True)
    with path.open(encoding=found, newline="", errors="ignore") as file:
        sample = file.read(_SAMPLE)
    if len(sample) == _SAMPLE:
        sample = sample[: sample.rfind("\n") + 1] or sample
    name = _NAMED_DELIMITER.match(sample) if usual == "," else None
    found_between = name[1] if name else _delimiter(sample)
    delimiter = usual if usual == "\t" else found_between
    if delimiter != usual or not _is_utf8(found):
        between = _DELIMITERS.get(delimiter, repr(delimiter))
        other = "; --encoding (encoding=...) names another" if found == _OFFICE else ""
        shown = "UTF-8" if _is_utf8(found) else found
        on_note(f"{path}: read as {shown}, with {between} between cells{other}")
    return Layout(found, delimiter, name is not None)


def _missing(path: Path) -> InputError:
    return InputError(
        f"{path}: no such file (a string is read as a path: texts themselves go in a list)"
    )


def _text(path: Path, encoding: str) -> str:
    with path.open(encoding=encoding, newline="") as file:  # keeps line breaks inside cells
        return file.read().removeprefix("\ufeff")


def _encoding(path: Path, encoding: str | None, *, is_table: bool) -> str:
    """The encoding of a file, which can be read in it from end to end.

    Raises:
        InputError: There is none.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(4)
        mark = next((mark for mark in _MARKS if begin.startswith(mark)), None)
        chosen = encoding or (_MARKS[mark] if mark else "utf-8")
        error = _misread(path, chosen)
        if error is None and encoding is None and mark is None and b"\0" in begin:
            raise InputError(
                f"{path}: seems to be UTF-16 without a mark: give --encoding utf-16-le"
            )
        if error is None:
            return "utf-8-sig" if _is_utf8(chosen) else chosen
        if encoding is None and is_table and _misread(path, _OFFICE) is None:
            return _OFFICE
    except FileNotFoundError:
        raise _missing(path) from None
    except LookupError:
        raise InputError(f"{path}: unknown encoding {encoding!r}, as utf-8 or cp1252") from None
    except OSError as failure:
        raise InputError(f"{path}: cannot be read ({failure})") from failure
    raise InputError(
        f"{path}: cannot be read as {chosen.upper()} text ({error}); --encoding (encoding=...) "
        "names another, as cp1252 or utf-16-le"
    ) from error


def _misread(path: Path, encoding: str) -> UnicodeDecodeError | None:
    """The error of reading a file in an encoding; None if there is none."""
    try:
        with path.open(encoding=encoding, newline="") as file:
            while file.read(_SAMPLE):
                pass
    except UnicodeDecodeError as error:
        return error
    return None


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig")


def _delimiter(text: str) -> str:
    """What stands between the cells of the header; a comma if in doubt."""
    counts = {each: _header_cells(text, each) for each in _DELIMITERS}
    if counts[","] > 1 and _is_even(_plain_lines(text, ",")):
        return ","
    return max(_DELIMITERS, key=lambda each: counts[each])  # the first of equals


def _header_cells(text: str, delimiter: str) -> int:
    with contextlib.suppress(csv.Error):
        return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), ()))
    return 0


def _first_sheet(sheets: Mapping[str, pd.DataFrame], path: Path, on_note: OnNote) -> pd.DataFrame:
    filled = {name: sheet for name, sheet in sheets.items() if len(sheet)}
    if len(filled) > 1:
        on_note(f"{path}: read the first of its sheets {', '.join(map(repr, filled))}")
    return next(iter({**filled, **sheets}.values()))


def _table_rows(lines: _Lines, path: Path) -> list[dict[str, str]]:
    """Rows of a table, by the names in the header."""
    if not lines:
        return []
    (_, header), *rows = lines
    names = [_column_name(name) for name in header]
    for number, cells in rows:
        if len(cells) != len(names):
            raise InputError(
                f"{path}, line {number}: not as many cells as the header's {len(names)}"
            )
    # a spreadsheet writes columns that were formatted and never filled
    filled = [
        n for n, name in enumerate(names) if name or any(cells[n].strip() for _, cells in rows)
    ]
    for name, count in Counter(names[n] for n in filled).most_common(1):
        if count > 1:
            raise InputError(
                f"{path}: the column {name!r} stands twice in the header"
                if name
                else f"{path}: columns have no name: is the first line the header?"
            )
    return [{names[n]: cells[n] for n in filled} for _, cells in rows]


def _column_name(name: object) -> str:
    """The name of a column without what is not seen: space, and marks that copying leaves."""
    return str(name).strip().strip(_UNSEEN).strip()


_Lines: TypeAlias = list[tuple[int, list[str]]]
"""For each row, the number of its first line, and its cells."""


def _separated(text: str, delimiter: str, path: Path, on_note: OnNote) -> _Lines:
    """Read a .csv file; a note says if a missing quotation mark may have joined rows."""
    lines, plain = _quoted_lines(text, path, delimiter), _plain_lines(text, delimiter)
    if len(plain) > len(lines) and _is_even(plain):
        on_note(
            f"{path}, line {_first_long(lines)}: a quoted cell spans lines that look like rows, so "
            f"that {len(plain) - 1} lines are {len(lines) - 1} rows: check its quotation marks"
        )
    return lines


def _tab_separated(text: str, path: Path) -> _Lines:
    """Read a .tsv file, with or without quoted cells (GLUE has none).

    A writer that quotes leaves no quotation mark outside a quoted cell. A file with such a mark
    is read without quoting. Any other is read in the way that gives all rows equally many cells.

    Raises:
        InputError: Both ways do, and give different rows.
    """
    ways = [_plain_lines(text, "\t")]
    if '"' not in _QUOTED_CELL.sub("", text):
        ways.append(_quoted_lines(text, path, "\t"))
    even = [lines for lines in ways if _is_even(lines)]
    if len({len(lines) for lines in even}) > 1:
        plain, quoted = even
        raise InputError(
            f"{path}, line {_first_long(quoted)}: a cell begins with a quotation mark, and the "
            f"file has {len(plain) - 1} rows if that is text and {len(quoted) - 1} if it quotes "
            "line breaks: give the rows as .jsonl"
        )
    return (even or ways)[-1]


# a cell between tabs or line breaks; quotation marks inside it are doubled (RFC 4180)
_QUOTED_CELL = re.compile(r'(?:\A|(?<=[\t\r\n]))"[^"]*(?:""[^"]*)*"(?=[\t\r\n]|\Z)')


def _plain_lines(text: str, delimiter: str) -> _Lines:
    lines = enumerate(re.split(r"\r\n|\r|\n", text), start=1)
    return [(n, line.split(delimiter)) for n, line in lines if line.strip(" ") or delimiter in line]


def _quoted_lines(text: str, path: Path, delimiter: str) -> _Lines:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: _Lines = []
    longest = csv.field_size_limit(
        len(text) + 1
    )  # the limit is global to the csv module, and is restored
    began = 1
    try:
        for cells in reader:
            if len(cells) > 1 or cells == [""] or "".join(cells).strip():  # no blank line
                lines.append((began, cells))
            began = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {began}: a cell begins with a quotation mark and does not end with one "
            f"({error})"
        ) from error
    finally:
        csv.field_size_limit(longest)
    return lines


def _is_even(lines: _Lines) -> bool:
    return len({len(cells) for _, cells in lines}) == 1


def _first_long(lines: _Lines) -> int:
    """First line of the first row with a line break inside."""
    return next((n for n, cells in lines if re.search(r"[\r\n]", "".join(cells))), 1)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{where}: not JSON (nested too deeply)") from None
    except ValueError as error:  # also for numbers with too many digits
        raise InputError(f"{where}: not JSON ({error})") from error
