"""Models that answer at once, a toy that inspects requests, and a small search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from lmaas_tune import (
    Budget,
    Capabilities,
    ScoreReply,
    ScoreRequest,
    Settings,
    Soft,
    Text,
    TunedPrompt,
    Tuner,
    Usage,
)
from lmaas_tune.backend import Inspection
from lmaas_tune.errors import InputError
from lmaas_tune.objectives import log_softmax
from lmaas_tune.prompts import DeepPrompt, FloatArray, Prompt, SoftPrompt
from lmaas_tune.settings import with_fields
from lmaas_tune.task import Batch
from lmaas_tune.testing.toy import ToyBackend

WIDTH = 3

TRAIN = [(f"{word} {n}", word) for word in ("good", "bad") for n in range(4)] + [
    ("neither", "good"),
    ("nor", "bad"),
]
VALIDATION = [(f"very {text}", label) for text, label in TRAIN[::2]]

SMALL = Settings(
    prompt=Soft(
        start="zero",
        prompt_length=2,
        projection="uniform",
        intrinsic_dim=4,
        alpha=1.0,
    ),
    optimizer="cma",
    optimizer_options={"population": 5},
    objective="cross_entropy",
    head="bias",
    head_words=300,
    averaged=1,
    validation_rows="select",
    selection="lowest-loss",
    score_start=True,
    budget=Budget(calls=26),
)
"""Every value stated, so that no test leans on a default."""

FIELDS = {"deep", *(f.name for kind in (Settings, Soft, Text) for f in fields(kind))}


def changed(base: Settings, **given: Any) -> Settings:
    """Settings with some fields changed, see `with_fields`."""
    return with_fields(base, given)


class Bowl:
    """A model whose accuracy grows as the mean of the prompt comes nearer to `OPTIMUM`.

    Attributes:
        asked: (digest of the prompt, digest of the batch) of every request, in order.
    """

    OPTIMUM = 0.7

    def __init__(self, *, width: int = WIDTH, identity: str = "bowl", **can: Any) -> None:
        self.identity = identity
        self.capabilities = Capabilities(
            soft_prompt_width=width, **{"label_anywhere": True, "text_prompts": True, **can}
        )
        self.asked: list[tuple[str, str]] = []
        self._affinities: dict[tuple[str, tuple[str, ...]], FloatArray] = {}

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.asked += [(r.prompt.digest, r.batch.digest) for r in requests]
        return [ScoreReply(self.logprobs(r), usage_of(r)) for r in requests]

    def logprobs(self, request: ScoreRequest) -> FloatArray:
        scores = self.gain(request.prompt) * self._affinity(request)
        return log_softmax(np.hstack([scores, np.zeros((len(scores), 1))]))[:, :-1]

    def gain(self, prompt: Prompt) -> float:
        """The factor of the logits, 4 at most."""
        return 4.0 / (1.0 + 4.0 * (mean_of(prompt) - self.OPTIMUM) ** 2)

    def _affinity(self, request: ScoreRequest) -> FloatArray:
        key = (request.batch.digest, request.candidates)
        if key not in self._affinities:
            self._affinities[key] = np.array(
                [[float(w.strip() in words_of(row)) for w in key[1]] for row in request.batch.rows]
            )
        return self._affinities[key]


class TellingBowl(Bowl):
    """A `Bowl` that states the cost of a request before the call."""

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        return Inspection(("a bowl says what it costs",), usage_of(request))


class WordBowl(Bowl):
    """A `Bowl` with word embeddings, so that a prompt can start from words."""

    embedding_std = 0.5
    vocabulary_size = 50

    def tokenize(self, text: str, /) -> tuple[int, ...]:
        return tuple(len(word) for word in text.split())

    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        width = self.capabilities.soft_prompt_width or 0
        return np.array([[i / 10] * width for i in token_ids], dtype=np.float32)


class Spoilt(Bowl):
    """A `Bowl` whose scores `spoil` changes by the number of earlier requests on the batch."""

    def __init__(self, spoil: Callable[[FloatArray, int], FloatArray], **can: Any) -> None:
        super().__init__(**can)
        self._spoil = spoil
        self._seen: dict[str, int] = {}

    def logprobs(self, request: ScoreRequest) -> FloatArray:
        before = self._seen.get(request.batch.digest, 0)
        self._seen[request.batch.digest] = before + 1
        return self._spoil(super().logprobs(request), before)


def mean_of(prompt: Prompt) -> float:
    """The mean vector of a prompt, on which a `Bowl` depends."""
    return float(prompt.vectors.mean()) if isinstance(prompt, SoftPrompt) else len(prompt.text) / 20


def words_of(row: tuple[Any, ...]) -> list[str]:
    """The words of a rendered row."""
    return [word for part in row if isinstance(part, str) for word in part.split()]


def usage_of(request: ScoreRequest) -> Usage:
    """One token a word and a prompt vector."""
    prompt = request.prompt.first if isinstance(request.prompt, DeepPrompt) else request.prompt
    length = prompt.length if isinstance(prompt, SoftPrompt) else 1
    words = sum(len(words_of(row)) + length for row in request.batch.rows)
    return Usage(requests=1, sequences=len(request.batch), tokens=words)


def small_tuner(backend: Any, *, settings: Settings = SMALL, **changes: Any) -> Tuner:
    """A tuner of `SMALL` settings; `changes` are for the settings or the tuner."""
    arguments = {
        name: changes.pop(name)
        for name, value in list(changes.items())
        if name in FIELDS and not (callable(value) or isinstance(value, SoftPrompt | TunedPrompt))
    }
    if "budget" in arguments and isinstance(arguments["budget"], str):
        arguments["budget"] = Budget.parse(arguments["budget"])
    others = {"template": "{text} {prompt} {label}", "callbacks": (), **changes}
    return Tuner(backend, settings=with_fields(settings, arguments), **others)


class InspectingToy(ToyBackend):
    """Names a row that is too long, and gives a note on each request."""

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        for number, row in enumerate(request.batch.rows, start=1):
            try:
                self.score([replace(request, batch=Batch((row,)))])
            except InputError as error:
                raise InputError(f"row {number}: {error}") from error
        (answer,) = self.score([request])
        return Inspection(("a word is odd",), answer.usage)
