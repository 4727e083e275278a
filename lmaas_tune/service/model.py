"""The served model: it registers batches and subspaces of each key, inspects them, makes jobs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from lmaas_tune.backend import (
    Backend,
    Capabilities,
    Inspection,
    Inspects,
    KnowsWords,
    ScoreRequest,
    Usage,
)
from lmaas_tune.prompts import FloatArray, Prompt, SoftPrompt, Subspace, TextPrompt
from lmaas_tune.service import bodies, wire
from lmaas_tune.service.batches import (
    OBJECT_BYTES,
    RegisteredBatch,
    check_slots,
    most_tokens,
    short_id,
)
from lmaas_tune.service.errors import ApiError, too_large
from lmaas_tune.service.fair_pool import FairPool
from lmaas_tune.service.lru_cache import LRUStore
from lmaas_tune.service.scheduler import Job
from lmaas_tune.service.subspaces import DrawnSubspaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic import TypeAdapter

    from lmaas_tune.service.keys import Key
    from lmaas_tune.service.server_limits import ServerLimits

T = TypeVar("T")


class ServedModel:
    """A backend, and the batches and subspaces that each key registered.

    Args:
        backend: Computes the scores.
        limits: Larger requests are refused.
        keys: Names of all keys.

    Attributes:
        limits: As given.
        digest: Of the backend's identity.
        drawn: p0 and A of the subspaces.
        reading: The threads that read bodies and inspect rows.
        drawing: The thread that draws subspaces, one at a time.
    """

    def __init__(self, backend: Backend, limits: ServerLimits, keys: Iterable[str]) -> None:
        self._backend, self.limits = backend, limits
        self.digest = wire.model_digest(backend.identity)
        self.drawn = DrawnSubspaces(backend, limits)
        self._batches: dict[str, LRUStore[RegisteredBatch]] = {}
        self._subspaces: dict[str, LRUStore[Subspace]] = {}
        for key in keys:
            self._batches[key] = LRUStore(count=limits.batches, size=limits.batch_bytes)
            self._subspaces[key] = LRUStore(count=limits.subspaces, size=limits.batch_bytes)
        self.reading = FairPool("read", threads=4, most=limits.queue, limit="queue")
        self.drawing = FairPool("draw", threads=1, most=limits.draws, limit="draws")

    @property
    def registered_bytes(self) -> int:
        """Memory of the registered batches and subspaces of all keys."""
        batches = sum(store.taken for store in self._batches.values())
        return batches + sum(store.taken for store in self._subspaces.values())

    def stop(self) -> None:
        """Start no more tasks, and end the drawing that runs."""
        self.reading.stop()
        self.drawing.stop()

    def close(self) -> None:
        """Return when no task runs."""
        self.reading.close()
        self.drawing.close()

    def describe(self, key: Key) -> wire.ModelAnswer:
        """The model, the service's limits and this key's quota."""
        limits = self.limits.model_dump() | key.quota.model_dump() | {"rows": self._most_rows}
        return wire.ModelAnswer(
            protocol=wire.PROTOCOL,
            identity=self._backend.identity,
            capabilities=wire.CapabilitiesAnswer.of(self._capabilities),
            limits=wire.decode(wire.LimitsAnswer, limits),
        )

    def words(self) -> wire.WordsAnswer:
        """The words that a head may read; empty if the backend knows none."""
        backend = self._backend
        known = backend.one_token_words() if isinstance(backend, KnowsWords) else ()
        return wire.WordsAnswer(words=list(known))

    def add_batch(self, key: Key, content: bytes) -> wire.BatchAnswer:
        """Register rows and label words, given as JSON, for a key.

        They are inspected as far as that is possible without a prompt.

        Raises:
            ApiError: The content is no batch, or too large.
            InputError: The model cannot read it.
        """
        body = self._read(bodies.BATCH, content)
        batch, candidates = body.batch(), tuple(body.candidates)
        _check(len(batch), self._most_rows, "rows")
        _check(len(candidates), self.limits.candidates, "candidates")
        check_slots(batch)
        found = self._inspect(ScoreRequest(self._shortest_prompt(), batch, candidates))
        tokens = found.usage.tokens or most_tokens(batch, candidates)
        registered = RegisteredBatch(batch, candidates, tokens)
        _check(registered.size, self.limits.batch_bytes, "batch_bytes")
        name = short_id(batch.digest, json.dumps(candidates))
        self._batches[key.name].put(name, registered, registered.size)
        return wire.BatchAnswer(id=name, notes=list(found.notes))

    def read_subspace(self, _: Key, content: bytes) -> tuple[Subspace, SoftPrompt | None]:
        """A subspace described as JSON, and its p0 if it is drawn already.

        Raises:
            ApiError: The content is no subspace, or too large.
            MalformedError: The vectors of its p0 are no numbers.
            InputError: No model has this subspace.
        """
        body = self._read(bodies.SUBSPACE, content)
        _check(body.dim, self.limits.dimensions, "dimensions")
        _check(body.length or 1, self.limits.prompt_length, "prompt_length")
        _check(len(body.words), self.limits.prompt_characters, "prompt_characters")
        subspace = body.subspace()
        return subspace, self.drawn.start(subspace)

    def add_subspace(self, key: Key, subspace: Subspace, start: SoftPrompt) -> wire.SubspaceAnswer:
        """Register the description of a subspace with this p0 for a key."""
        size = OBJECT_BYTES + subspace.start_bytes + sys.getsizeof(subspace.words)
        name = short_id(subspace.digest)
        self._subspaces[key.name].put(name, subspace, size)
        return wire.SubspaceAnswer(id=name, length=start.length, width=start.width)

    def inspect(self, key: Key, batch: str, content: bytes) -> wire.InspectAnswer:
        """The cost of scoring under a prompt, given as JSON.

        Raises:
            ApiError: The content is no prompt or too long, or something is not registered.
            MalformedError: Its vectors are no numbers.
            InputError: The model cannot score it.
        """
        body = self._read(bodies.INSPECT, content)
        registered = self._registered(key, batch)
        if isinstance(body, wire.PointBody):
            subspace = self._subspace(key, body.subspace)
            prompt = self._point_prompt(subspace, np.zeros(subspace.dim, np.float32))
        else:
            prompt = self._checked(body.prompt())
        found = self._inspect(ScoreRequest(prompt, registered.batch, registered.candidates))
        return wire.InspectAnswer(
            notes=list(found.notes),
            tokens=found.usage.tokens,
            sequences=len(registered.batch),
        )

    def score_point(self, key: Key, batch: str, subspace: str, content: bytes) -> Job:
        """A job for z in a registered subspace.

        Raises:
            ApiError: Something is not registered.
            MalformedError: z is not d numbers.
        """
        registered = self._registered(key, batch)
        described = self._subspace(key, subspace)
        point = wire.point(content, described.dim)
        start = _known(self.drawn.start(described), "subspace")

        def prepare() -> ScoreRequest:
            prompt = self._point_prompt(self._subspace(key, subspace), point)
            return self._request(key, batch, prompt)

        return _job(key, registered, start.length, prepare)

    def read_prompt(self, content: bytes) -> SoftPrompt | TextPrompt:
        """A prompt from JSON.

        Raises:
            ApiError: The content is no prompt.
            MalformedError: Its vectors are no numbers.
            InputError: No model takes it.
        """
        return self._read(bodies.PROMPT, content).prompt()

    def score_prompt(self, key: Key, batch: str, prompt: SoftPrompt | TextPrompt) -> Job:
        """A job for a prompt.

        Raises:
            ApiError: The batch is not registered, or the prompt is too long.
        """
        registered, checked = self._registered(key, batch), self._checked(prompt)
        return _job(
            key, registered, checked.most_tokens, lambda: self._request(key, batch, checked)
        )

    def _request(self, key: Key, batch: str, prompt: Prompt) -> ScoreRequest:
        registered = self._registered(key, batch)
        return ScoreRequest(prompt, registered.batch, registered.candidates)

    def _read(self, kind: TypeAdapter[T], content: bytes) -> T:
        values = 256 * self.limits.rows + self.limits.candidates
        return bodies.read(kind, content, values=values)

    @property
    def _capabilities(self) -> Capabilities:
        """Those of the backend, with the service's own limit of words."""
        can, limit = self._backend.capabilities, self.limits.candidates
        most = limit if can.words_per_request is None else min(limit, can.words_per_request)
        return replace(can, words_per_request=most)

    @property
    def _most_rows(self) -> int:
        """Most rows of one batch: no more than the model takes in one call."""
        return min(self.limits.rows, self._backend.capabilities.rows_per_call or self.limits.rows)

    def _registered(self, key: Key, name: str) -> RegisteredBatch:
        return _known(self._batches[key.name].get(name), "batch")

    def _subspace(self, key: Key, name: str) -> Subspace:
        return _known(self._subspaces[key.name].get(name), "subspace")

    def _point_prompt(self, subspace: Subspace, point: FloatArray) -> Prompt:
        return _known(self.drawn.prompt(subspace, point), "subspace")

    def _checked(self, prompt: Prompt) -> Prompt:
        if prompt.words is None:
            _check(prompt.most_tokens, self.limits.prompt_length, "prompt_length")
        else:
            _check(len(prompt.words), self.limits.prompt_characters, "prompt_characters")
        return prompt

    def _shortest_prompt(self) -> Prompt:
        can = self._backend.capabilities
        if can.text_prompts:
            return TextPrompt("")
        insertion = min(can.insertions)
        anchor = (0,) if insertion == "add" else ()
        return SoftPrompt(np.zeros((1, can.soft_prompt_width or 1)), insertion, anchor)

    def _inspect(self, request: ScoreRequest) -> Inspection:
        if isinstance(self._backend, Inspects):
            return self._backend.inspect(request)
        return Inspection(usage=Usage(sequences=len(request.batch)))


def _job(
    key: Key, registered: RegisteredBatch, length: int, prepare: Callable[[], ScoreRequest]
) -> Job:
    """A job for rows under a prompt of at most `length` tokens."""
    rows = len(registered.batch)
    tokens = registered.tokens + rows * length
    return Job(key=key.name, rows=rows, tokens=tokens, prepare=prepare)


def _check(value: int, limit: int, name: str) -> None:
    if value > limit:
        raise too_large(name.replace("_", " "), value, limit, name)


def _known(found: T | None, noun: str) -> T:
    """The value, if it is stored."""
    if found is None:
        raise ApiError(
            f"unknown_{noun}", f"this {noun} is not registered, or was dropped: register it again"
        )
    return found
