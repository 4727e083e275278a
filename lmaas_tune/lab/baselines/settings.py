"""Settings of the baselines; each field declares its range, which is checked at construction."""

from __future__ import annotations

from dataclasses import dataclass

from lmaas_tune.validate import nonnegative, validate, whole


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """Settings of any baseline.

    Raises:
        InputError: A value is out of its range.
    """

    def __post_init__(self) -> None:
        validate(self)


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

    demonstrations: int = whole(least=0, default=32)
    max_tokens: int | None = whole(least=1, optional=True)


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(BaselineSettings):
    """A logistic regression, whose penalty cross-validation chooses.

    Attributes:
        penalties: Number of penalties that are tried.
        folds: Of the cross-validation; fewer where a label has fewer rows.
    """

    penalties: int = whole(least=1, default=10)
    folds: int = whole(least=2, default=5)


@dataclass(frozen=True, kw_only=True)
class GradientSettings(BaselineSettings):
    """Settings of all methods with a gradient: Adam, and the epoch of the lowest validation loss.

    Attributes:
        learning_rate: Of Adam; it is constant.
        epochs: Maximum number of passes over the training rows.
        batch_size: Rows a step.
        patience: Number of epochs without a lower validation loss after which training ends.
    """

    learning_rate: float = nonnegative(default=1e-2)
    epochs: int = whole(least=1, default=60)
    batch_size: int = whole(least=1, default=8)
    patience: int = whole(least=1, default=20)


@dataclass(frozen=True, kw_only=True)
class PromptTuningSettings(GradientSettings):
    """Prompt Tuning (Lester et al., 2021).

    Attributes:
        length: L, in tokens: the words are repeated or cut to it, and without words tokens of the
            vocabulary are drawn. None takes the number of tokens of the words.
    """

    length: int | None = whole(least=1, optional=True)


@dataclass(frozen=True, kw_only=True)
class PrefixTuningSettings(GradientSettings):
    """P-Tuning v2 (Liu et al., 2022).

    Attributes:
        length: L, the number of keys and values before the row in every layer.
    """

    epochs: int = whole(least=1, default=15)
    patience: int = whole(least=1, default=6)
    length: int = whole(least=1, default=8)


@dataclass(frozen=True, kw_only=True)
class LoraSettings(GradientSettings):
    """LoRA (Hu et al., 2022), with an alpha of twice the rank.

    Attributes:
        rank: Of the change of each linear layer.
    """

    learning_rate: float = nonnegative(default=3e-4)
    epochs: int = whole(least=1, default=15)
    patience: int = whole(least=1, default=6)
    rank: int = whole(least=1, default=8)


@dataclass(frozen=True, kw_only=True)
class ModelTuningSettings(GradientSettings):
    """Model Tuning: all weights and a classification head."""

    # the highest of the three of Devlin et al. (2019)
    learning_rate: float = nonnegative(default=5e-5)
    epochs: int = whole(least=1, default=10)
    patience: int = whole(least=1, default=6)


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(GradientSettings):
    """A small network on the states of the frozen model.

    Attributes:
        width: Of its hidden layers.
        dropout: Between its layers, in training.
    """

    learning_rate: float = nonnegative(default=1e-3)
    epochs: int = whole(least=1, default=100)
    batch_size: int = whole(least=1, default=16)
    width: int = whole(least=1, default=128)
    dropout: float = nonnegative(default=0.1, below=1.0)
