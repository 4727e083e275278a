"""What a provider must do, and nothing else: `Backend`, and the values that cross its wall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from lmaas_tune.capabilities import Capabilities, Embeds, FloatArray, Speedup
from lmaas_tune.prompts.base import Prompt
from lmaas_tune.task import Batch
from lmaas_tune.usage import Usage


@dataclass(frozen=True)
class ScoreRequest:
    """Score every candidate word in the label's place of every row, under one prompt.

    Attributes:
        prompt: Stands in the rows' ``{prompt}`` slot.
        batch: The rows. The same batch comes again and again: key what is worth keeping
            (token ids, keys and values) by its digest.
        candidates: Label words, as the user wrote them.
    """

    prompt: Prompt
    batch: Batch
    candidates: tuple[str, ...]

    @property
    def characters(self) -> int:
        """How much is read, roughly: all texts, and a vector of the prompt as four characters."""
        return self.batch.characters + self.prompt.characters * len(self.batch)

    def cut(self, rows: int | None) -> list[ScoreRequest]:
        """Requests for at most so many rows each, in order; None does not cut."""
        batches = [self.batch] if rows is None else self.batch.cut(rows)
        return [replace(self, batch=batch) for batch in batches]


@dataclass(frozen=True)
class ScoreReply:
    """Answer to one `ScoreRequest`.

    Attributes:
        logprobs: (rows, candidates) float64; log-probability of the candidate's tokens, summed,
            normalised over the model's whole vocabulary; <= 0 and finite, but NaN where the
            model itself overflowed on a prompt: the search then goes on without that one.
        usage: What this request took.
        bounds: How many of the log-probabilities are not the model's own, but an upper bound or
            a guess, because the provider did not tell the word's.
    """

    logprobs: FloatArray
    usage: Usage = field(default_factory=Usage)
    bounds: int = 0


class Backend(Protocol):
    """A black box that scores label words. This is all that an adapter has to write.

    Attributes:
        identity: Names the model, its revision, and every setting that changes answers. Two
            backends that may answer differently have different identities: it is part of
            every cache key. Never a secret in it.
        capabilities: What it can do.
    """

    @property
    def identity(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """Answer every request, in order; a whole generation of prompts comes at once.

        One space before a slot belongs to what fills it: in ``"It was {label}"`` the model
        reads ``"It was"`` and scores ``" great"``; the space before ``{prompt}`` is the first
        character of a text prompt, and falls away before a soft one. Other whitespace (a line
        break) stays where it is.

        A backend that waits for others does so at most `lmaas_tune.calls.deadline.left()`
        seconds. What it raises says by `usage` and `usage_unknown` what was paid all the same.

        Raises:
            TransientError: May pass; the client tries again.
            PermanentError: Will not pass.
            InputError: A request that the capabilities do not cover (a prompt of the wrong
                width or insertion, a row or prompt too long), naming what is wrong.
        """
        ...


@dataclass(frozen=True)
class Inspection:
    """What a backend can say of a request without answering it.

    Attributes:
        notes: Sentences a user should read: a label word of several tokens, an odd first piece,
            two words that begin with the same token. None if all is well.
        usage: What answering will take, as far as it is known.
    """

    notes: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)


@runtime_checkable
class Inspects(Protocol):
    """What a backend can add, so that trouble and the bill are known before the first call."""

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        """Look at a request, for nothing.

        Raises:
            InputError: The request cannot be scored: a row or prompt too long (the row is
                named by its number, from 1), label words that are the same to the model.
        """
        ...


@dataclass(frozen=True)
class Spread:
    """How widely spread the numbers are that enter a model's layers.

    Attributes:
        stds: (deep_layers - 1,) standard deviation of what enters each layer above the first, at
            all places of the rows, after five rounds of clipping at the mean ± 3 of it: a few
            numbers of a model's states are far larger than all others.
        usage: What measuring took.
    """

    stds: FloatArray
    usage: Usage = field(default_factory=Usage)


@runtime_checkable
class Measures(Protocol):
    """What a backend with deep prompts can add, so that each layer is searched on its own scale."""

    def measure(self, request: ScoreRequest, /) -> Spread:
        """Read rows of a request, as many as it likes, and tell how its layers' inputs spread.

        Raises:
            TransientError: May pass; the client tries again.
            PermanentError: Will not pass.
            InputError: A request that the capabilities do not cover.
        """
        ...


__all__ = [
    "Backend",
    "Capabilities",
    "Embeds",
    "Inspection",
    "Inspects",
    "Measures",
    "ScoreReply",
    "ScoreRequest",
    "Speedup",
    "Spread",
    "Usage",
]
