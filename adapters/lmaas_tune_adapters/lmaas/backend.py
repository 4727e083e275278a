"""The backend `lmaas`: registers batches and subspaces with our service, and requests scores."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from lmaas_tune.backend import Inspection, ScoreReply, ScoreRequest, Usage
from lmaas_tune.calls.retry import Retry
from lmaas_tune.errors import InputError, TransientError
from lmaas_tune.prompts import FloatArray, PointPrompt, Prompt, SoftPrompt, Subspace, TextPrompt
from lmaas_tune_adapters.http import Endpoint, Key, RefusedError, joined
from lmaas_tune_adapters.lmaas.service import Registered, Service

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Hashable, Iterator, Sequence

T = TypeVar("T")

_FREE = Retry(attempts=5, first_wait=0.1, total=120.0)
"""For requests that cost nothing, which no client retries."""


class LMaaSBackend:
    """A model that `lmaas-tune serve` runs, here or elsewhere.

    Rows, label words and subspaces are registered with the service at their first use; after that,
    a call for a `PointPrompt` sends z alone. After a restart of the service they are registered
    again.

    Args:
        url: The address of the service.
        api_key_file: A file that holds one of its keys; without it, the environment variable
            LMAAS_API_KEY is used, or no key.
        timeout: Longest seconds of one request.

    Raises:
        InputError: The URL is none, or the file holds no key.
        PermanentError: No service of lmaas-tune answers there, or it refuses the key.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key_file: str | os.PathLike[str] | None = None,
        timeout: float = 120.0,
    ) -> None:
        key = Key.find(file=api_key_file, variable="LMAAS_API_KEY")
        self._service = Service(Endpoint(url, key=key, timeout=timeout))
        self._model = _FREE.run(self._service.model)
        self._registry = _Registry()
        self.identity = f"lmaas {self._model.identity}"
        self.capabilities = self._model.capabilities

    def one_token_words(self) -> Sequence[str]:
        """See `lmaas_tune.capabilities.KnowsWords`."""
        return _FREE.run(self._service.words)

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """See `lmaas_tune.backend.Backend.score`; one request after the other."""
        scored = (self._registered_again(self._score, request) for request in requests)
        replies, _ = joined((reply, reply.usage) for reply in scored)
        return replies

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        """See `lmaas_tune.backend.Inspects`."""
        notes: dict[str, None] = {}
        usage = Usage()
        parts = request.batch.cut(self.capabilities.rows_per_call or len(request.batch))
        for number, part in enumerate(parts):
            found = self._inspect_part(replace(request, batch=part), number, len(parts))
            notes |= dict.fromkeys(found.notes)
            usage += found.usage
        return Inspection(tuple(notes), usage)

    def _inspect_part(self, request: ScoreRequest, number: int, count: int) -> Inspection:
        try:
            return _FREE.run(lambda: self._registered_again(self._inspect, request))
        except InputError as error:
            if count == 1:
                raise
            first = number * (self.capabilities.rows_per_call or 0)
            raise InputError(f"of the rows after {first}: {error}") from error

    def _score(self, request: ScoreRequest) -> ScoreReply:
        found, usage = joined(self._scored(request))
        return ScoreReply(found[-1], usage)

    def _scored(self, request: ScoreRequest) -> Iterator[tuple[FloatArray, Usage]]:
        """The usage of each registration, with no scores; then the scores and their usage."""
        batch, prompt = self._batch(request), request.prompt
        shape, nothing = (len(request.batch), len(request.candidates)), np.zeros(0)
        yield nothing, batch.usage
        if isinstance(prompt, PointPrompt):
            subspace = self._subspace(prompt.subspace)
            yield nothing, subspace.usage
            reply = self._service.score_point(batch.id, subspace.id, prompt.point, shape=shape)
        else:
            reply = self._service.score(batch.id, _sendable(prompt), shape=shape)
        yield reply.logprobs, reply.usage

    def _inspect(self, request: ScoreRequest) -> Inspection:
        batch, prompt = self._batch(request), request.prompt
        if isinstance(prompt, PointPrompt):
            subspace = self._subspace(prompt.subspace)
            return self._service.inspect(batch.id, None, subspace=subspace.id)
        return self._service.inspect(batch.id, _sendable(prompt))

    def _batch(self, request: ScoreRequest) -> Registered:
        most = self._model.candidates
        if len(request.candidates) > most:
            raise InputError(
                f"{self._service.url} scores {most} label words a request and these are "
                f"{len(request.candidates)}: name fewer, or start it with a larger bound "
                "'candidates'"
            )
        name = (request.batch.digest, request.candidates)
        return self._registry.registered(
            name, lambda: self._service.add_batch(request.batch, request.candidates)
        )

    def _subspace(self, subspace: Subspace) -> Registered:
        return self._registry.registered(
            subspace.digest, lambda: self._service.add_subspace(subspace)
        )

    def _registered_again(self, ask: Callable[[ScoreRequest], T], request: ScoreRequest) -> T:
        """Send a request, and repeat it once if the service has dropped the registrations."""
        generation = self._registry.generation
        try:
            return ask(request)
        except RefusedError as error:
            if not _is_unregistered(error):
                raise
        self._registry.clear(generation, self._service.model)
        try:
            return ask(request)
        except RefusedError as error:
            if not _is_unregistered(error):
                raise
            raise TransientError(
                f"{self._service.url} drops registrations at once: {error.reason}"
            ) from error


class _Registry:
    """Ids of registered batches and subspaces. May be used from several threads.

    Attributes:
        generation: Increases whenever the service has dropped all of them.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._ids: dict[Hashable, str] = {}
        self._lock = threading.Lock()

    def registered(self, name: Hashable, register: Callable[[], Registered]) -> Registered:
        """The registration of this name; the first thread that needs it makes it."""
        with self._lock:
            if name in self._ids:
                return Registered(self._ids[name], Usage())
            new = register()
            self._ids[name] = new.id
            return new

    def clear(self, generation: int, check: Callable[[], object]) -> None:
        """Drop all ids if `check` passes; once for all threads of that generation."""
        with self._lock:
            if generation == self.generation:
                check()
                self._ids.clear()
                self.generation += 1


def _sendable(prompt: Prompt) -> SoftPrompt | TextPrompt:
    if not isinstance(prompt, SoftPrompt | TextPrompt):
        raise InputError(
            f"a service takes soft and text prompts, and this is {prompt}: run the model here, "
            "with backend 'hf'"
        )
    return prompt


def _is_unregistered(error: RefusedError) -> bool:
    return error.code in ("unknown_batch", "unknown_subspace")
