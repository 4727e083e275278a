"""Checks of the settings that optimizers share; each returns the value or raises."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from numbers import Real

from lmaas_tune.errors import InputError, did_you_mean

MAX_SEED = 2**32 - 1
"""The largest seed that all used random generators take."""


def check_dim(dim: int) -> int:
    """Check a dimension."""
    return _integer("dim", dim, at_least=1)


def check_seed(seed: int) -> int:
    """Check a seed."""
    return _integer("seed", seed, at_least=0, at_most=MAX_SEED)


def check_calls(calls: int | None) -> int | None:
    """Check an expected number of calls; None if unknown."""
    return None if calls is None else _integer("calls", calls, at_least=1)


def check_population(population: int, *, at_least: int) -> int:
    """Check a population size."""
    return _integer("population", population, at_least=at_least)


def check_workers(workers: int) -> int:
    """Check a number of points that are asked before the first is told."""
    return _integer("workers", workers, at_least=1)


def check_positive(name: str, value: float, *, at_most: float | None = None) -> float:
    """Check a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name}={value!r} is not a number")
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}={value!r} must be finite and above 0")
    if at_most is not None and value > at_most:
        raise InputError(f"{name}={value!r} must be at most {at_most:g}")
    return float(value)


def check_options(name: str, factory: Callable[..., object], options: Mapping[str, object]) -> None:
    """Check the names of an optimizer's options against the parameters of its factory.

    Raises:
        InputError: An option that the factory does not take.
    """
    parameters = list(inspect.signature(factory).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters[1:]]  # the first is dim
    known = [option for option in known if option not in ("seed", "calls")]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "it has no options"
            raise InputError(f"optimizer {name!r} has no option {option!r}; {hint}")


def _integer(name: str, value: int, *, at_least: int, at_most: int | None = None) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = None
    if whole is None or isinstance(value, bool):
        raise InputError(f"{name}={value!r} is not a whole number")
    if whole < at_least or (at_most is not None and whole > at_most):
        bounds = f"at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        raise InputError(f"{name}={value!r} must be {bounds}")
    return whole
