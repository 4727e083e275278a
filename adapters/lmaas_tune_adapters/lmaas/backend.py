"""The backend itself: what was registered with the service, and what is asked of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

from lmaas_tune.backend import Inspection, ScoreReply, ScoreRequest, Usage
from lmaas_tune.calls.retry import Retry
from lmaas_tune.errors import InputError, PermanentError, TransientError
from lmaas_tune.prompts import DeepPrompt, PointPrompt, SoftPrompt, Subspace, TextPrompt
from lmaas_tune_adapters.http import Endpoint, Key, RefusedError
from lmaas_tune_adapters.lmaas.service import Registered, Service

T = TypeVar("T")

_FREE = Retry(attempts=5, first_wait=0.1, total=120.0)
"""For what costs nothing, and is asked before a client counts."""


class LMaaSBackend:
    """A model that `lmaas-tune serve` runs, here or elsewhere.

    Rows, label words and subspaces are registered with the service when they first come; of a
    `PointPrompt` each call then sends z alone. A service that was started again is told anew.

    Args:
        url: Where the service listens.
        api_key_file: A file that holds one of its keys; else the environment's LMAAS_API_KEY,
            else none.
        timeout: Seconds that one request may take.

    Raises:
        InputError: No URL, or no key in the file.
        PermanentError: No service of lmaas-tune answers there, or not to this key.
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
        self._known = _Known()
        self.identity = f"lmaas {self._model.identity}"
        self.capabilities = self._model.capabilities

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """See `lmaas_tune.backend.Backend.score`; one request after the other."""
        return [self._told_anew(self._score, request) for request in requests]

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
            return _FREE.run(lambda: self._told_anew(self._inspect, request))
        except InputError as error:
            if count == 1:
                raise
            first = number * (self.capabilities.rows_per_call or 0)
            raise InputError(f"of the rows after {first}: {error}") from error

    def _score(self, request: ScoreRequest) -> ScoreReply:
        batch, prompt = self._batch(request), request.prompt
        told, shape = batch.usage, (len(request.batch), len(request.candidates))
        if isinstance(prompt, PointPrompt):
            subspace = self._subspace(prompt.subspace)
            told += subspace.usage
            reply = self._service.score_point(batch.id, subspace.id, prompt.point, shape=shape)
        else:
            reply = self._service.score(batch.id, _sendable(prompt), shape=shape)
        return replace(reply, usage=reply.usage + told)

    def _inspect(self, request: ScoreRequest) -> Inspection:
        batch, prompt = self._batch(request), request.prompt
        if isinstance(prompt, PointPrompt):
            subspace = self._subspace(prompt.subspace)
            return self._service.inspect(batch.id, None, subspace=subspace.id)
        return self._service.inspect(batch.id, _sendable(prompt))

    def _batch(self, request: ScoreRequest) -> Registered:
        most = self._model.candidates
        if most is not None and len(request.candidates) > most:
            raise InputError(
                f"{self._service.url} scores {most} label words a request and these are "
                f"{len(request.candidates)}: name fewer, or have it started with a larger bound "
                "'candidates'"
            )
        name = (request.batch.digest, request.candidates)
        return self._known.registered(
            name, lambda: self._service.add_batch(request.batch, request.candidates)
        )

    def _subspace(self, subspace: Subspace) -> Registered:
        return self._known.registered(subspace.digest, lambda: self._service.add_subspace(subspace))

    def _told_anew(self, ask: Callable[[ScoreRequest], T], request: ScoreRequest) -> T:
        """Ask; and once more where the service no longer knows what was registered."""
        era = self._known.era
        try:
            return ask(request)
        except RefusedError as error:
            if not _forgotten(error):
                raise
        self._known.forget(era, self._check_model)
        try:
            return ask(request)
        except RefusedError as error:
            if not _forgotten(error):
                raise
            raise TransientError(
                f"{self._service.url} forgets at once what is registered with it: {error.reason}"
            ) from error

    def _check_model(self) -> None:
        """Other answers than before would be another model's."""
        served = self._service.model().identity
        if served != self._model.identity:
            raise PermanentError(
                f"{self._service.url} serves {served!r} now, and {self._model.identity!r} when "
                "this began: start it with the model it had, or begin anew"
            )


class _Known:
    """Ids of what was registered. May be used from several threads.

    Attributes:
        era: Grows whenever the service has forgotten all.
    """

    def __init__(self) -> None:
        self.era = 0
        self._ids: dict[Hashable, str] = {}
        self._lock = threading.Lock()

    def registered(self, name: Hashable, register: Callable[[], Registered]) -> Registered:
        """What stands under this name; the first thread that asks registers it."""
        with self._lock:
            if name in self._ids:
                return Registered(self._ids[name], Usage())
            new = register()
            self._ids[name] = new.id
            return new

    def forget(self, era: int, check: Callable[[], None]) -> None:
        """Register all anew, if `check` lets; once for all threads whose era has passed."""
        with self._lock:
            if era == self.era:
                check()
                self._ids.clear()
                self.era += 1


def _sendable(prompt: SoftPrompt | DeepPrompt | TextPrompt) -> SoftPrompt | TextPrompt:
    if isinstance(prompt, DeepPrompt):
        raise InputError(
            f"a service takes no deep prompts, and this is {prompt}: run the model here, with "
            "backend 'hf'"
        )
    return prompt


def _forgotten(error: RefusedError) -> bool:
    return error.code in ("unknown_batch", "unknown_subspace")
