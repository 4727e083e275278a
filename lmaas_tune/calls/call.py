"""`Call`: the requests of one backend call with their context, passed down the chain."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from lmaas_tune.backend import Backend, ScoreReply, ScoreRequest, Spread, Usage
from lmaas_tune.calls.cost import CostModel
from lmaas_tune.calls.deadline import Deadline
from lmaas_tune.calls.meter import Meter, Spent
from lmaas_tune.notes import OnNote

Reply: TypeAlias = ScoreReply | Spread
"""The answer to one request."""


class Recorder(Protocol):
    """Records each paid answer of a run when it arrives. Called from several threads."""

    def has_part(self, key: bytes) -> bool:
        """Whether `get_part` has an answer."""
        ...

    def get_part(self, key: bytes) -> tuple[ScoreReply, Spent] | None:
        """A recorded answer and its cost. The cost is returned once, by the first `get_part`."""
        ...

    def append_part(self, key: bytes, reply: ScoreReply, spent: Spent) -> None:
        """Record an answer."""
        ...

    def hold(self, replies: Mapping[bytes, ScoreReply], spent: Spent) -> None:
        """Keep answers, and what they cost with failed attempts, until the run has used them."""
        ...

    def append_failure(self, spent: Spent) -> None:
        """Record the cost of attempts that failed."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The run that a call belongs to; all calls of one `Client.score` share it.

    Attributes:
        meters: Each admits and books every attempt.
        meter: The run's own of them, if there is one.
        recorder: Records the answers, if there is one.
        cost: Estimates what calls cost.
        deadline: When every call must end.
        on_note: Called with each note for the user.
        fresh: Whether the cache is not asked, because the calls are to show what they cost.
        stopped: Set when no further call may start.
        active: Keys of the calls in progress.
    """

    meters: Sequence[Meter]
    meter: Meter | None
    recorder: Recorder | None
    cost: CostModel
    deadline: Deadline
    on_note: OnNote
    fresh: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)
    active: set[bytes] = field(default_factory=set)

    def admit(self, seconds: float) -> None:
        """Check that the budget leaves time for a wait.

        Raises:
            BudgetExceededError: The wait would exceed the budget.
            Stopped: The run was stopped.
        """
        if self.stopped.is_set():
            raise Stopped
        for meter in self.meters:
            meter.admit(Spent(seconds=seconds))

    def book(self, spent: Spent) -> None:
        """Book a cost that was not reserved with each meter."""
        for meter in self.meters:
            meter.book(spent)


class Stopped(Exception):  # noqa: N818  # not an error: ends the work of a thread
    """The run was stopped, so that no further call may start."""


@dataclass(eq=False, kw_only=True)
class Call:
    """Requests that are sent to a backend in one call.

    Attributes:
        requests: At least one.
        ask: Converts requests to a function that sends them to a backend.
        run: The run that the call belongs to.
        keys: A cache key for each request; empty if answers cannot be cached.
        expected: The estimated usage of all requests together.
        is_part: Whether this call answers a part of a generation.
        spent: The cost of all attempts so far.
        paid: Keys of the answers that the run has paid for, including before a resume.
        waited: Seconds that the call has spent in the queue so far.
    """

    requests: Sequence[ScoreRequest]
    ask: Callable[[Sequence[ScoreRequest]], Callable[[Backend], Sequence[Reply]]]
    run: RunContext
    keys: Sequence[bytes] = ()
    expected: Usage = field(default_factory=Usage)
    is_part: bool = False
    spent: Spent = field(default_factory=Spent)
    paid: set[bytes] = field(default_factory=set)
    waited: float = 0.0

    @property
    def send(self) -> Callable[[Backend], Sequence[Reply]]:
        """Sends the requests to a backend."""
        return self.ask(self.requests)

    @property
    def planned(self) -> Spent:
        """The cost that is reserved for the next attempt."""
        return self.run.cost.planned(self.requests, self.expected)


class Caller(Protocol):
    """A wrapper of a backend, or a chain of them."""

    def __call__(self, call: Call, /) -> list[Reply]:
        """One reply a request, in order."""
        ...
