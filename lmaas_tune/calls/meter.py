"""Budget of a run, spending, prices, and the meter that checks spending against the budget."""

from __future__ import annotations

import contextlib
import math
import operator
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from lmaas_tune.backend import Usage
from lmaas_tune.errors import BudgetExceededError, InputError, did_you_mean
from lmaas_tune.reprs import short_repr
from lmaas_tune.typed_json import checked

_WHOLE = frozenset({"calls", "sequences", "tokens", "patience"})
_MEASURED = frozenset({"money", "seconds"})
_PAID = ("sequences", "tokens", "seconds", "money")
_ROUNDING = 1e-9  # of a limit in seconds or money: ten times 0.1 must fit into 1


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits that end a run; None is no limit.

    Attributes:
        calls: Prompts scored by the search on the whole training batch, paid or cached: the
            paper's unit.
        sequences: Rows paid for, validation included.
        tokens: Tokens paid for. If the backend cannot estimate the usage of a call, the first
            call shows it; only this call can exceed a limit on tokens or money.
        seconds: Wall time of the run. HTTP calls are cancelled at its end; with a local model, a
            generation that takes longer than those before can exceed it.
        money: In the currency of the price.
        patience: Considered generations without a better prompt; the search checks it.
        target: Loss at which the search ends; the search checks it.

    Raises:
        InputError: A limit is not a positive number (`target`: not a finite number), or a
            count is not a whole number.
    """

    calls: int | None = None
    sequences: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    money: float | None = None
    patience: int | None = None
    target: float | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        for name, value in self.limits.items():
            object.__setattr__(self, name, _limit(name, value))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def limits_usage(self) -> bool:
        """Whether it limits tokens or money, which only an answer or an inspection shows."""
        return self.tokens is not None or self.money is not None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``"calls=200,seconds=60"``; ``"none"`` sets no limit.

        Raises:
            InputError: A name is unknown or repeated, or a value is invalid.
        """
        limits: dict[str, float] = {}
        for part in text.split(",") if text.strip() != "none" else ():
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals:
                raise InputError(
                    f"budget {text!r}: {part.strip()!r} is no limit; write for example calls=200"
                )
            if name not in cls.__dataclass_fields__:
                raise InputError(
                    f"budget {text!r}: unknown limit {name!r}; "
                    + did_you_mean(name, cls.__dataclass_fields__)
                )
            if name in limits:
                raise InputError(f"budget {text!r}: {name} is given twice")
            limits[name] = _number(name, value)
        return cls(**limits)  # type: ignore[arg-type]  # the constructor checks each

    def __str__(self) -> str:
        return ",".join(f"{n}={_format_limit(v)}" for n, v in self.limits.items()) or "none"


def _number(name: str, text: str) -> float:
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise InputError(f"budget {name}={text!r}: it takes {kind}") from None


def _limit(name: str, value: object) -> float:
    counted = name in _WHOLE
    if isinstance(value, bool) or not isinstance(value, Integral if counted else Real):
        kind = "a whole number" if counted else "a number"
        raise InputError(f"budget {name}={value!r}: it takes {kind}")
    number = int(value) if counted and isinstance(value, Integral) else float(value)
    if not math.isfinite(number):
        raise InputError(f"budget {name}={number}: it takes a finite number")
    if name != "target" and number <= 0:
        raise InputError(f"budget {name}={number}: it must be above 0; leave it out for no limit")
    return number


def _format_limit(number: float) -> str:
    return repr(number).removesuffix(".0")


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Amounts spent; values add up with ``+``, and ``-`` gives the rest.

    Attributes:
        calls: Prompts scored on the whole training batch by the search, paid or not.
        validation_calls: Prompts scored on the whole validation set.
        hits: Requests answered for free: from the cache, or together with an equal one.
        retries: Attempts that followed a failed one.
        requests: Requests to the provider, failed ones included.
        sequences: Rows paid for.
        tokens: Tokens paid for.
        bytes_up: Bytes sent.
        bytes_down: Bytes received.
        money: In the user's currency.
        seconds: Wall time.

    Raises:
        InputError: A value is negative or not finite, or a count is not a whole number.
    """

    calls: int = 0
    validation_calls: int = 0
    hits: int = 0
    retries: int = 0
    requests: int = 0
    sequences: int = 0
    tokens: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    money: float = 0.0
    seconds: float = 0.0

    __repr__ = short_repr

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            object.__setattr__(self, name, _amount(name, value))

    def __add__(self, other: Spent) -> Spent:
        theirs = vars(other)
        return Spent(**{name: value + theirs[name] for name, value in vars(self).items()})

    def __sub__(self, other: Spent) -> Spent:
        theirs = vars(other)
        return Spent(**{name: value - theirs[name] for name, value in vars(self).items()})

    @classmethod
    def of(cls, usage: Usage) -> Spent:
        """The usage of one answer as spending.

        Raises:
            InputError: The backend reports an invalid amount.
        """
        return cls(**asdict(usage))

    @property
    def usage(self) -> Usage:
        """The amounts that a backend reports."""
        return Usage(**{f.name: getattr(self, f.name) for f in fields(Usage)})

    def to_json(self) -> dict[str, float]:
        """The amounts by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Spent:
        """Read the output of `to_json`; missing amounts are 0, unknown keys are ignored.

        Raises:
            InputError: A value is invalid.
        """
        data = checked(Mapping[str, Any], data, "what was spent")
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        return cls(**known)


