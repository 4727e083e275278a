"""The endpoints: what each reads, asks of the model, and answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from lmaas_tune.errors import InputError, TransientError
from lmaas_tune.prompts import Insertion, SoftPrompt, TextPrompt
from lmaas_tune.service import wire
from lmaas_tune.service.gate import Visit, internal
from lmaas_tune.service.keys import Key
from lmaas_tune.service.metrics import CONTENT_TYPE, Metrics
from lmaas_tune.service.model import Model
from lmaas_tune.service.refusal import STATUS, RefusalError
from lmaas_tune.service.scheduler import Job, Scheduler
from lmaas_tune.service.waiting import scored, waited

T = TypeVar("T")

_JSON = "application/json"
_LARGE = 1 << 16  # bytes of a prompt that take longer to read than to hand to a thread

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "model": wire.ErrorAnswer,
        "description": ", ".join(sorted(code for code in STATUS if STATUS[code] == status)),
    }
    for status in sorted(set(STATUS.values()) - {499})
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
        },
    }
}


def _visit(request: Request) -> Visit:
    return cast(Visit, request.state.visit)


Visiting = Annotated[Visit, Depends(_visit)]


def build_app(model: Model, scheduler: Scheduler, metrics: Metrics) -> FastAPI:
    """The application that `Gate` stands before.

    Args:
        model: What is served.
        scheduler: Whom scores are asked of.
        metrics: What ``/metrics`` shows.
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
    _add_refusals(app)

    @app.get("/health", summary="Whether it answers")
    async def health() -> wire.HealthAnswer:
        return wire.HealthAnswer(status="ok")

    signed = APIRouter(dependencies=[Security(HTTPBearer(auto_error=False))])

    @signed.get(
        "/metrics",
        summary="Counters for Prometheus",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}},
    )
    async def read_metrics(visit: Visiting) -> Response:
        if not _key(visit).metrics:
            raise RefusalError(
                "forbidden",
                "the metrics tell of all keys, and this key may not read them: ask for metrics=yes",
            )
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @signed.get("/v1/model", summary="What is served, and within which limits")
    async def describe(visit: Visiting) -> wire.ModelAnswer:
        return model.describe(_key(visit))

    async def within(request: Request, work: Coroutine[Any, Any, T]) -> T:
        return await waited(work, request, model.bounds.wait_seconds)

    @signed.post(
        "/v1/batches",
        status_code=201,
        summary="Register rows and label words",
        openapi_extra=_body({_JSON: {"schema": wire.schema(wire.BatchBody)}}, "Rows and words"),
    )
    async def add_batch(request: Request, visit: Visiting) -> wire.BatchAnswer:
        _kind(request, _JSON)
        key, content = _key(visit), await request.body()
        work = model.aside.do(key.name, lambda _: model.add_batch(key, content))
        return await within(request, work)

    @signed.post(
        "/v1/subspaces",
        status_code=201,
        summary="Register a subspace: p0 + A z",
        openapi_extra=_body({_JSON: {"schema": wire.schema(wire.SubspaceBody)}}, "A subspace"),
    )
    async def add_subspace(request: Request, visit: Visiting) -> wire.SubspaceAnswer:
        _kind(request, _JSON)
        key, content = _key(visit), await request.body()
        read = model.aside.do(key.name, lambda _: model.read_subspace(content))
        subspace, start = await within(request, read)
        if start is None:
            drawing = model.draws.do(key.name, lambda check: model.drawn.draw(subspace, check))
            start = await within(request, drawing)
        return model.add_subspace(key, subspace, start)

    @signed.post(
        "/v1/inspect/{batch}",
        summary="What scoring would take; costs nothing",
        openapi_extra=_body(
            {_JSON: {"schema": wire.schema(wire.TextBody, wire.SoftBody, wire.PointBody)}},
            "A prompt, or any point of a registered subspace: they all cost the same",
        ),
    )
    async def inspect(batch: str, request: Request, visit: Visiting) -> wire.InspectAnswer:
        _kind(request, _JSON)
        key, content = _key(visit), await request.body()
        work = model.aside.do(key.name, lambda _: model.inspect(key, batch, content))
        return await within(request, work)

    async def score(visit: Visit, request: Request, job: Job) -> Response:
        visit.reserve(job.tokens)
        reply = await within(request, scored(scheduler, job))
        visit.usage = reply.usage
        content = wire.logprob_bytes(reply.logprobs)
        headers = {
            "Content-Digest": wire.content_digest(content),
            "Tokens": str(reply.usage.tokens),
        }
        return Response(content, media_type=wire.BINARY, headers=headers)

    @signed.post(
        "/v1/score/{batch}/{subspace}",
        summary="Score under a point of a subspace",
        response_class=Response,
        responses=_SCORES,
        openapi_extra=_body({wire.BINARY: _NUMBERS}, "z, as d little-endian float32"),
    )
    async def score_point(batch: str, subspace: str, request: Request, visit: Visiting) -> Response:
        _kind(request, wire.BINARY)
        job = model.score_point(_key(visit), batch, subspace, await request.body())
        return await score(visit, request, job)

    @signed.post(
        "/v1/score/{batch}",
        summary="Score under a prompt",
        response_class=Response,
        responses=_SCORES,
        openapi_extra=_body(
            {
                _JSON: {"schema": wire.schema(wire.TextBody, wire.SoftBody)},
                wire.BINARY: _NUMBERS,
            },
            "A prompt; or the vectors of a soft one as raw little-endian numbers, one vector "
            "after the other, with length, dtype and insertion in the query",
        ),
    )
    async def score_prompt(
        batch: str,
        request: Request,
        visit: Visiting,
        length: Annotated[int | None, Query(ge=1)] = None,
        dtype: wire.DType = "float32",
        insertion: Insertion = "concat",
    ) -> Response:
        key, content = _key(visit), await request.body()
        is_raw = _kind(request, _JSON, wire.BINARY) == wire.BINARY
        if is_raw and length is None:
            raise RefusalError(
                "bad_request", "raw vectors need their number: add ?length=L to the path"
            )

        def read() -> SoftPrompt | TextPrompt:
            if length is None or not is_raw:
                return model.read_prompt(content)
            return wire.soft_prompt(content, dtype, length=length, insertion=insertion)

        if len(content) > _LARGE:
            prompt = await within(request, model.aside.do(key.name, lambda _: read()))
        else:
            prompt = read()
        return await score(visit, request, model.score_prompt(key, batch, prompt))

    app.include_router(signed)
    return app


