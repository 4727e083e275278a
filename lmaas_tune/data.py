"""Reads examples from pairs, dicts, data frames, datasets and files."""

from __future__ import annotations

import contextlib
import numbers
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.row_files import read_file
from lmaas_tune.task import Example, check_text, label_name

Rows: TypeAlias = (
    str
    | os.PathLike[str]
    | Sequence[Example]
    | Sequence[tuple[str, Any]]
    | Sequence[Mapping[str, Any]]
    | Any
)
"""Examples in any of the forms that `read_examples` takes. Frames and datasets are recognised by
their methods, so that their libraries need not be installed."""

TEXT_FIELD = "text"
_SCALARS = (str, numbers.Real, np.generic)
_FORMS = (
    "a path, (text, label) pairs, dicts, a pandas or polars frame, a pyarrow table or a "
    "datasets.Dataset"
)
_EMPTY = "no label: its {!r} is empty: fill it in, or leave the row out"
_REMEDIES = {
    "dict": "pandas.DataFrame(rows) of lists by column, or (text, label) pairs",
    "DatasetDict": "one of its parts, as rows['train']",
    "LazyFrame": "rows.collect()",
}


def read_examples(
    rows: Rows,
    *,
    label_field: str = "label",
    labelled: bool = True,
    what: str = "rows",
    encoding: str | None = None,
    on_note: OnNote = warn,
) -> list[Example]:
    """Read examples from one of many forms.

    - a path to a file, see `lmaas_tune.row_files.read_file`: ``.jsonl``, ``.json`` (a list),
      ``.csv`` or ``.tsv`` with a header, ``.parquet``, ``.xlsx``,
    - a sequence of (text, label) pairs; the text becomes the field ``text``,
    - a sequence of mappings, a pandas or polars frame, a pyarrow table, a ``datasets.Dataset`` or
      ``IterableDataset``: every column with a text or a number is a field, the column
      `label_field` the label,
    - a sequence of texts, where `labelled` is false.

    Labels become strings: ``1`` and ``"1"`` are the same label, and a ``datasets.ClassLabel``
    is read by its names.

    Args:
        rows: Any of the above.
        label_field: Name of the label column.
        labelled: Whether each row must have a label; if not, an invalid label counts as none.
        what: Name of the rows in error messages ("train", "validation").
        encoding: Encoding of a text file; by default it is found.
        on_note: Called with notes on how a file was read.

    Raises:
        InputError: No rows, an unreadable file, a row of another shape, or a missing label.
    """
    if isinstance(rows, (str, os.PathLike)):
        path = Path(rows)
        what = f"{what} ({path})"
        raw: Iterable[Any] = read_file(path, encoding=encoding, on_note=on_note)
    elif (records := _records(rows)) is not None:
        raw = records
    elif hasattr(rows, "features") and hasattr(rows, "column_names"):  # a datasets.Dataset
        raw = _named_labels(rows, label_field)
    elif isinstance(rows, Iterable) and not isinstance(rows, Mapping) and not _is_frame(rows):
        raw = rows
    else:
        remedy = _REMEDIES.get(type(rows).__name__, _FORMS)
        raise InputError(f"{what}: cannot read examples from {type(rows).__name__}; give {remedy}")
    examples = []
    for number, row in enumerate(raw, start=1):
        example = _example(row, label_field, f"{what}, row {number}", labelled)
        if labelled and example.label is None:
            has_cell = isinstance(row, Mapping) and label_field in row
            empty = _EMPTY.format(label_field)
            reason = empty if has_cell else _no_label(label_field, example.fields)
            raise InputError(f"{what}, row {number}: {reason}")
        examples.append(example)
    if not examples:
        raise InputError(f"{what}: it has no rows")
    return examples


def paired(texts: Rows, labels: object) -> Rows:
    """(text, label) pairs of bare texts and their labels, as scikit-learn's methods take them.

    Args:
        texts: Rows; a sequence of texts if `labels` are given.
        labels: A sequence of labels, one a text; None: the rows have their own.

    Raises:
        InputError: They do not fit together.
    """
    if labels is None:
        return texts
    if not are_labels(texts, labels):
        raise InputError("labels are for a sequence of texts, with one label for each")
    rows, names = list(cast("Iterable[Any]", texts)), list(cast("Iterable[Any]", labels))
    if len(rows) != len(names):
        raise InputError(f"{len(rows)} texts and {len(names)} labels: give one label for each text")
    return list(zip(rows, names, strict=True))


def are_labels(texts: Rows, labels: object) -> bool:
    """Whether these are bare texts and their labels, and not two sets of rows."""
    return _is_sequence_of(texts, str) and _is_sequence_of(labels, _SCALARS)


def _is_sequence_of(values: object, kind: Any) -> bool:
    if isinstance(values, (str, os.PathLike, Mapping)) or not isinstance(values, Iterable):
        return False
    return hasattr(values, "__len__") and all(isinstance(each, kind) for each in values)


