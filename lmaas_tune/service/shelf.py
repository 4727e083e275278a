"""What clients registered: each key's own, within bounds, the least recently used going first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shelf(Generic[T]):
    """Things by their ids, so many and so large at most. May be used from several threads.

    Args:
        count: Most of them.
        size: The sum of their sizes.
    """

    def __init__(self, *, count: int, size: int) -> None:
        self._count, self._size = count, size
        self._things: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """The sum of the sizes."""
        return self._taken

    def put(self, name: Hashable, thing: T, size: int) -> None:
        """Keep a thing as the one used last; others may go for it."""
        with self._lock:
            if name in self._things:
                self._taken -= self._things.pop(name)[1]
            self._things[name] = (thing, size)
            self._taken += size
            while len(self._things) > 1 and self._full():
                self._taken -= self._things.popitem(last=False)[1][1]

    def get(self, name: Hashable) -> T | None:
        """The thing of this name, as the one used last now; None if it is not kept."""
        with self._lock:
            if name not in self._things:
                return None
            self._things.move_to_end(name)
            return self._things[name][0]

    def _full(self) -> bool:
        return len(self._things) > self._count or self._taken > self._size
