"""What a call is thought to take: as many tokens as its rows took before."""

from __future__ import annotations

import math
import threading
from weakref import WeakKeyDictionary

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.task import Batch


class Estimates:
    """The dearest answer so far for each batch of rows. Safe among threads.

    The same rows come again and again under other prompts, and how many tokens a text has is not
    told by its length.
    """

    def __init__(self) -> None:
        self._dearest: WeakKeyDictionary[Batch, tuple[int, int]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def learn(self, request: ScoreRequest, tokens: int) -> None:
        """Take note of what a request took."""
        if tokens > self.tokens(request):
            with self._lock:
                self._dearest[request.batch] = tokens, max(1, request.characters)

    def tokens(self, request: ScoreRequest) -> int:
        """At least what its rows took before, more where its prompt is longer; 0 if unknown."""
        with self._lock:
            tokens, characters = self._dearest.get(request.batch, (0, 1))
        return math.ceil(tokens * max(1.0, request.characters / characters))
