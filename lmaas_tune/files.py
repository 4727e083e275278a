"""Files of ours: written whole or not at all, read as what anybody may have written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmaas_tune.errors import StorageError
from lmaas_tune.typed_json import parse_object

_MOST, _MOST_JSON = 1 << 30, 32 << 20  # bytes of a file; ours are far smaller


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that replaces its old self when all of it is on the disk.

    Raises:
        OSError: It cannot be written; the old one stands.
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
        OSError: It cannot be read.
        ValueError: It holds more than `most` bytes.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most else file.read(most + 1)  # a pipe does not tell its size
    if max(size, len(data)) > most:
        raise ValueError(f"it holds more than {most >> 20} MiB")
    return data


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no JSON object, or an absurdly large one.
    """
    return parse_object(read_limited(path, most=_MOST_JSON))


@contextlib.contextmanager
def reading(place: object, what: str, remedy: str = "") -> Iterator[None]:
    """Read a file of ours, and say where it is damaged.

    Args:
        place: The file, as the error names it.
        what: What it holds: "the run".
        remedy: What to do about a damaged one, after a semicolon.

    Raises:
        FileNotFoundError, NotADirectoryError: It is not there.
        StorageError: It cannot be read (OSError), or is not what it should be (ValueError).
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