def _key(visit: Visit) -> Key:
    return cast(Key, visit.key)  # the gate lets nobody in without


def _kind(request: Request, *taken: str) -> str:
    """The media type of the body.

    Raises:
        RefusalError: It is none of those that are taken.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in taken:
        raise RefusalError(
            "bad_request",
            f"send Content-Type: {' or '.join(taken)}, not {kind!r}: see /openapi.json",
        )
    return kind


def _body(content: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, "description": description, "content": content}}


def _add_refusals(app: FastAPI) -> None:
    """Every error as the protocol says it."""

    def told(make: Callable[[Any], RefusalError]) -> Callable[..., Any]:
        async def handle(request: Request, error: Exception) -> Response:
            refusal = make(error)
            _visit(request).code = refusal.code
            return refusal.response()

        return handle

    app.exception_handler(RefusalError)(told(lambda error: error))
    app.exception_handler(InputError)(told(lambda error: RefusalError("unprocessable", str(error))))
    app.exception_handler(TransientError)(told(_upstream))
    app.exception_handler(RequestValidationError)(told(_invalid))
    app.exception_handler(HTTPException)(told(_by_status))
    app.exception_handler(Exception)(told(lambda _: internal()))  # the gate logs it


def _upstream(error: TransientError) -> RefusalError:
    """A model that is itself somebody's service asks to wait."""
    return RefusalError(
        "overloaded", "the model is busy: send it again later", retry_after=error.retry_after or 1.0
    )


def _invalid(error: RequestValidationError) -> RefusalError:
    return wire.bad_json([(fault["loc"], fault["msg"]) for fault in error.errors()])


def _by_status(error: HTTPException) -> RefusalError:
    """What the framework refuses by itself."""
    if error.status_code == STATUS["not_found"]:
        return RefusalError("not_found", "there is no such path: /openapi.json lists all")
    if error.status_code == STATUS["method_not_allowed"]:
        headers = dict(error.headers or {})
        return RefusalError("method_not_allowed", "this path takes another method", headers=headers)
    if error.status_code < 500:
        return RefusalError("bad_request", "the body cannot be read: see /openapi.json")
    return internal()
