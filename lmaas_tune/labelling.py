"""Labels rows by a tuned prompt, and keeps their columns: frames, and files of any length."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.backend import Backend
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.opening import Open, opened
from lmaas_tune.errors import InputError, StorageError, did_you_mean
from lmaas_tune.files import read_object, reading, write_atomically
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.row_files import read_frames, records_of
from lmaas_tune.task import Example, Template
from lmaas_tune.typed_json import checked

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("label", "probability", "margin")
"""Columns that are added; ``predicted_label`` and so on if the rows have one of these."""

_DIGITS = 6  # of probabilities in a file

OUTPUTS = (".csv", ".jsonl")
"""Endings of files that `label_file` writes."""


def label_frame(
    frame: pd.DataFrame,
    prompt: TunedPrompt | str | os.PathLike[str],
    backend: Backend | Client | Open,
    *,
    min_probability: float = 0.0,
) -> pd.DataFrame:
    """A frame with three further columns: label, probability and margin.

    The margin is the distance to the probability of the next label. Dask labels its partitions by
    it: ``frame.map_partitions(label_frame, "runs/mine", partial(load_backend("hf"), "MODEL"))``.

    Args:
        frame: Rows; other columns than those of the prompt's template are kept.
        prompt: A tuned prompt, or the folder of a saved one.
        backend: The model; or a function that opens it, which each process calls once.
        min_probability: A less probable label is left out, for a person to give. So it is where
            the row has no text.

    Raises:
        InputError: A column is missing, or the model does not take the prompt.
    """
    return _labelled(frame, _opened(prompt), backend, min_probability)[0]


def _opened(prompt: TunedPrompt | str | os.PathLike[str]) -> TunedPrompt:
    return prompt if isinstance(prompt, TunedPrompt) else TunedPrompt.load(prompt)


def _labelled(
    frame: pd.DataFrame,
    tuned: TunedPrompt,
    backend: Backend | Client | Open,
    min_probability: float,
) -> tuple[pd.DataFrame, list[Example]]:
    """See `label_frame`; and the rows that the model read."""
    labels, names = tuned.classes, _names(frame)
    for name in tuned.task.template.fields:
        if name not in frame.columns:
            known = [str(column) for column in frame.columns]
            raise InputError(f"the rows have no column {name!r}; {did_you_mean(name, known)}")
    whole, rows = _whole_rows(frame, tuned.task.template)
    chosen: list[object] = [None] * len(frame)
    best, margin = np.full((2, len(frame)), np.nan)
    if len(whole):
        probabilities = tuned.predict_proba(opened(backend), rows)
        two = np.sort(probabilities)[:, -2:]
        best[whole], margin[whole] = two[:, 1], two[:, 1] - two[:, 0]
        for row, column in zip(whole, probabilities.argmax(axis=1), strict=True):
            chosen[row] = labels[column] if best[row] >= min_probability else None
    import pandas as pd  # slow to import

    labelled: pd.DataFrame = frame.copy()
    # objects, because whole numbers beside None would become floats
    labelled[names[0]] = pd.Series(chosen, index=frame.index, dtype=object)
    labelled[names[1]], labelled[names[2]] = best, margin
    return labelled, rows


def _whole_rows(
    frame: pd.DataFrame, template: Template
) -> tuple[npt.NDArray[np.intp], list[Example]]:
    """The positions of the rows that have all texts, and these rows."""
    texts = frame[list(template.fields)]
    blank = texts.astype(str).apply(lambda column: column.str.strip() == "").all(axis=1)
    whole = np.flatnonzero((texts.notna().all(axis=1) & ~blank).to_numpy())
    return whole, [
        Example({name: str(value) for name, value in row.items()})
        for row in records_of(texts.iloc[whole])
    ]


def _names(frame: pd.DataFrame) -> tuple[str, ...]:
    taken = set(COLUMNS).intersection(frame.columns)
    return tuple(f"predicted_{name}" for name in COLUMNS) if taken else COLUMNS


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """How far a file is labelled.

    Attributes:
        task: SHA-256 of prompt, source and settings.
        rows: Rows that are done.
        without_label: Rows among them that have none.
        truncated: Rows among them with more text than the prompt's template reads.
        bytes: Length of the written file.
    """

    task: str
    rows: int = 0
    without_label: int = 0
    truncated: int = 0
    bytes: int = 0


def label_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    prompt: TunedPrompt | str | os.PathLike[str],
    backend: Backend | Client,
    *,
    min_probability: float = 0.0,
    encoding: str | None = None,
    on_rows: Callable[[Labelled], object] = lambda done: None,
    on_note: OnNote = warn,
) -> Labelled:
    """Label the rows of a file, part by part, into another file.

    The same call goes on where it was stopped; until the end, the file is ``TARGET.part``. A row
    of a part that was being labelled may be asked for twice.

    Args:
        source: A file of rows, see `lmaas_tune.row_files.read_frames`.
        target: A new file that ends in one of `OUTPUTS`.
        prompt: See `label_frame`.
        backend: The model.
        min_probability: See `label_frame`.
        encoding: Encoding of the source; by default it is found.
        on_rows: Called after each part.
        on_note: Called with notes on the source.

    Returns:
        What was done, also by earlier calls.

    Raises:
        InputError: The files do not fit, see `label_frame`.
        StorageError: The target cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix.lower() not in OUTPUTS:
        raise InputError(f"{target}: the file to write ends in {' or '.join(OUTPUTS)}")
    if target.exists():
        raise InputError(f"{target} exists: name another file, or remove it")
    tuned = _opened(prompt)
    part, state = (target.with_name(target.name + end) for end in (".part", ".state"))
    progress = _resumed(part, state, _task(source, tuned, min_probability))
    client = Client.of(backend)
    try:
        with part.open("ab") as file:
            for frame in _after(
                read_frames(source, encoding=encoding, on_note=on_note), progress.rows
            ):
                labelled, read = _labelled(frame, tuned, client, min_probability)
                names = list(_names(frame))
                labelled[names[1:]] = labelled[names[1:]].round(_DIGITS)
                file.write(_written(labelled, target, header=progress.rows == 0))
                file.flush()
                os.fsync(file.fileno())
                progress = replace(
                    progress,
                    rows=progress.rows + len(frame),
                    without_label=progress.without_label + int(labelled[names[0]].isna().sum()),
                    truncated=progress.truncated + tuned.task.template.cuts(read),
                    bytes=file.tell(),
                )
                write_atomically(state, json.dumps(asdict(progress)).encode())
                on_rows(progress)
        part.replace(target)
        state.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{target}: the rows cannot be written ({error})") from error
    return progress


