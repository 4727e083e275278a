"""The cost model: the only place that estimates what calls cost."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from lmaas_tune.backend import ScoreRequest, Usage
from lmaas_tune.calls.meter import Spent
from lmaas_tune.errors import InputError, LMaaSError
from lmaas_tune.task import Batch


@dataclass(frozen=True, kw_only=True)
class PromptCost:
    """The known cost of scoring one prompt on one batch of rows.

    Attributes:
        usage: Usage from an inspection, else of the most expensive answer so far.
        characters: Length of the request of that answer; 0 without an answer.
        seconds: Wall time of the latest answer; 0 before the first.
        inspected: Whether the usage is from an inspection.
    """

    usage: Usage = field(default_factory=Usage)
    characters: int = 0
    seconds: float = 0.0
    inspected: bool = False


class CostModel:
    """Estimates costs from inspections, answers and prices. Safe for concurrent threads.

    It stores the most expensive answer for each batch of rows, because the same rows are scored
    with many prompts, and the length of a text does not determine its number of tokens.

    Args:
        price: Money for the usage of one answer if the backend reports none.
        rows_per_call: The most rows that the backend takes a call; None: no limit.
    """

    def __init__(
        self, price: Callable[[Usage], float] | None = None, *, rows_per_call: int | None = None
    ) -> None:
        self._price, self._rows_per_call = price, rows_per_call
        self._requests = 1  # the most that a call for one prompt took
        self._prompts: WeakKeyDictionary[Batch, PromptCost] = WeakKeyDictionary()
        self._parts: WeakKeyDictionary[Batch, tuple[int, int]] = WeakKeyDictionary()
        self._lock = threading.RLock()

    def priced(self, usage: Usage) -> Usage:
        """The usage with its money; by the price if the backend reports none.

        Raises:
            InputError: The price is no finite number from 0 up.
        """
        if usage.money or self._price is None:
            return usage
        money = self._price(usage)
        if not 0 <= money < math.inf:
            raise InputError(f"the price gives {money!r} for {usage}: it takes 0 or more")
        return replace(usage, money=money)

    def of_prompt(self, batch: Batch) -> PromptCost:
        """The cost of one prompt on these rows."""
        unknown = PromptCost(usage=Usage(requests=1, sequences=len(batch)))
        with self._lock:
            return self._prompts.get(batch, unknown)

    def inspected(self, batch: Batch, usage: Usage) -> None:
        """Learn from an inspection, before the first call."""
        cost, usage = self.of_prompt(batch), self.priced(usage)
        if usage.tokens > cost.usage.tokens:
            self._set(batch, replace(cost, usage=usage, inspected=True))

    def observe(self, request: ScoreRequest, usage: Usage) -> None:
        """Learn from the answer to a request, unless the cache gave a part of it."""
        if not 0 < usage.sequences < len(request.batch):
            self.learn(request.batch, usage, request.characters)

    def learn(
        self, batch: Batch, usage: Usage, characters: int, seconds: float | None = None
    ) -> None:
        """Learn the usage, and the wall time, of one prompt on these rows."""
        cost = self.of_prompt(batch)
        if usage.tokens > cost.usage.tokens or usage.money > cost.usage.money:
            cost = replace(cost, usage=replace(usage, requests=1), characters=characters)
        elif usage.requests and not cost.characters:  # the backend never reports its usage
            cost = replace(cost, characters=characters)
        if seconds is not None:
            cost = replace(cost, seconds=seconds)
        self._set(batch, cost)

    def learn_whole(self, batch: Batch, parts: Sequence[Batch]) -> None:
        """Learn the cost of rows from those of their parts, if all of them were answered."""
        costs = [self.of_prompt(part) for part in parts]
        if all(cost.characters for cost in costs):
            self.learn(
                batch,
                sum((cost.usage for cost in costs), Usage()),
                sum(cost.characters for cost in costs),
                sum(cost.seconds for cost in costs),
            )

    def knows(self, batch: Batch) -> bool:
        """Whether there was an inspection of these rows, or an answer for any rows."""
        with self._lock:
            answered = any(cost.characters for cost in self._prompts.values())
        return answered or self.of_prompt(batch).inspected

    def expect(self, batch: Batch, prompts: int) -> Spent:
        """The expected cost of `prompts` prompts on these rows.

        If it is unknown, the rows that were answered first are the reference, by their number.
        """
        cost = self.of_prompt(batch)
        known = cost if cost.characters or cost.inspected else self._typical or cost
        times = prompts * len(batch) / max(1, known.usage.sequences)
        return Spent(
            requests=self.requests(len(batch), prompts),
            sequences=len(batch) * prompts,
            tokens=math.ceil(known.usage.tokens * times),
            money=known.usage.money * times,
            seconds=known.seconds * times,
        )

    def requests(self, rows: int, prompts: int) -> int:
        """The expected number of requests for `prompts` prompts on this number of rows."""
        calls = 1 if self._rows_per_call is None else math.ceil(rows / self._rows_per_call)
        return prompts * calls * self._requests

    def expected(self, requests: Sequence[ScoreRequest]) -> Usage:
        """The expected usage of the longest of several requests for the same rows.

        An inspection of these rows tells it. The usage of an answer is scaled by characters; for
        the same rows only up, for a longer prompt. Rows of which nothing is known take their share
        of an inspection, by their number.
        """
        batch, longest = requests[0].batch, max(request.characters for request in requests)
        own = self.of_prompt(batch)
        known = own if own.characters or own.inspected else self._typical or own
        if own.inspected:
            share = 1.0
        elif known.characters:
            share = longest / known.characters
        else:
            share = len(batch) / max(1, known.usage.sequences)
        if known is own:
            share = max(1.0, share)
        tokens, money = math.ceil(known.usage.tokens * share), known.usage.money * share
        return replace(own.usage, tokens=tokens, money=money)

    def planned(self, requests: Sequence[ScoreRequest], expected: Usage) -> Spent:
        """The cost to reserve: the expected cost, or more if the rows took more before."""
        rows = sum(len(request.batch) for request in requests)
        tokens = max(expected.tokens, sum(map(self._known_tokens, requests)))
        priced = self.priced(Usage(requests=1, sequences=rows, tokens=tokens))
        return Spent(sequences=rows, tokens=tokens, money=max(expected.money, priced.money))

    def answered(self, requests: Sequence[ScoreRequest], expected: Usage, usage: Usage) -> Spent:
        """The cost to book for an answer with this usage."""
        if len(requests) == 1:
            self._learn_tokens(requests[0], usage.tokens)
            with self._lock:
                self._requests = max(self._requests, usage.requests)
        if usage.tokens or not usage.requests:
            return Spent.of(self.priced(usage))
        return self._at_least(self.planned(requests, expected), usage)

    def failed(
        self, requests: Sequence[ScoreRequest], expected: Usage, error: BaseException
    ) -> Spent:
        """The cost to book for an attempt that failed."""
        if not isinstance(error, LMaaSError) or error.usage is None:
            # an input error is raised before anything is sent
            return Spent(requests=0 if isinstance(error, InputError) else 1)
        planned = self.planned(requests, expected)
        # a row may be sent several times, and counts once
        rows = min(error.usage.sequences, planned.sequences)
        usage = replace(error.usage, sequences=rows)
        return self._at_least(planned if error.usage_unknown else Spent(), usage)

    @property
    def _typical(self) -> PromptCost | None:
        """The cost for the rows that were learned first; of answers from a cache nothing is."""
        with self._lock:
            known = (c for c in self._prompts.values() if c.characters or c.inspected)
            return next(known, None)

    def _set(self, batch: Batch, cost: PromptCost) -> None:
        with self._lock:
            self._prompts[batch] = cost

    def _at_least(self, least: Spent, usage: Usage) -> Spent:
        rows, tokens = max(usage.sequences, least.sequences), max(usage.tokens, least.tokens)
        spent = Spent.of(self.priced(replace(usage, sequences=rows, tokens=tokens)))
        return replace(spent, money=max(spent.money, least.money))

    def _learn_tokens(self, request: ScoreRequest, tokens: int) -> None:
        if tokens > self._known_tokens(request):
            with self._lock:
                self._parts[request.batch] = tokens, max(1, request.characters)

    def _known_tokens(self, request: ScoreRequest) -> int:
        """The tokens that the rows took before, scaled up for a longer prompt; 0 if unknown."""
        with self._lock:
            tokens, characters = self._parts.get(request.batch, (0, 1))
        return math.ceil(tokens * max(1.0, request.characters / characters))
