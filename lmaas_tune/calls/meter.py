"""What calls cost: the budget of a run, what was spent, and the meter that compares the two."""

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
from lmaas_tune.typed_json import checked

_WHOLE = frozenset({"calls", "sequences", "tokens", "patience"})
_MEASURED = frozenset({"money", "seconds"})
_PAID = ("sequences", "tokens", "seconds", "money")
_ROUNDING = 1e-9  # of a limit in seconds or money: ten times 0.1 must fit into 1


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What ends a run. None means no limit of that kind.

    Attributes:
        calls: Prompts that the search scores on the whole training batch, whether paid or
            answered from the cache: the paper's unit.
        sequences: Rows paid for, validation included.
        tokens: Tokens paid for. A backend that cannot tell beforehand what a call takes shows
            it with the first one, which alone can go past a limit on tokens or money.
        seconds: Wall time of the run. Calls behind HTTP are given up when it is over; where the
            model runs here, a generation that takes longer than those before can go past it.
        money: In the currency of the price.
        patience: Generations without a better prompt, of those that the selection looks at; the
            tuner watches it.
        target: Loss at which the search is content; the tuner watches it.

    Raises:
        InputError: A limit is not a positive number (`target`: not a finite number), or not a
            whole one where things are counted.
    """

    calls: int | None = None
    sequences: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    money: float | None = None
    patience: int | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.limits.items():
            object.__setattr__(self, name, _limit(name, value))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were given, by name."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def limits_usage(self) -> bool:
        """Whether it limits what only an answer, or an inspection, shows."""
        return self.tokens is not None or self.money is not None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``"calls=200,seconds=60"``; ``"none"`` is no limit at all.

        Raises:
            InputError: A name is unknown or comes twice, or a value is no fitting number.
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
    """What was used so far; adds up with ``+``.

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
        InputError: A value is negative or not finite, or not whole where things are counted.
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

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            object.__setattr__(self, name, _amount(name, value))

    def __add__(self, other: Spent) -> Spent:
        theirs = vars(other)
        return Spent(**{name: value + theirs[name] for name, value in vars(self).items()})

    @classmethod
    def of(cls, usage: Usage) -> Spent:
        """What one answer of a backend took.

        Raises:
            InputError: The backend reports what cannot be an amount.
        """
        return cls(**asdict(usage))

    @property
    def usage(self) -> Usage:
        """The part that a backend reports."""
        return Usage(**{f.name: getattr(self, f.name) for f in fields(Usage)})

    def to_json(self) -> dict[str, float]:
        """A flat object of numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Spent:
        """Read what `to_json` gave; what is absent is 0, and unknown keys are left alone.

        Raises:
            InputError: A value is not a fitting number.
        """
        data = checked(Mapping[str, Any], data, "what was spent")
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        return cls(**known)


def _amount(name: str, value: float) -> float:
    """The value as Python's own int or float, which JSON can hold."""
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
    """Turns the usage that a backend reports into money, in the user's currency.

    Attributes:
        input: For a million input tokens.
        output: For a million output tokens; scoring a row takes one.

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
    """What one attempt comes to; nothing, until it is known."""

    def __init__(self) -> None:
        self.spent = NOTHING


@contextlib.contextmanager
def reserved_attempt(meters: Iterable[Meter], planned: Spent) -> Iterator[Bill]:
    """Make one attempt that all meters admit, and book with each what stands on its bill.

    Raises:
        BudgetExceededError: A meter does not admit it.
    """
    bill = Bill()
    with contextlib.ExitStack() as settling:
        for meter in meters:
            meter.reserve(planned, bill)
            settling.callback(meter.settle, bill)
        yield bill


class Meter:
    """Books what is spent and says whether more fits into the budget. Safe among threads.

    Args:
        budget: What may be spent.
        spent: What was spent before, by a run that is now resumed; counts against the budget.
        clock: Gives seconds that only rise.
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
        """All that was booked; its seconds run on by themselves."""
        booked, elapsed = self._booked, max(0.0, self._clock() - self._start)
        return replace(booked, seconds=booked.seconds + elapsed)

    @property
    def seconds_left(self) -> float:
        """Until the budget's seconds are over; infinity where it limits none."""
        limit = self.budget.seconds
        return math.inf if limit is None else limit - self.spent.seconds

    def book(self, part: Spent) -> None:
        """Add `part`. Its seconds come on top of the clock's, so leave them 0 for new work."""
        with self._lock:
            self._booked += part

    def exceeded_limit(self, planned: Spent, *, what: str = "the next generation") -> str | None:
        """None if all of `planned` still fits, else a sentence that names the limit in the way.

        Args:
            planned: What would be spent.
            what: What would spend it, for the sentence.
        """
        with self._lock:
            return self._exceeded_limit(planned, what=what)

    def admit(self, planned: Spent = NOTHING) -> None:
        """Say whether one paid attempt may be made that takes `planned`, as far as it is known.

        `Budget.calls` is not asked: calls belong to the search, which asks `exceeded_limit`, and a
        search that has used its last call may still pay for validating its result.

        Raises:
            BudgetExceededError: A limit on what is paid has been reached, or `planned` would
                go past it.
        """
        with self._lock:
            self._admit(planned)

    def reserve(self, planned: Spent, bill: Bill) -> None:
        """Admit an attempt and set `planned` aside, so that no other thread can have it too.

        Raises:
            BudgetExceededError: As of `admit`.
        """
        with self._lock:
            self._admit(planned)
            self._reserved[bill] = planned

    def settle(self, bill: Bill) -> None:
        """Book the bill in place of what was set aside."""
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
        """What was spent, and what is set aside."""
        return sum(self._reserved.values(), self.spent)


def _with_rounding(limit: float) -> float:
    return limit * (1 + _ROUNDING) if isinstance(limit, float) else limit
