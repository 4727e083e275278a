"""The model that is served: what clients register with it, inspect, and ask of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lmaas_tune.backend import Backend, Inspection, Inspects, ScoreRequest, Usage
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray, Prompt, SoftPrompt, Subspace, TextPrompt
from lmaas_tune.service import wire
from lmaas_tune.service.bounds import Bounds
from lmaas_tune.service.keys import Key
from lmaas_tune.service.refusal import RefusalError, too_large
from lmaas_tune.service.scheduler import Job
from lmaas_tune.service.shelf import Shelf
from lmaas_tune.service.subspaces import DrawnSubspaces
from lmaas_tune.task import Batch, Slot

T = TypeVar("T")


@dataclass(frozen=True)
class Registered:
    """Rows and the label words to score in them."""

    batch: Batch
    candidates: tuple[str, ...]


class Model:
    """A backend, and what each key registered with it.

    Args:
        backend: Scores.
        bounds: What is refused above.
        keys: Names of all keys.

    Attributes:
        bounds: As given.
        drawn: The subspaces' p0 and A.
    """

    def __init__(self, backend: Backend, bounds: Bounds, keys: Iterable[str]) -> None:
        self._backend, self.bounds = backend, bounds
        self.drawn = DrawnSubspaces(backend, bounds)
        self._batches: dict[str, Shelf[Registered]] = {}
        self._subspaces: dict[str, Shelf[Subspace]] = {}
        for key in keys:
            self._batches[key] = Shelf(count=bounds.batches, size=bounds.batch_bytes)
            self._subspaces[key] = Shelf(count=bounds.subspaces, size=bounds.batch_bytes)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="aside")

    async def aside(self, work: Callable[[], T]) -> T:
        """Do what takes time, and is not scoring, in a thread beside."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Finish what is done aside."""
        self._threads.shutdown()

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

    def add_batch(self, key: Key, body: wire.BatchBody, size: int) -> wire.BatchAnswer:
        """Keep rows and label words that came in so many bytes, for a key.

        They are inspected as far as that goes without a prompt.

        Raises:
            RefusalError: There are too many.
            InputError: The model cannot read them.
        """
        batch, candidates = body.batch(), tuple(body.candidates)
        _check(len(batch), self._rows, "rows")
        _check(len(candidates), self.bounds.candidates, "candidates")
        _check_slots(batch)
        notes = self._inspect(ScoreRequest(self._no_prompt(), batch, candidates)).notes
        name = wire.short_id(batch.digest, json.dumps(candidates))
        self._batches[key.name].put(name, Registered(batch, candidates), size)
        return wire.BatchAnswer(id=name, notes=list(notes))

    def add_subspace(self, key: Key, body: wire.SubspaceBody, size: int) -> wire.SubspaceAnswer:
        """Keep a subspace whose description came in so many bytes, for a key, and draw it.

        Raises:
            RefusalError: It is too large.
            InputError: The model has no such subspace.
        """
        _check(body.dim, self.bounds.dimensions, "dimensions")
        _check(body.length or 1, self.bounds.prompt_length, "prompt_length")
        _check(len(body.words), self.bounds.prompt_characters, "prompt_characters")
        subspace = body.subspace()
        start = self.drawn.start(subspace)
        name = wire.short_id(subspace.digest)
        self._subspaces[key.name].put(name, subspace, size)
        return wire.SubspaceAnswer(id=name, length=start.length, width=start.width)

    def inspect(
        self, key: Key, batch: str, body: wire.TextBody | wire.SoftBody | wire.PointBody
    ) -> wire.InspectAnswer:
        """What scoring would take.

        Raises:
            RefusalError: Something is not registered, or too long.
            InputError: The model cannot score it.
        """
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
        rows = len(self._registered(key, batch).batch)
        point = wire.point(content, self._subspace(key, subspace).dim)

        def prepare() -> ScoreRequest:
            prompt = self._point_prompt(self._subspace(key, subspace), point)
            registered = self._registered(key, batch)
            return ScoreRequest(prompt, registered.batch, registered.candidates)

        return Job(key=key.name, rows=rows, size=len(content), prepare=prepare)

    def score_prompt(self, key: Key, batch: str, prompt: Prompt, size: int) -> Job:
        """A job for a prompt that came in so many bytes.

        Raises:
            RefusalError: The batch is not registered, or the prompt is too long.
        """
        rows = len(self._registered(key, batch).batch)
        checked = self._checked(prompt)

        def prepare() -> ScoreRequest:
            registered = self._registered(key, batch)
            return ScoreRequest(checked, registered.batch, registered.candidates)

        return Job(key=key.name, rows=rows, size=size, prepare=prepare)

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

    def _checked(self, prompt: Prompt) -> Prompt:
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


def _check(value: int, bound: int, name: str) -> None:
    if value > bound:
        raise too_large(name.replace("_", " "), value, bound, name)


def _check_slots(batch: Batch) -> None:
    for number, row in enumerate(batch.rows, start=1):
        if row.count(Slot.LABEL) != 1 or row.count(Slot.PROMPT) > 1:
            raise InputError(
                f"row {number} has {row.count(Slot.LABEL)} label slots and "
                f"{row.count(Slot.PROMPT)} prompt slots: it takes one label, and one prompt at most"
            )


def _unknown_subspace() -> RefusalError:
    return RefusalError(
        "unknown_subspace", "this subspace is not registered, or no longer: do it again"
    )
