"""Rows in the format of vLLM: their embeddings as `torch.save` writes them, in base64."""

from __future__ import annotations

import base64
import io
import threading
from dataclasses import dataclass
from functools import cache

import torch

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

    def __init__(self, table: EmbeddingTable, dtype: torch.dtype, *, max_kept_bytes: int) -> None:
        self.table, self.dtype = table, dtype
        self._max_bytes, self._bytes = max_kept_bytes, 0
        self._frames: dict[tuple[Word, int, int], _Frame] = {}
        self._lock = threading.Lock()

    def words(self, ids: Word) -> bytes:
        """Write a row without a soft prompt; it is not cached."""
        return base64.b64encode(_saved(self.table.rows(ids).to(self.dtype)))

    def soft(self, ids: Word, start: int, vectors: torch.Tensor, *, adds: bool) -> bytes:
        """Write a row with a soft prompt.

        Args:
            ids: Of all its tokens.
            start: Position where the prompt begins.
            vectors: (L, H) float32.
            adds: Whether they are added to the embeddings there, or replace them.
        """
        frame = self._frame(ids, start, len(vectors))
        return frame.around((frame.words + vectors if adds else vectors).to(self.dtype))

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
    words: torch.Tensor
    right: bytes
    after: bytes

    @property
    def nbytes(self) -> int:
        return len(self.before) + self.words.nbytes + len(self.after)

    def around(self, vectors: torch.Tensor) -> bytes:
        """Write the row with (L, H) vectors in the prompt's place."""
        middle = base64.b64encode(self.left + _bytes(vectors) + self.right)
        return b"".join([self.before, middle, self.after])


def _framed(embeddings: torch.Tensor, first: int, length: int, dtype: torch.dtype) -> _Frame:
    numbers = embeddings.to(dtype)
    content = _saved(numbers)
    end = len(content) - numbers[first + length :].nbytes
    start = end - numbers[first : first + length].nbytes
    group_start, group_end = start - start % 3, end + -end % 3
    return _Frame(
        before=base64.b64encode(content[:group_start]),
        left=content[group_start:start],
        words=embeddings[first : first + length].clone(),
        right=content[end:group_end],
        after=base64.b64encode(content[group_end:]),
    )


def _saved(numbers: torch.Tensor) -> bytes:
    return _header(numbers.shape, numbers.dtype) + _bytes(numbers)


def _bytes(numbers: torch.Tensor) -> bytes:
    return numbers.contiguous().view(torch.uint8).numpy().tobytes()


@cache
def _header(shape: torch.Size, dtype: torch.dtype) -> bytes:
    """The bytes that `torch.save` writes before a tensor's numbers, in its older format.

    Calling `torch.save` for each tensor would take most of the time of a request.
    """
    file = io.BytesIO()
    zeros = torch.zeros(shape, dtype=dtype)
    torch.save(zeros, file, _use_new_zipfile_serialization=False)
    return file.getvalue()[: -zeros.nbytes]
