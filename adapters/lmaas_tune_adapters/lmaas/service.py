"""The requests to our service, and checks of its answers: a damaged one is an error."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from lmaas_tune.backend import Capabilities, Inspection, ScoreReply, Usage
from lmaas_tune.errors import InputError, LMaaSError, PermanentError, TransientError
from lmaas_tune.prompts import FloatArray, SoftPrompt, Subspace, TextPrompt
from lmaas_tune.service import wire
from lmaas_tune_adapters.http import Answer, Endpoint, RefusedError, paid

if TYPE_CHECKING:
    from lmaas_tune.task import Batch

T = TypeVar("T")

Shape: TypeAlias = tuple[int, int]
"""(rows, candidates) of an answer."""

Body: TypeAlias = Mapping[str, Any] | bytes | None
"""A JSON object, raw numbers, or nothing to send."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model of a service.

    Attributes:
        identity: Of the backend that it serves.
        capabilities: Of that backend too, with the service's own limit of rows a call.
        candidates: Most label words of one request.
    """

    identity: str
    capabilities: Capabilities
    candidates: int


@dataclass(frozen=True)
class Registered:
    """A batch or a subspace that the service keeps.

    Attributes:
        id: Its id there.
        usage: The cost of registering it.
    """

    id: str
    usage: Usage


class Service:
    """The paths of the service, whose model must stay the one that `model` found first.

    All methods raise `TransientError` if no whole answer came or a later one may,
    `InputError` if the model does not support the request, `RefusedError`, whose `code` is the
    reason, if the service refuses, and `PermanentError` if it has another model.

    Args:
        endpoint: Its address.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self._endpoint = endpoint
        self._identity = ""

    def model(self) -> Model:
        """The model that is served.

        Raises:
            PermanentError: The service speaks another version of the protocol, or has another
                model than at the first call.
        """
        answer = self._answer("/v1/model")
        content = answer.json()
        self._check_protocol(content)
        try:
            found = wire.decode(wire.ModelAnswer, content)
            if min(found.limits.rows, found.limits.candidates) < 1:
                raise InputError("a limit is 0")
            capabilities = found.capabilities.capabilities(found.limits.rows)
        except ValueError as error:
            raise TransientError(
                f"{answer.url} describes no model ({error}): check that a service of lmaas-tune is "
                "there"
            ) from error
        self._identity = self._identity or found.identity
        if found.identity != self._identity:
            raise PermanentError(
                f"{self.url} serves {found.identity!r} now, and {self._identity!r} when this "
                "began: start it with that model, or start a new run"
            )
        return Model(
            identity=found.identity, capabilities=capabilities, candidates=found.limits.candidates
        )

    def words(self) -> Sequence[str]:
        """The words that are one token to the model."""
        return _decoded(self._ask("/v1/words"), wire.WordsAnswer).words

    def add_batch(self, batch: Batch, candidates: tuple[str, ...]) -> Registered:
        """Register rows and label words."""
        body = asdict(wire.BatchBody.of(batch, candidates))
        return self._register("/v1/batches", body, wire.BatchAnswer)

    def add_subspace(self, subspace: Subspace) -> Registered:
        """Register the description of p0 and A."""
        return self._register("/v1/subspaces", subspace.to_json(), wire.SubspaceAnswer)

    def score_point(
        self, batch: str, subspace: str, point: FloatArray, *, shape: Shape
    ) -> ScoreReply:
        """Score a registered batch under z, (d,) float32, of a registered subspace."""
        path = f"/v1/score/{batch}/{subspace}"
        return _reply(self._ask(path, wire.float_bytes(point)), shape)

    def score(self, batch: str, prompt: SoftPrompt | TextPrompt, *, shape: Shape) -> ScoreReply:
        """Score a registered batch under a prompt."""
        path, content = f"/v1/score/{batch}", _body(prompt)
        if isinstance(prompt, SoftPrompt) and not prompt.anchor:  # raw, which is shorter
            path += f"?length={prompt.length}&insertion={prompt.insertion}"
            content = wire.float_bytes(prompt.vectors)
        return _reply(self._ask(path, content), shape)

    def inspect(
        self, batch: str, prompt: SoftPrompt | TextPrompt | None, *, subspace: str = ""
    ) -> Inspection:
        """Inspect a registered batch under a prompt, or under any point of a subspace."""
        point = {"kind": "point", "subspace": subspace}
        answer = self._ask(f"/v1/inspect/{batch}", point if prompt is None else _body(prompt))
        found = _decoded(answer, wire.InspectAnswer)
        usage = Usage(requests=1, sequences=found.sequences, tokens=found.tokens)
        return Inspection(tuple(found.notes), usage)

    def _register(
        self, path: str, body: Body, kind: type[wire.BatchAnswer] | type[wire.SubspaceAnswer]
    ) -> Registered:
        try:
            answer = self._ask(path, body)
            if "model-digest" not in answer.headers:  # a service of an earlier version
                self.model()
            return Registered(_decoded(answer, kind).id, answer.usage)
        except LMaaSError as error:
            error.usage_unknown = False  # it is free
            raise

    def _ask(self, path: str, body: Body = None) -> Answer:
        """Request an answer, and check that it is the first model's."""
        answer = self._answer(path, body)
        own = wire.model_digest(self._identity)
        if answer.headers.get("model-digest", own) != own:
            with paid(answer.usage):
                self.model()  # ends the run, unless several services take turns behind the address
                raise TransientError(
                    f"the answer of {answer.url} is another model's, and not of {self._identity!r}"
                )
        return answer

    def _answer(self, path: str, body: Body = None) -> Answer:
        request_id = secrets.token_hex(4)
        try:
            answer = self._send(path, body, {"Request-Id": request_id})
        except RefusedError as error:
            if error.status in (400, 422):
                raise InputError(error.reason) from error
            if error.status == 401:
                given = ", and the key that was given is none of them" * self._endpoint.signed
                raise RefusedError(
                    f"{self.url} answers only to one of its API keys{given}: give one in a file, "
                    "with --api-key-file (api_key_file=), or as LMAAS_API_KEY in the environment",
                    status=error.status,
                    reason=error.reason,
                    code=error.code,
                ) from error
            raise
        if answer.headers.get("request-id") != request_id:
            with paid(answer.usage):
                raise _damaged(answer, "is not the one to this request")
        return answer

    def _send(self, path: str, body: Body, headers: dict[str, str]) -> Answer:
        if body is None:
            return self._endpoint.get(path, headers=headers)
        if isinstance(body, bytes):
            headers["Content-Type"] = wire.BINARY
            return self._endpoint.post(path, body=body, headers=headers)
        return self._endpoint.post(path, content=body, headers=headers)

    def _check_protocol(self, content: Any) -> None:
        protocol = content.get("protocol") if isinstance(content, dict) else None
        if protocol not in (None, wire.PROTOCOL):
            raise PermanentError(
                f"{self.url} speaks version {protocol!r:.40} of the protocol, and this client "
                f"{wire.PROTOCOL}: install the same lmaas-tune on both sides"
            )