def _task(source: Path, tuned: TunedPrompt, min_probability: float) -> str:
    try:
        stat = source.stat()
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    rows = f"{source.name}|{stat.st_size}|{stat.st_mtime_ns}|{min_probability}"
    return hashlib.sha256(f"{rows}|{tuned.digest}".encode()).hexdigest()


def _resumed(part: Path, state: Path, task: str) -> Labelled:
    """What is done of the task; what was written after it is cut off."""
    if not part.exists() or not state.exists():
        part.unlink(missing_ok=True)
        return Labelled(task=task)
    with reading(state, "the progress", f"remove {part} to begin anew"):
        progress: Labelled = checked(Labelled, read_object(state), state.name)
        if progress.bytes > part.stat().st_size:
            raise ValueError(f"{part.name} is shorter than it was")
    if progress.task != task:
        raise InputError(
            f"{part} is of another prompt, other rows or other settings: remove it to begin anew"
        )
    with part.open("rb+") as file:
        file.truncate(progress.bytes)
    return progress


def _after(frames: Iterator[pd.DataFrame], rows: int) -> Iterator[pd.DataFrame]:
    """Frames without the first `rows` rows."""
    for frame in frames:
        if rows >= len(frame):
            rows -= len(frame)
            continue
        yield frame.iloc[rows:] if rows else frame
        rows = 0


def _written(frame: pd.DataFrame, target: Path, *, header: bool) -> bytes:
    if target.suffix.lower() == ".csv":
        text = frame.to_csv(index=False, header=header, lineterminator="\n")
    else:
        text = frame.to_json(orient="records", lines=True, force_ascii=False, date_format="iso")
    return str(text).encode()
