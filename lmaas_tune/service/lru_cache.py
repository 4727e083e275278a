"""A thread-safe LRU cache that is limited in entries and in bytes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")


class LRUStore(Generic[T]):
    """Values by name, each with its size. May be used from several threads.

    Args:
        count: Most entries.
        size: Most bytes of all entries; a larger entry is counted as this size and stored alone.
    """

    def __init__(self, *, count: int, size: int) -> None:
        self._count, self._size = count, size
        self._entries: LRUCache[Hashable, tuple[T, int]] = LRUCache(
            size, getsizeof=lambda entry: min(entry[1], size)
        )
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """Bytes of all entries."""
        return int(self._entries.currsize)

    def put(self, name: Hashable, value: T, size: int) -> None:
        """Store a value as the most recently used one; others may be dropped for it."""
        with self._lock:
            self._entries[name] = (value, size)
            while len(self._entries) > self._count:
                self._entries.popitem()

    def get(self, name: Hashable) -> T | None:
        """The value of this name, now the most recently used one; None if it is not stored."""
        with self._lock:
            found = self._entries.get(name)
            return None if found is None else found[0]
