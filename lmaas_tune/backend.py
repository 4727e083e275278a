"""`Backend`: the interface of a model provider, with its requests, replies and extensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from lmaas_tune.capabilities import Capabilities, Embeds, FloatArray, KnowsWords, Speedup
from lmaas_tune.prompts.base import Prompt
from lmaas_tune.task import Batch
from lmaas_tune.usage import Usage


@dataclass(frozen=True)
class ScoreRequest:
    """A request to score every candidate word in the label slot of every row, with one prompt.

    Attributes:
        prompt: The prompt for the ``{prompt}`` slot.
        batch: The rows. The same batch is scored many times: cache token ids, or keys and values,
            by its digest.
        candidates: Label words, as the user wrote them, then words that the head reads, if
            `Capabilities.words_per_request` allows it.
    """

    prompt: Prompt
    batch: Batch
    candidates: tuple[str, ...]

    @property
    def characters(self) -> int:
        """Estimated length: all texts, with a vector of the prompt as four characters."""
        return self.batch.characters + self.prompt.characters * len(self.batch)

    def cut(self, rows: int | None) -> list[ScoreRequest]:
        """Split into requests of at most `rows` rows each, in order; None does not split."""
        batches = [self.batch] if rows is None else self.batch.cut(rows)
        return [replace(self, batch=batch) for batch in batches]


@dataclass(frozen=True)
class ScoreReply:
    """Answer to one `ScoreRequest`.

    Attributes:
        logprobs: (rows, candidates) float64; summed log-probabilities of the candidate's tokens,
            normalised over the model's whole vocabulary; <= 0 and finite, or NaN if the model
            overflowed on a prompt, which the search then ignores.
        usage: Usage of this request.
        bounds: How many of the log-probabilities are upper bounds or guesses, because the
            provider did not return those of the word.
    """

    logprobs: FloatArray
    usage: Usage = field(default_factory=Usage)
    bounds: int = 0


class Backend(Protocol):
    """A black box that scores label words: the interface that an adapter implements.

    Attributes:
        identity: Names the model, its revision, and every setting that changes answers. Backends
            that may answer differently have different identities, because it is part of every
            cache key. It contains no secret.
        capabilities: Its capabilities.
    """

    @property
    def identity(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """Answer every request, in order; usually a whole generation of prompts.

        One space before a slot belongs to its content: for ``"It was {label}"`` the model reads
        ``"It was"`` and scores ``" great"``. The space before ``{prompt}`` is the first character
        of a text prompt, and is dropped before a soft one. Other whitespace (a line break) is
        unchanged.

        A backend waits for other services at most `lmaas_tune.calls.deadline.left()` seconds.
        Its errors report the cost of failed calls by `usage` and `usage_unknown`.

        Raises:
            TransientError: A temporary failure, which the client retries.
            PermanentError: A lasting failure.
            InputError: A request outside the capabilities (a prompt of a wrong width or
                insertion, a row or prompt too long); the message names the fault.
        """
        ...


@dataclass(frozen=True)
class Inspection:
    """Facts about a request that a backend knows without answering it.

    Attributes:
        notes: Notes for the user: a label word of several tokens, an unusual first token, two
            words that share their first token. Empty if there are none.
        usage: Estimated usage of the answer.
    """

    notes: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)


@runtime_checkable
class Inspects(Protocol):
    """Optional interface of a backend: checks a request and estimates its cost, for free."""

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        """Inspect a request without a paid call.

        Raises:
            InputError: The request cannot be scored: a row or prompt is too long (the message
                numbers rows from 1), or label words have the same tokens.
        """
        ...


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the inputs of a model's layers.

    Attributes:
        stds: (deep_layers - 1,) standard deviation of the inputs of each layer above the first,
            over all positions of the rows, after five rounds of clipping at mean ± 3 standard
            deviations, because a few activations are far larger than all others.
        usage: Usage of the measurement.
    """

    stds: FloatArray
    usage: Usage = field(default_factory=Usage)


@runtime_checkable
class Measures(Protocol):
    """Optional interface of a backend with deep prompts: measures the scale of each layer."""

    def measure(self, request: ScoreRequest, /) -> Spread:
        """Measure the inputs of the layers on any number of a request's rows.

        Raises:
            TransientError: A temporary failure, which the client retries.
            PermanentError: A lasting failure.
            InputError: A request outside the capabilities.
        """
        ...


__all__ = [
    "Backend",
    "Capabilities",
    "Embeds",
    "Inspection",
    "Inspects",
    "KnowsWords",
    "Measures",
    "ScoreReply",
    "ScoreRequest",
    "Speedup",
    "Spread",
    "Usage",
]
