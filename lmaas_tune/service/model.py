"""The model that is served: what clients register with it, inspect, and ask of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter

from lmaas_tune.backend import Backend, Inspection, Inspects, ScoreRequest, Usage
from lmaas_tune.prompts import FloatArray, Prompt, SoftPrompt, Subspace, TextPrompt
from lmaas_tune.service import wire
from lmaas_tune.service.aside import Aside
from lmaas_tune.service.batches import OBJECT, Registered, check_slots, most_tokens
from lmaas_tune.service.bounds import Bounds
from lmaas_tune.service.keys import Key
from lmaas_tune.service.refusal import RefusalError, too_large
from lmaas_tune.service.scheduler import Job
from lmaas_tune.service.shelf import Shelf
from lmaas_tune.service.subspaces import DrawnSubspaces

T = TypeVar("T")


class Model:
    """A backend, and what each key registered with it.

    Args:
        backend: Scores.
        bounds: What is refused above.
        keys: Names of all keys.

    Attributes:
        bounds: As given.
        drawn: The subspaces' p0 and A.
        aside: Where bodies are read and rows inspected.
        draws: Where subspaces are drawn, one at a time.
    """

    def __init__(self, backend: Backend, bounds: Bounds, keys: Iterable[str]) -> None:
        self._backend, self.bounds = backend, bounds
        self.drawn = DrawnSubspaces(backend, bounds)
        self._batches: dict[str, Shelf[Registered]] = {}
        self._subspaces: dict[str, Shelf[Subspace]] = {}
        for key in keys:
            self._batches[key] = Shelf(count=bounds.batches, size=bounds.batch_bytes)
            self._subspaces[key] = Shelf(count=bounds.subspaces, size=bounds.batch_bytes)
        self.aside = Aside("aside", threads=4, most=bounds.queue, bound="queue")
        self.draws = Aside("draw", threads=1, most=bounds.draws, bound="draws")

    @property
    def registered_bytes(self) -> int:
        """Memory that the registered batches and subspaces of all keys take."""
        batches = sum(shelf.taken for shelf in self._batches.values())
        return batches + sum(shelf.taken for shelf in self._subspaces.values())

    def stop(self) -> None:
        """Begin nothing aside any more, and end the drawing that is under way."""
        self.aside.stop()
        self.draws.stop()

    def close(self) -> None:
        """Return when nothing is done aside any more."""
        self.aside.close()
        self.draws.close()

    def describe(self, key: Key) -> wire.ModelAnswer:
        """What is served, and what this key may use."""
        bounds, can = self.bounds, self._backend.capabilities
        return wire.ModelAnswer(
            protocol=wire.PROTOCOL,
            identity=self._backend.identity,
            capabilities=wire.CapabilitiesAnswer.of(can),
            limits=wire.LimitsAnswer(
                body_bytes=bounds.body_bytes,
                rows=self._rows,
                candidates=bounds.candidates,
                prompt_length=bounds.prompt_length,
                prompt_characters=bounds.prompt_characters,
                dimensions=bounds.dimensions,
                subspace_bytes=bounds.subspace_bytes,
                requests=key.limits.requests,
                tokens=key.limits.tokens,
                concurrent=key.limits.concurrent,
            ),
        )

    def add_batch(self, key: Key, content: bytes) -> wire.BatchAnswer:
        """Keep rows and label words, as JSON, for a key.

        They are inspected as far as that goes without a prompt.

        Raises:
            RefusalError: They are none, or too many.
            InputError: The model cannot read them.
        """
        body = self._read(wire.BATCH, content)
        batch, candidates = body.batch(), tuple(body.candidates)
        _check(len(batch), self._rows, "rows")
        _check(len(candidates), self.bounds.candidates, "candidates")
        check_slots(batch)
        found = self._inspect(ScoreRequest(self._no_prompt(), batch, candidates))
        tokens = found.usage.tokens or most_tokens(batch, candidates)
        registered = Registered(batch, candidates, tokens)
        _check(registered.size, self.bounds.batch_bytes, "batch_bytes")
        name = wire.short_id(batch.digest, json.dumps(candidates))
        self._batches[key.name].put(name, registered, registered.size)
        return wire.BatchAnswer(id=name, notes=list(found.notes))

    def read_subspace(self, content: bytes) -> tuple[Subspace, SoftPrompt | None]:
        """A subspace described as JSON, and its p0 where it is drawn already.

        Raises:
            RefusalError: It is none, or too large.
            InputError: It is none that a model has.
        """
        body = self._read(wire.SUBSPACE, content)
        _check(body.dim, self.bounds.dimensions, "dimensions")
        _check(body.length or 1, self.bounds.prompt_length, "prompt_length")
        _check(len(body.words), self.bounds.prompt_characters, "prompt_characters")
        subspace = body.subspace()
        return subspace, self.drawn.kept(subspace)

    def add_subspace(self, key: Key, subspace: Subspace, start: SoftPrompt) -> wire.SubspaceAnswer:
        """Keep the description of a subspace with this p0 for a key."""
        own = subspace.start.vectors.nbytes if isinstance(subspace.start, SoftPrompt) else 0
        size = OBJECT + own + sys.getsizeof(subspace.words)
        name = wire.short_id(subspace.digest)
        self._subspaces[key.name].put(name, subspace, size)
        return wire.SubspaceAnswer(id=name, length=start.length, width=start.width)

    def inspect(self, key: Key, batch: str, content: bytes) -> wire.InspectAnswer:
        """What scoring under a prompt, as JSON, would take.

        Raises:
            RefusalError: It is none, or something is not registered, or too long.
            InputError: The model cannot score it.
        """
        body = self._read(wire.INSPECT, content)
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
            RefusalError: Something is not registered, or z is no d numbers.
        """
        registered = self._registered(key, batch)
        described = self._subspace(key, subspace)
        point = wire.point(content, described.dim)
        start = self.drawn.kept(described)
        if start is None:
            raise _unknown_subspace()

        def prepare() -> ScoreRequest:
            prompt = self._point_prompt(self._subspace(key, subspace), point)
            return self._request(key, batch, prompt)

        return _job(key, registered, start.length, prepare)

    def read_prompt(self, content: bytes) -> SoftPrompt | TextPrompt:
        """A prompt from JSON.

        Raises:
            RefusalError: It is none.
            InputError: It is one that no model takes.
        """
        return self._read(wire.PROMPT, content).prompt()

    def score_prompt(self, key: Key, batch: str, prompt: SoftPrompt | TextPrompt) -> Job:
        """A job for a prompt.

        Raises:
            RefusalError: The batch is not registered, or the prompt is too long.
        """
        registered, checked = self._registered(key, batch), self._checked(prompt)
        length = len(checked.text.encode()) if isinstance(checked, TextPrompt) else checked.length
        return _job(key, registered, length, lambda: self._request(key, batch, checked))

    def _request(self, key: Key, batch: str, prompt: Prompt) -> ScoreRequest:
        registered = self._registered(key, batch)
        return ScoreRequest(prompt, registered.batch, registered.candidates)

    def _read(self, kind: TypeAdapter[T], content: bytes) -> T:
        return wire.read(kind, content, values=256 * self.bounds.rows + self.bounds.candidates)

    @property
    def _rows(self) -> int:
        """Most rows of one batch: a model that takes fewer a call gets no more."""
        return min(self.bounds.rows, self._backend.capabilities.rows_per_call or self.bounds.rows)

    def _registered(self, key: Key, name: str) -> Registered:
        found = self._batches[key.name].get(name)
        if found is None:
            raise RefusalError(
                "unknown_batch", "this batch is not registered, or no longer: do it again"
            )
        return found

    def _subspace(self, key: Key, name: str) -> Subspace:
        found = self._subspaces[key.name].get(name)
        if found is None:
            raise _unknown_subspace()
        return found

    def _point_prompt(self, subspace: Subspace, point: FloatArray) -> Prompt:
        prompt = self.drawn.prompt(subspace, point)
        if prompt is None:
            raise _unknown_subspace()
        return prompt

    def _checked(self, prompt: SoftPrompt | TextPrompt) -> SoftPrompt | TextPrompt:
        if isinstance(prompt, SoftPrompt):
            _check(prompt.length, self.bounds.prompt_length, "prompt_length")
        if isinstance(prompt, TextPrompt):
            _check(len(prompt.text), self.bounds.prompt_characters, "prompt_characters")
        return prompt

    def _no_prompt(self) -> Prompt:
        """The least that can stand in a row."""
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


def _job(key: Key, registered: Registered, length: int, prepare: Callable[[], ScoreRequest]) -> Job:
    """A job for rows under a prompt of so many tokens at most."""
    rows = len(registered.batch)
    tokens = registered.tokens + rows * length
    return Job(key=key.name, rows=rows, tokens=tokens, prepare=prepare)


def _check(value: int, bound: int, name: str) -> None:
    if value > bound:
        raise too_large(name.replace("_", " "), value, bound, name)


def _unknown_subspace() -> RefusalError:
    return RefusalError(
        "unknown_subspace", "this subspace is not registered, or no longer: do it again"
    )