def _records(rows: Any) -> list[Any] | None:
    """The rows of a frame or table, recognised by its methods; None for other objects."""
    for name in ("to_dicts", "to_pylist"):  # polars, pyarrow
        if hasattr(rows, name):
            return cast("list[Any]", getattr(rows, name)())
    if _is_frame(rows):
        with contextlib.suppress(TypeError):
            return cast("list[Any]", rows.to_dict(orient="records"))
    return None


def _is_frame(rows: object) -> bool:
    """Whether it behaves like a pandas frame, whose iteration gives columns instead of rows."""
    return hasattr(rows, "to_dict") and hasattr(rows, "columns")


def _no_label(label_field: str, known: Iterable[str]) -> str:
    return (
        f"no label in the field {label_field!r}; {did_you_mean(label_field, filter(None, known))} "
        "(name it with --label-field, or read_examples(rows, label_field=...); or give "
        "(text, label) pairs; the first line of a table names its columns)"
    )


def _example(row: object, label_field: str, where: str, labelled: bool) -> Example:
    def labelled_as(value: object, fields: Mapping[str, str]) -> Example:
        name = _label(value, where) if labelled or _is_text(value) else None
        return Example(fields, name, None if name is None else value)

    if isinstance(row, Example):
        if not isinstance(row.fields, Mapping):
            raise InputError(f"{where}: the fields {row.fields!r:.60} are no mapping")
        texts = {n: _text(value, f"{where}, field {n!r}") for n, value in row.fields.items()}
        return labelled_as(row.label if row.value is None else row.value, texts)
    if isinstance(row, str):
        return Example({TEXT_FIELD: check_text(row, where)})
    if isinstance(row, Mapping):
        columns = {name: value for name, value in row.items() if name != label_field}
        fields = {
            str(name): check_text(str(value), f"{where}, field {name!r}")
            for name, value in columns.items()
            if _is_text(value)
        }
        if columns and not fields:
            name, value = next(iter(columns.items()))
            raise _no_text(value, f"{where}, field {name!r}")
        return labelled_as(row.get(label_field), fields)
    if isinstance(row, (Sequence, np.ndarray)) and len(row) == 2:
        return labelled_as(row[1], {TEXT_FIELD: _text(row[0], where)})
    raise InputError(f"{where}: {row!r:.60} is neither a mapping nor a (text, label) pair")


def _is_text(value: object) -> bool:
    return isinstance(value, _SCALARS) and not _is_missing(value)


def _text(value: object, where: str) -> str:
    if _is_text(value):
        return check_text(str(value), where)
    raise _no_text(value, where)


def _no_text(value: object, where: str) -> InputError:
    if value is None or _is_missing(value):
        return InputError(f"{where}: it is empty")
    return InputError(f"{where}: {value!r:.60} is not text")


def _label(value: object, where: str) -> str | None:
    if value is None or _is_missing(value):
        return None
    if not isinstance(value, _SCALARS):
        raise InputError(f"{where}: the label {value!r:.60} is neither text nor a number")
    return check_text(label_name(value), where) or None


def _is_missing(value: object) -> bool:
    """Whether it is the value of an empty cell in a frame: NaN, NaT, or NA."""
    try:
        return bool(value != value)
    except TypeError:  # the truth value of NA is ambiguous
        return True
    except ValueError:  # an array
        return False


def _named_labels(dataset: Any, label_field: str) -> Iterator[dict[str, Any]]:
    features = dataset.features or {}  # None for some streams
    names = getattr(features.get(label_field), "names", None)
    for row in dataset:
        label = row.get(label_field)
        if names is not None and isinstance(label, (int, np.integer)):
            # datasets marks rows with a hidden label by -1
            row = {**row, label_field: names[label] if label >= 0 else None}
        yield row


def labels_of(examples: Iterable[Example]) -> tuple[str, ...]:
    """The distinct labels: whole numbers in numerical order, then others in alphabetical order."""
    labels = {example.label for example in examples if example.label is not None}
    return tuple(
        sorted(labels, key=lambda label: (not label.isdigit(), len(label) * label.isdigit(), label))
    )


def few_shot_split(
    examples: Sequence[Example], *, shots: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """The paper's true few-shot protocol.

    `shots` rows a class for training, and as many for validation, from one random permutation.

    Args:
        examples: Labelled rows.
        shots: Rows a class in each of the two parts.
        seed: The same seed and rows give the same split.

    Returns:
        Training and validation rows; no row is in both.

    Raises:
        InputError: A class has fewer than ``2 * shots`` rows, or a number is out of its range.
    """
    if shots < 1:
        raise InputError(f"shots={shots}: at least 1 row a class")
    if seed < 0:
        raise InputError(f"seed={seed}: it must be 0 or more")
    counts = Counter(example.label for example in examples)
    for label, count in counts.items():
        if count < 2 * shots:
            raise InputError(
                f"label {label!r} has {count} rows; {shots} shots for training and {shots} for "
                f"validation need {2 * shots}"
            )
    train: list[Example] = []
    validation: list[Example] = []
    taken: Counter[str | None] = Counter()
    for index in np.random.default_rng(seed).permutation(len(examples)):
        example = examples[index]
        taken[example.label] += 1
        if taken[example.label] <= shots:
            train.append(example)
        elif taken[example.label] <= 2 * shots:
            validation.append(example)
    return train, validation