def _body(prompt: SoftPrompt | TextPrompt) -> Body:
    if isinstance(prompt, TextPrompt):
        return {"kind": "text", "text": prompt.text}
    return asdict(wire.SoftBody.of(prompt))


def _decoded(answer: Answer, kind: type[T]) -> T:
    try:
        return wire.decode(kind, answer.json())
    except InputError as error:
        raise _damaged(answer, f"is not as expected ({error})") from error


def _reply(answer: Answer, shape: Shape) -> ScoreReply:
    tokens = answer.headers.get("tokens", "")
    is_number = tokens.isdecimal() and len(tokens) <= 18
    usage = replace(answer.usage, sequences=shape[0], tokens=int(tokens) if is_number else 0)
    with paid(usage):
        if answer.headers.get("content-digest") != wire.content_digest(answer.content):
            raise _damaged(answer, "does not match its Content-Digest")
        if len(answer.content) != 4 * shape[0] * shape[1]:
            raise _damaged(
                answer,
                f"has {len(answer.content)} bytes, and {shape[0]} x {shape[1]} scores have 4 each",
            )
        if not is_number:
            raise _damaged(answer, "does not state its Tokens")
    logprobs = wire.floats(answer.content, "float32").reshape(shape).astype(np.float64)
    return ScoreReply(logprobs, usage)


def _damaged(answer: Answer, fault: str) -> TransientError:
    return TransientError(f"the answer of {answer.url} {fault}: it was damaged on its way")
