"""How each row is fitted, checked at construction."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from lmaas_tune.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ManualSettings:
    """Nothing to set: the words are the caller's."""


@dataclass(frozen=True, kw_only=True)
class InContextSettings:
    """What stands before a row.

    Attributes:
        demonstrations: At most so many training rows.
        max_tokens: A row with its demonstrations is no longer than this; None for as long as
            the model reads. Each row pays for all of them in memory and time.

    Raises:
        InputError: A value that cannot be.
    """

    demonstrations: int = 32
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _whole(self, "demonstrations", at_least=0)
        if self.max_tokens is not None:
            _whole(self, "max_tokens", at_least=1)


@dataclass(frozen=True, kw_only=True)
class GradientSettings:
    """What all rows with a gradient share: Adam, and the epoch that validation likes best.

    Attributes:
        learning_rate: Adam's; it stays as it is.
        epochs: At most so many passes over the training rows.
        batch_size: Rows a step.
        patience: Ends after so many epochs without a lower validation loss.

    Raises:
        InputError: A value that cannot be.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    patience: int

    def __post_init__(self) -> None:
        _number(self, "learning_rate", at_least=0.0)
        for name in ("epochs", "batch_size", "patience"):
            _whole(self, name, at_least=1)


@dataclass(frozen=True, kw_only=True)
class PromptTuningSettings(GradientSettings):
    """Prompt Tuning (Lester et al., 2021).

    Attributes:
        length: L, in tokens: the words are repeated or cut to it, and without words tokens of the
            vocabulary are drawn. None takes as many as the words have.
    """

    learning_rate: float = 1e-2
    epochs: int = 60
    batch_size: int = 8
    patience: int = 20
    length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length is not None:
            _whole(self, "length", at_least=1)


@dataclass(frozen=True, kw_only=True)
class PrefixTuningSettings(GradientSettings):
    """P-Tuning v2 (Liu et al., 2022).

    Attributes:
        length: L, keys and values of every layer that stand before the row.
    """

    learning_rate: float = 1e-2
    epochs: int = 15
    batch_size: int = 8
    patience: int = 6
    length: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole(self, "length", at_least=1)


@dataclass(frozen=True, kw_only=True)
class ModelTuningSettings(GradientSettings):
    """Model Tuning: all weights and a classification head."""

    learning_rate: float = 5e-5  # the highest of the three that Devlin et al. (2019) advise
    epochs: int = 10
    batch_size: int = 8
    patience: int = 6


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(GradientSettings):
    """A small network on what the frozen model makes of a row.

    Attributes:
        width: Of its hidden layers.
        dropout: Between its layers, while it is fitted.
    """

    learning_rate: float = 1e-3
    epochs: int = 100
    batch_size: int = 16
    patience: int = 20
    width: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole(self, "width", at_least=1)
        _number(self, "dropout", at_least=0.0)
        if self.dropout >= 1:
            raise InputError(f"dropout={self.dropout}: it must be below 1")


BaselineSettings = (
    ManualSettings
    | InContextSettings
    | PromptTuningSettings
    | PrefixTuningSettings
    | ModelTuningSettings
    | FeatureSettings
)


def check_kind(name: str, given: object, expected: type) -> None:
    """Refuse the settings of another row.

    Raises:
        InputError: They are.
    """
    if type(given) is not expected:
        known = ", ".join(f.name for f in fields(expected)) or "nothing"
        raise InputError(
            f"{name} takes {expected.__name__} ({known}), and not {type(given).__name__}"
        )


def _whole(settings: object, name: str, *, at_least: int) -> None:
    value = getattr(settings, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name}={value!r}: it takes a whole number")
    if value < at_least:
        raise InputError(f"{name}={value}: it must be {at_least} or more")


def _number(settings: object, name: str, *, at_least: float) -> None:
    value = getattr(settings, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name}={value!r}: it takes a finite number")
    if value < at_least:
        raise InputError(f"{name}={value}: it must be {at_least} or more")