def _amount(name: str, value: float) -> float:
    """The value as a Python int or float, which JSON can hold."""
    try:
        if isinstance(value, str | bool):
            raise TypeError
        number = float(value) if name in _MEASURED else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        kind = "a number" if name in _MEASURED else "a whole number"
        raise InputError(f"spent {name}={value!r}: it takes {kind}") from None
    if not 0 <= number < math.inf:
        raise InputError(f"spent {name}={value!r}: it must be finite and not negative")
    return number


NO_LIMIT = Budget()
NOTHING = Spent()


@dataclass(frozen=True, kw_only=True)
class Price:
    """Price of a backend's usage, in the user's currency.

    Attributes:
        input: Price of a million input tokens.
        output: Price of a million output tokens; scoring a row takes one.

    Raises:
        InputError: A price is negative or not finite.
    """

    input: float
    output: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise InputError(
                    f"price {name}={value!r}: it must be a finite number, 0 or above, "
                    "for a million tokens"
                )

    def __call__(self, usage: Usage) -> float:
        """The money for a usage."""
        return (self.input * usage.tokens + self.output * usage.sequences) / 1e6


class Bill:
    """The cost of one attempt, once it is known."""

    def __init__(self) -> None:
        self.spent = NOTHING


@contextlib.contextmanager
def reserved_attempt(meters: Iterable[Meter], planned: Spent) -> Iterator[Bill]:
    """Reserve the cost of one attempt with all meters; at the end, book its bill with each.

    Raises:
        BudgetExceededError: A meter does not admit the attempt.
    """
    bill = Bill()
    with contextlib.ExitStack() as settling:
        for meter in meters:
            meter.reserve(planned, bill)
            settling.callback(meter.settle, bill)
        yield bill


class Meter:
    """Books spending, and checks new costs against the budget. Safe for concurrent threads.

    Args:
        budget: The limits.
        spent: Spending before the run was resumed; it counts against the budget.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        budget: Budget = NO_LIMIT,
        *,
        spent: Spent = NOTHING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = budget
        self._booked = spent
        self._clock = clock
        self._start = clock()
        self._lock = threading.Lock()
        self._reserved: dict[Bill, Spent] = {}

    @property
    def spent(self) -> Spent:
        """All booked spending; its seconds include the time since the meter was built."""
        booked, elapsed = self._booked, max(0.0, self._clock() - self._start)
        return replace(booked, seconds=booked.seconds + elapsed)

    @property
    def seconds_left(self) -> float:
        """Remaining seconds of the budget; infinity without a limit."""
        limit = self.budget.seconds
        return math.inf if limit is None else limit - self.spent.seconds

    def book(self, part: Spent) -> None:
        """Add spending. Its seconds add to those of the clock, so leave them 0 for new work."""
        with self._lock:
            self._booked += part

    def exceeded_limit(self, planned: Spent, *, what: str = "the next generation") -> str | None:
        """The message for the first limit that a cost would exceed; None if it fits the budget.

        Args:
            planned: The cost.
            what: Name of the cost in the message.
        """
        with self._lock:
            return self._exceeded_limit(planned, what=what)

    def admit(self, planned: Spent = NOTHING) -> None:
        """Check that the budget admits one paid attempt with the estimated cost `planned`.

        `Budget.calls` is not checked here: the search checks it by `exceeded_limit`, and may
        still pay for the validation of its result after its last call.

        Raises:
            BudgetExceededError: A limit has been reached, or `planned` would exceed it.
        """
        with self._lock:
            self._admit(planned)

    def reserve(self, planned: Spent, bill: Bill) -> None:
        """Admit an attempt and reserve its estimated cost, so that no other thread can spend it.

        Raises:
            BudgetExceededError: See `admit`.
        """
        with self._lock:
            self._admit(planned)
            self._reserved[bill] = planned

    def settle(self, bill: Bill) -> None:
        """Book the bill of an attempt and release its reservation."""
        with self._lock:
            del self._reserved[bill]
            self._booked += bill.spent

    def _admit(self, planned: Spent) -> None:
        sentence = self._exceeded_limit(planned, what="the next request") or self._used_up()
        if sentence is not None:
            raise BudgetExceededError(sentence)

    def _exceeded_limit(self, planned: Spent, *, what: str) -> str | None:
        spent = self._committed
        for name in ("calls", *_PAID):
            limit, used, more = (getattr(it, name) for it in (self.budget, spent, planned))
            if limit is None or used + more <= _with_rounding(limit):
                continue
            if more == 0:
                return f"budget {name}={_format_limit(limit)}: all used, {used:g} spent"
            left = max(limit - used, 0)
            return f"budget {name}={_format_limit(limit)}: {left:g} left, {what} needs {more:g}"
        return None

    def _used_up(self) -> str | None:
        spent = self._committed
        for name in _PAID:
            limit, used = getattr(self.budget, name), getattr(spent, name)
            if limit is not None and used >= limit:
                return f"budget {name}={_format_limit(limit)}: all used, {used:g} spent"
        return None

    @property
    def _committed(self) -> Spent:
        """Spent and reserved amounts together."""
        return sum(self._reserved.values(), self.spent)


def _with_rounding(limit: float) -> float:
    return limit * (1 + _ROUNDING) if isinstance(limit, float) else limit
