"""The endpoints: each reads a request, calls the model, and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response, Security
from fastapi.security import HTTPBearer

from lmaas_tune.prompts import Insertion, SoftPrompt, TextPrompt
from lmaas_tune.service import bodies, wire
from lmaas_tune.service.auth_middleware import RequestContext
from lmaas_tune.service.cancellation import reply_to, run_within
from lmaas_tune.service.errors import ApiError, add_error_handlers
from lmaas_tune.service.keys import Key
from lmaas_tune.service.metrics import CONTENT_TYPE, Metrics
from lmaas_tune.service.model import ServedModel
from lmaas_tune.service.scheduler import Job, Scheduler

T = TypeVar("T")

_JSON = "application/json"
_LARGE = 1 << 16  # bytes of a prompt that take longer to read than to pass to a thread

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "model": wire.ErrorAnswer,
        "description": ", ".join(
            sorted(code for code in wire.STATUS if wire.STATUS[code] == status)
        ),
    }
    for status in sorted(set(wire.STATUS.values()) - {wire.STATUS["client_gone"]})
}
for _status in (429, 503):
    _ERRORS[_status]["headers"] = {
        "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}
    }

_NUMBERS = {"schema": {"type": "string", "format": "binary"}}
_SCORES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "rows x candidates log-probabilities, row by row, as little-endian float32; "
        "NaN where the model overflowed",
        "content": {wire.BINARY: _NUMBERS},
        "headers": {
            "Content-Digest": {
                "description": "sha-256 of the body (RFC 9530)",
                "schema": {"type": "string"},
            },
            "Tokens": {"description": "Tokens the model read", "schema": {"type": "integer"}},
            "Model-Digest": {
                "description": "The first 16 hexadecimal digits of the sha-256 of the identity "
                "that /v1/model states; registrations and inspections have it too",
                "schema": {"type": "string"},
            },
        },
    }
}


def _context(request: Request) -> RequestContext:
    return cast("RequestContext", request.state.context)


def _key(request: Request) -> Key:
    return cast("Key", _context(request).key)  # the middleware refuses a request without one


Caller = Annotated[Key, Depends(_key)]


def build_app(model: ServedModel, scheduler: Scheduler, metrics: Metrics) -> FastAPI:
    """The application behind the `AuthMiddleware`.

    Args:
        model: The model that is served.
        scheduler: Calls the model for scores.
        metrics: Shown at ``/metrics``.
    """
    app = FastAPI(
        title="lmaas-tune: a language model as a service",
        version=str(wire.PROTOCOL),
        description="Log-probabilities of label words under a prompt, and nothing else. The "
        "Request-Id of a request (1 to 64 letters, digits and dashes) comes back with its answer.",
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
    )
    add_error_handlers(app, _note)

    @app.get("/health", summary="Whether the service answers")
    async def health() -> wire.HealthAnswer:
        return wire.HealthAnswer(status="ok")

    async def state_model(response: Response) -> None:
        response.headers["Model-Digest"] = model.digest

    signed = APIRouter(dependencies=[Security(HTTPBearer(auto_error=False)), Depends(state_model)])
    _add_metrics(signed, metrics)
    _add_registration(signed, model)
    _add_scoring(signed, model, scheduler)
    app.include_router(signed)
    return app


def _note(request: Request, error: ApiError) -> None:
    _context(request).code = error.code


def _add_metrics(router: APIRouter, metrics: Metrics) -> None:
    @router.get(
        "/metrics",
        summary="Counters for Prometheus",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}},
    )
    async def read_metrics(key: Caller) -> Response:
        if not key.metrics:
            raise ApiError(
                "forbidden",
                "the metrics cover all keys, and this key may not read them: ask for metrics=yes",
            )
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_registration(router: APIRouter, model: ServedModel) -> None:
    """The endpoints that do not call the model for scores."""

    async def read_json(request: Request, read: Callable[[Key, bytes], T]) -> T:
        """Read a body of JSON in a thread, in the turn of its key."""
        _check_type(request, _JSON)
        key, content = _key(request), await request.body()
        work = model.reading.run(key.name, lambda _: read(key, content))
        return await run_within(model.limits.wait_seconds, work, request)

    @router.get("/v1/model", summary="The model, and the limits of the service")
    async def describe(key: Caller) -> wire.ModelAnswer:
        return model.describe(key)

    @router.get("/v1/words", summary="Words that are one token to the model")
    async def words(key: Caller) -> wire.WordsAnswer:
        return await model.reading.run(key.name, lambda _: model.words())

    @router.post(
        "/v1/batches",
        status_code=201,
        summary="Register rows and label words",
        openapi_extra=_body({_JSON: bodies.BATCH}, "Rows and words"),
    )
    async def add_batch(request: Request) -> wire.BatchAnswer:
        return await read_json(request, model.add_batch)

    @router.post(
        "/v1/subspaces",
        status_code=201,
        summary="Register a subspace: p0 + A z",
        openapi_extra=_body({_JSON: bodies.SUBSPACE}, "A subspace"),
    )
    async def add_subspace(request: Request, key: Caller) -> wire.SubspaceAnswer:
        subspace, start = await read_json(request, model.read_subspace)
        if start is None:
            drawing = model.drawing.run(key.name, lambda check: model.drawn.draw(subspace, check))
            start = await run_within(model.limits.wait_seconds, drawing, request)
        return model.add_subspace(key, subspace, start)

    @router.post(
        "/v1/inspect/{batch}",
        summary="The cost of scoring; the request is free",
        openapi_extra=_body(
            {_JSON: bodies.INSPECT},
            "A prompt, or any point of a registered subspace: they all cost the same",
        ),
    )
    async def inspect(batch: str, request: Request) -> wire.InspectAnswer:
        return await read_json(request, lambda key, content: model.inspect(key, batch, content))


def _add_scoring(router: APIRouter, model: ServedModel, scheduler: Scheduler) -> None:
    """The endpoints that call the model for scores."""

    async def score(request: Request, job: Job) -> Response:
        context = _context(request)
        context.reserve(job.tokens)
        scoring = reply_to(job, scheduler)
        reply = await run_within(model.limits.wait_seconds, scoring, request)
        context.usage = reply.usage
        content = wire.float_bytes(reply.logprobs)
        headers = {
            "Content-Digest": wire.content_digest(content),
            "Tokens": str(reply.usage.tokens),
            "Model-Digest": model.digest,
        }
        return Response(content, media_type=wire.BINARY, headers=headers)

    @router.post(
        "/v1/score/{batch}/{subspace}",
        summary="Score under a point of a subspace",
        response_class=Response,
        responses=_SCORES,
        openapi_extra=_body({wire.BINARY: None}, "z, as d little-endian float32"),
    )
    async def score_point(batch: str, subspace: str, request: Request, key: Caller) -> Response:
        _check_type(request, wire.BINARY)
        job = model.score_point(key, batch, subspace, await request.body())
        return await score(request, job)

    @router.post(
        "/v1/score/{batch}",
        summary="Score under a prompt",
        response_class=Response,
        responses=_SCORES,
        openapi_extra=_body(
            {_JSON: bodies.PROMPT, wire.BINARY: None},
            "A prompt; or the vectors of a soft one as raw little-endian numbers, one vector "
            "after the other, with length, dtype and insertion in the query",
        ),
    )
    async def score_prompt(
        batch: str,
        request: Request,
        key: Caller,
        length: Annotated[int | None, Query(ge=1)] = None,
        dtype: wire.DType = "float32",
        insertion: Insertion = "concat",
    ) -> Response:
        content = await request.body()
        is_raw = _check_type(request, _JSON, wire.BINARY) == wire.BINARY
        if is_raw and length is None:
            raise wire.MalformedError("raw vectors need their number: add ?length=L to the path")

        def read() -> SoftPrompt | TextPrompt:
            if length is None or not is_raw:
                return model.read_prompt(content)
            return wire.soft_prompt(content, dtype, length=length, insertion=insertion)

        if len(content) > _LARGE:
            reading = model.reading.run(key.name, lambda _: read())
            prompt = await run_within(model.limits.wait_seconds, reading, request)
        else:
            prompt = read()
        return await score(request, model.score_prompt(key, batch, prompt))


def _check_type(request: Request, *accepted: str) -> str:
    """The media type of the body.

    Raises:
        ApiError: It is none of the accepted ones.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in accepted:
        raise ApiError(
            "bad_request",
            f"send Content-Type: {' or '.join(accepted)}, not {kind!r}: see /openapi.json",
        )
    return kind


def _body(kinds: Mapping[str, Any], description: str) -> dict[str, Any]:
    """A body for the description of the API: the message by media type, None for raw numbers."""
    content = {
        media: _NUMBERS if kind is None else {"schema": bodies.schema(kind)}
        for media, kind in kinds.items()
    }
    return {"requestBody": {"required": True, "description": description, "content": content}}
