"""Reading and writing of this package's files: atomic writes, bounded reads, error messages."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmaas_tune.errors import StorageError
from lmaas_tune.typed_json import parse_object

_MOST, _MOST_JSON = 1 << 30, 32 << 20  # largest sizes in bytes; our files are far smaller


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file atomically: it replaces an existing file once it is complete on the disk.

    Raises:
        OSError: The file cannot be written; an existing file is unchanged.
    """
    draft = path.with_name(path.name + ".part")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_limited(path: Path, *, most: int = _MOST) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds more than `most` bytes.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most else file.read(most + 1)  # a pipe has no size
    if max(size, len(data)) > most:
        raise ValueError(f"it holds more than {most >> 20} MiB")
    return data


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no JSON object, or a far too large one.
    """
    return parse_object(read_limited(path, most=_MOST_JSON))


@contextlib.contextmanager
def reading(place: object, what: str, remedy: str = "") -> Iterator[None]:
    """Convert errors of reading a file to a `StorageError` that names the place.

    Args:
        place: Name of the file for the message.
        what: Name of its content: "the run".
        remedy: Remedy for a damaged file, the end of the message.

    Raises:
        FileNotFoundError, NotADirectoryError: The file does not exist.
        StorageError: It cannot be read (OSError), or is damaged (ValueError).
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except StorageError as error:
        raise StorageError(f"{place}: {error}") from error
    except OSError as error:
        raise StorageError(f"{place}: {what} cannot be read ({error})") from error
    except ValueError as error:
        raise StorageError(
            f"{place}: {what} is damaged ({error}){f'; {remedy}' if remedy else ''}"
        ) from error
