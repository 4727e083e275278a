"""Rows in the format of vLLM: their embeddings as `torch.save` writes them, in base64.

vLLM reads nothing else. The format is written here, as torch is large, and slow for small tensors.
"""

from __future__ import annotations

import base64
import math
import pickle
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from lmaas_tune.prompts import FloatArray
from lmaas_tune_adapters.hf.label_tokens import Word
from lmaas_tune_adapters.vllm.vocabulary import EmbeddingTable


class RowWriter:
    """Writes rows with a soft prompt; the part that the prompt does not change is written once.

    A generation scores the same rows under every prompt, and writing them each time would take
    most of the client's time. May be used from several threads.

    Args:
        table: Word embeddings.
        dtype: Of the embeddings as they are sent.
        max_kept_bytes: Most memory for written parts. When it is full, all are dropped.
    """

    def __init__(self, table: EmbeddingTable, dtype: np.dtype[Any], *, max_kept_bytes: int) -> None:
        self.table, self.dtype = table, dtype
        self._max_bytes, self._bytes = max_kept_bytes, 0
        self._frames: dict[tuple[Word, int, int], _Frame] = {}
        self._lock = threading.Lock()

    def words(self, ids: Word) -> bytes:
        """Write a row without a soft prompt; it is not cached."""
        return base64.b64encode(_saved(rounded(self.table.rows(ids), self.dtype)))

    def soft(self, ids: Word, start: int, vectors: FloatArray, *, adds: bool) -> bytes:
        """Write a row with a soft prompt.

        Args:
            ids: Of all its tokens.
            start: Position where the prompt begins.
            vectors: (L, H) float32.
            adds: Whether they are added to the embeddings there, or replace them.
        """
        frame = self._frame(ids, start, len(vectors))
        return frame.around(rounded(frame.words + vectors if adds else vectors, self.dtype))

    def _frame(self, ids: Word, start: int, length: int) -> _Frame:
        key = ids, start, length
        with self._lock:
            if (frame := self._frames.get(key)) is not None:
                return frame
        frame = _framed(self.table.rows(ids), start, length, self.dtype)
        with self._lock:
            if self._bytes + frame.nbytes > self._max_bytes:
                self._frames.clear()
                self._bytes = 0
            if frame.nbytes <= self._max_bytes and key not in self._frames:
                self._frames[key] = frame
                self._bytes += frame.nbytes
        return frame


@dataclass(frozen=True)
class _Frame:
    """A row without its prompt. Base64 writes groups of three bytes as four characters.

    Attributes:
        before: Base64 of the bytes before the prompt, up to the last full group.
        left: The bytes between them and the prompt.
        words: (L, H) float32 embeddings of the tokens in the prompt's place.
        right: The bytes behind the prompt that fill its last group.
        after: Base64 of the rest.
    """

    before: bytes
    left: bytes
    words: FloatArray
    right: bytes
    after: bytes

    @property
    def nbytes(self) -> int:
        return len(self.before) + self.words.nbytes + len(self.after)

    def around(self, vectors: FloatArray) -> bytes:
        """Write the row with (L, H) vectors in the prompt's place."""
        middle = base64.b64encode(self.left + vectors.tobytes() + self.right)
        return b"".join([self.before, middle, self.after])


def _framed(embeddings: FloatArray, first: int, length: int, dtype: np.dtype[Any]) -> _Frame:
    numbers = rounded(embeddings, dtype)
    content = _saved(numbers)
    end = len(content) - numbers[first + length :].nbytes
    start = end - numbers[first : first + length].nbytes
    group_start, group_end = start - start % 3, end + -end % 3
    return _Frame(
        before=base64.b64encode(content[:group_start]),
        left=content[group_start:start],
        words=embeddings[first : first + length].copy(),
        right=content[end:group_end],
        after=base64.b64encode(content[group_end:]),
    )


def rounded(numbers: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
    """Convert numbers to a type; those that are too large for it become infinite."""
    with np.errstate(over="ignore"):
        return numbers.astype(dtype)


def _saved(numbers: FloatArray) -> bytes:
    return _header(numbers.shape, numbers.dtype.name) + numbers.tobytes()


_STORAGES = {"float32": "FloatStorage", "bfloat16": "BFloat16Storage", "float16": "HalfStorage"}
"""Names that torch has for types of numbers in files."""

_HEAD = b"".join(
    pickle.dumps(value, protocol=2)
    for value in (
        0x1950A86A20F9469CFC6C,  # marks the format
        1001,  # its version
        {
            "protocol_version": 1001,
            "little_endian": True,
            "type_sizes": {"short": 2, "int": 4, "long": 4},
        },
    )
)


@cache
def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    """The bytes that `torch.save` writes before the numbers of a tensor, in its older format.

    They are three values, a call of ``_rebuild_tensor_v2`` as a pickle, the list of storages, and
    the count of numbers.

    Args:
        shape: (tokens, H)
        dtype: A name of `_STORAGES`.
    """
    count = math.prod(shape)
    storage = [
        *(_piece("storage"), _name("torch", _STORAGES[dtype]), _piece("0"), _piece("cpu")),
        *(_piece(count), pickle.NONE),
    ]
    no_hooks = [_name("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE]
    arguments = [
        *(pickle.MARK, *storage, pickle.TUPLE, pickle.BINPERSID),
        *(_piece(0), _piece(shape), _piece((shape[1], 1)), pickle.NEWFALSE, *no_hooks),
    ]
    call = [
        *(pickle.PROTO, b"\x02", _name("torch._utils", "_rebuild_tensor_v2")),
        *(pickle.MARK, *arguments, pickle.TUPLE, pickle.REDUCE, pickle.STOP),
    ]
    return b"".join([_HEAD, *call, pickle.dumps(["0"], protocol=2), count.to_bytes(8, "little")])


def _piece(value: object) -> bytes:
    """A value as a part of a larger pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
