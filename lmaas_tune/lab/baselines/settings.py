"""Settings of the baselines; each field declares its range, which is checked at construction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from lmaas_tune.errors import InputError


def _whole(default: Any, low: int = 1) -> Any:
    """A field with a whole number of at least `low`, or None if that is its default."""
    return field(default=default, metadata={"kind": int, "low": low})


def _number(default: Any, below: float = math.inf) -> Any:
    """A field with a finite number from 0 on."""
    return field(default=default, metadata={"kind": float, "low": 0.0, "below": below})


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """Settings of any baseline.

    Raises:
        InputError: A value is out of its range.
    """

    def __post_init__(self) -> None:
        for own in fields(self):
            value = getattr(self, own.name)
            if not (value is None and own.default is None):
                _check(own.name, value, **own.metadata)


class ManualSettings(BaselineSettings):
    """Manual Prompt, which has none: the words are the caller's."""


@dataclass(frozen=True, kw_only=True)
class InContextSettings(BaselineSettings):
    """In-Context Learning.

    Attributes:
        demonstrations: Maximum number of training rows before a row.
        max_tokens: Maximum length of a row with its demonstrations; None for that of the model.
            Each row pays for all of them in memory and time.
    """

    demonstrations: int = _whole(32, low=0)
    max_tokens: int | None = _whole(None)


@dataclass(frozen=True, kw_only=True)
class GradientSettings(BaselineSettings):
    """Settings of all methods with a gradient: Adam, and the epoch of the lowest validation loss.

    Attributes:
        learning_rate: Of Adam; it is constant.
        epochs: Maximum number of passes over the training rows.
        batch_size: Rows a step.
        patience: Number of epochs without a lower validation loss after which training ends.
    """

    learning_rate: float = _number(1e-2)
    epochs: int = _whole(60)
    batch_size: int = _whole(8)
    patience: int = _whole(20)


@dataclass(frozen=True, kw_only=True)
class PromptTuningSettings(GradientSettings):
    """Prompt Tuning (Lester et al., 2021).

    Attributes:
        length: L, in tokens: the words are repeated or cut to it, and without words tokens of the
            vocabulary are drawn. None takes the number of tokens of the words.
    """

    length: int | None = _whole(None)


@dataclass(frozen=True, kw_only=True)
class PrefixTuningSettings(GradientSettings):
    """P-Tuning v2 (Liu et al., 2022).

    Attributes:
        length: L, the number of keys and values before the row in every layer.
    """

    epochs: int = _whole(15)
    patience: int = _whole(6)
    length: int = _whole(8)


@dataclass(frozen=True, kw_only=True)
class ModelTuningSettings(GradientSettings):
    """Model Tuning: all weights and a classification head."""

    learning_rate: float = _number(5e-5)  # the highest of the three of Devlin et al. (2019)
    epochs: int = _whole(10)
    patience: int = _whole(6)


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(GradientSettings):
    """A small network on the states of the frozen model.

    Attributes:
        width: Of its hidden layers.
        dropout: Between its layers, in training.
    """

    learning_rate: float = _number(1e-3)
    epochs: int = _whole(100)
    batch_size: int = _whole(16)
    width: int = _whole(128)
    dropout: float = _number(0.1, below=1.0)


def check_kind(name: str, given: object, expected: type) -> None:
    """Check that settings are those of the row.

    Raises:
        InputError: They are of another row.
    """
    if type(given) is not expected:
        known = ", ".join(f.name for f in fields(expected)) or "nothing"
        raise InputError(
            f"{name} takes {expected.__name__} ({known}), and not {type(given).__name__}"
        )


def _check(name: str, value: Any, *, kind: type, low: float, below: float = math.inf) -> None:
    number = isinstance(value, int if kind is int else (int, float))
    if isinstance(value, bool) or not number or not math.isfinite(value):
        raise InputError(
            f"{name}={value!r}: it takes a {'whole' if kind is int else 'finite'} number"
        )
    if value < low:
        raise InputError(f"{name}={value}: it must be {low} or more")
    if value >= below:
        raise InputError(f"{name}={value}: it must be below {below:g}")
