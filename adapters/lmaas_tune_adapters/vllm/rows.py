"""Rows as vLLM reads them: what `torch.save` writes of their embeddings, in base64."""

from __future__ import annotations

import base64
import io
import threading
from dataclasses import dataclass
from functools import cache

import torch

from lmaas_tune_adapters.hf.label_tokens import Word
from lmaas_tune_adapters.vllm.table import EmbeddingTable


class RowWriter:
    """Writes rows with a soft prompt in them; what the prompt leaves as it is, once.

    A generation asks for the same rows under every prompt, and writing them anew would take a
    client longer than all else that it does. May be used from several threads.

    Args:
        table: Word embeddings.
        dtype: Of the embeddings as they are sent.
        max_kept_bytes: Most memory for what is kept. When it is full, all of it goes.
    """

    def __init__(self, table: EmbeddingTable, dtype: torch.dtype, *, max_kept_bytes: int) -> None:
        self.table, self.dtype = table, dtype
        self._max_bytes, self._bytes = max_kept_bytes, 0
        self._kept: dict[tuple[Word, int, int], _Frame] = {}
        self._lock = threading.Lock()

    def words(self, ids: Word) -> bytes:
        """A row of words alone, which is not kept."""
        return base64.b64encode(_saved(self.table.rows(ids).to(self.dtype)))

    def soft(self, ids: Word, place: int, vectors: torch.Tensor, *, adds: bool) -> bytes:
        """A row with a soft prompt in it.

        Args:
            ids: Of all its tokens.
            place: Where the prompt begins.
            vectors: (L, H) float32.
            adds: Whether they are added to what stands there, or stand instead.
        """
        frame = self._frame(ids, place, len(vectors))
        return frame.around((frame.words + vectors if adds else vectors).to(self.dtype))

    def _frame(self, ids: Word, place: int, length: int) -> _Frame:
        key = ids, place, length
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                return kept
        frame = _framed(self.table.rows(ids), place, length, self.dtype)
        with self._lock:
            if self._bytes + frame.nbytes > self._max_bytes:
                self._kept.clear()
                self._bytes = 0
            if frame.nbytes <= self._max_bytes and key not in self._kept:
                self._kept[key] = frame
                self._bytes += frame.nbytes
        return frame


@dataclass(frozen=True)
class _Frame:
    """A row without its prompt. Base64 writes three bytes as four characters.

    Attributes:
        before: Base64 of what comes before the prompt, up to the last group of three that is full.
        left: The bytes between that and the prompt.
        words: (L, H) float32 embeddings of what stands in the prompt's place.
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
        """The row with (L, H) vectors in place."""
        middle = base64.b64encode(self.left + _bytes(vectors) + self.right)
        return b"".join([self.before, middle, self.after])


def _framed(embeddings: torch.Tensor, place: int, length: int, dtype: torch.dtype) -> _Frame:
    numbers = embeddings.to(dtype)
    content = _saved(numbers)
    end = len(content) - numbers[place + length :].nbytes
    start = end - numbers[place : place + length].nbytes
    first, last = start - start % 3, end + -end % 3
    return _Frame(
        before=base64.b64encode(content[:first]),
        left=content[first:start],
        words=embeddings[place : place + length].clone(),
        right=content[end:last],
        after=base64.b64encode(content[last:]),
    )


def _saved(numbers: torch.Tensor) -> bytes:
    return _head(numbers.shape, numbers.dtype) + _bytes(numbers)


def _bytes(numbers: torch.Tensor) -> bytes:
    return numbers.contiguous().view(torch.uint8).numpy().tobytes()


@cache
def _head(shape: torch.Size, dtype: torch.dtype) -> bytes:
    """What `torch.save` writes before the numbers of a tensor, which end its older format.

    Writing each tensor anew would take longer than all else that is done to send it.
    """
    file = io.BytesIO()
    zeros = torch.zeros(shape, dtype=dtype)
    torch.save(zeros, file, _use_new_zipfile_serialization=False)
    return file.getvalue()[: -zeros.nbytes]
