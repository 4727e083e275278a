"""What a call is reserved at before it is made, and what is booked for it after."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from lmaas_tune.backend import ScoreRequest, Usage
from lmaas_tune.errors import InputError, LMaaSError
from lmaas_tune.middleware.meter import Spent
from lmaas_tune.task import Batch


class Billing:
    """Turns usages into what is reserved and booked. Safe among threads.

    It remembers the dearest answer for each batch of rows: the same rows come again and again under
    other prompts, and how many tokens a text has is not told by its length.

    Args:
        price: Money for the usage of one answer, where the backend names none.
    """

    def __init__(self, price: Callable[[Usage], float] | None) -> None:
        self._price = price
        self._dearest: WeakKeyDictionary[Batch, tuple[int, int]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def priced(self, usage: Usage) -> Usage:
        """The usage with its money, by the price where the backend names none.

        Raises:
            InputError: The price gives no finite number from 0 up.
        """
        if usage.money or self._price is None:
            return usage
        money = self._price(usage)
        if not 0 <= money < math.inf:
            raise InputError(f"the price gives {money!r} for {usage}: it takes 0 or more")
        return replace(usage, money=money)

    def planned(self, requests: Sequence[ScoreRequest], expected: Usage) -> Spent:
        """What a call is reserved at: what is expected of it, or more if its rows took more."""
        rows = sum(len(request.batch) for request in requests)
        tokens = max(expected.tokens, sum(map(self._known, requests)))
        priced = self.priced(Usage(requests=1, sequences=rows, tokens=tokens))
        return Spent(sequences=rows, tokens=tokens, money=max(expected.money, priced.money))

    def answered(self, requests: Sequence[ScoreRequest], expected: Usage, usage: Usage) -> Spent:
        """What is booked for an answer that says that it took so much."""
        if len(requests) == 1:
            self._learn(requests[0], usage.tokens)
        if usage.tokens or not usage.requests:
            return Spent.of(self.priced(usage))
        return self._at_least(self.planned(requests, expected), usage)

    def failed(
        self, requests: Sequence[ScoreRequest], expected: Usage, error: BaseException
    ) -> Spent:
        """What is booked for an attempt that ended so."""
        if not isinstance(error, LMaaSError) or error.usage is None:
            # an input error is raised before anything is sent
            return Spent(requests=0 if isinstance(error, InputError) else 1)
        planned = self.planned(requests, expected)
        # a row may be sent several times, and is paid once
        rows = min(error.usage.sequences, planned.sequences)
        usage = replace(error.usage, sequences=rows)
        return self._at_least(planned if error.usage_unknown else Spent(), usage)

    def _at_least(self, least: Spent, usage: Usage) -> Spent:
        rows, tokens = max(usage.sequences, least.sequences), max(usage.tokens, least.tokens)
        spent = Spent.of(self.priced(replace(usage, sequences=rows, tokens=tokens)))
        return replace(spent, money=max(spent.money, least.money))

    def _learn(self, request: ScoreRequest, tokens: int) -> None:
        if tokens > self._known(request):
            with self._lock:
                self._dearest[request.batch] = tokens, max(1, request.characters)

    def _known(self, request: ScoreRequest) -> int:
        """At least the tokens that the rows took before, more for a longer prompt; 0 at first."""
        with self._lock:
            tokens, characters = self._dearest.get(request.batch, (0, 1))
        return math.ceil(tokens * max(1.0, request.characters / characters))
