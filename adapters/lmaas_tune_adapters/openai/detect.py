"""Detecting, before anything is tuned, the scoring mode and request format of a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lmaas_tune.calls.retry import Retry
from lmaas_tune.errors import BackendError, InputError, PermanentError, did_you_mean
from lmaas_tune_adapters.http import RefusedError, ServerError
from lmaas_tune_adapters.openai.endpoints import GenerationEndpoint, RequestFormat, Server
from lmaas_tune_adapters.openai.replies import CountError, IncompleteError
from lmaas_tune_adapters.openai.rows import Context
from lmaas_tune_adapters.openai.scorers import Scorer

_ROWS = (Context("One and one is", spaced=True), Context("Two and two is", spaced=True))
_ACCOUNT = (401, 402)  # statuses that refuse the user, not the request


@dataclass(frozen=True)
class ScoringMode:
    """A way to score label words, not tried yet.

    Attributes:
        name: In messages.
        make: Makes the scorer for a request format.
        words: Label words of the trial.
    """

    name: str
    make: Callable[[RequestFormat], Scorer]
    words: Sequence[str] = ("two", "four")


def detect_mode(
    modes: Sequence[ScoringMode], request_format: RequestFormat, server: Server, retry: Retry
) -> Scorer:
    """Find the first mode that a server supports, in the request format that it accepts.

    Each trial sends two short rows, again if an answer lacks something; refused requests cost
    nothing.

    Raises:
        PermanentError: The server supports no mode, or all attempts of a request failed.
        InputError: The server has no such model.
    """
    reasons: dict[str, list[str]] = {}
    failures: list[Exception] = []
    for mode in modes:
        try:
            return _fit_format(mode, request_format, server, retry)
        except (RefusedError, IncompleteError) as error:
            if isinstance(error, RefusedError) and error.status in _ACCOUNT:
                raise
            reasons.setdefault(_reason(error), []).append(mode.name)
            failures.append(error)
        except PermanentError as error:
            if not isinstance(error.__cause__, ServerError):
                raise
            reasons.setdefault(str(error.__cause__), []).append(mode.name)
    remedy = _remedy(server, failures)
    listed = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    raise PermanentError(
        f"{server.endpoint.url} does not score label words with {server.model!r} ({listed}): "
        f"{remedy}"
    )


def _reason(error: RefusedError | IncompleteError) -> str:
    return f"{error.status}, {error.reason}" if isinstance(error, RefusedError) else str(error)


def _fit_format(
    mode: ScoringMode, request_format: RequestFormat, server: Server, retry: Retry
) -> Scorer:
    """Try a mode in one format after another."""
    while True:
        trial = partial(_trial, mode, request_format, server)
        scorer, failure = retry.run(trial)
        if isinstance(failure, IncompleteError):  # perhaps this answer alone
            scorer, failure = retry.run(trial)
        if failure is None:
            return scorer
        fallback = scorer.endpoint.request_format.fallback(failure)
        if fallback is None:
            raise failure
        request_format = fallback


def _trial(
    mode: ScoringMode, request_format: RequestFormat, server: Server
) -> tuple[Scorer, RefusedError | IncompleteError | None]:
    """A scorer, and why its trial failed; None if it passed. Errors that may pass are raised."""
    scorer = mode.make(request_format)
    try:
        scorer.try_out(_ROWS, mode.words)
        batched = scorer.endpoint.request_format.batched
        return scorer, _miscount(scorer.endpoint) if batched else None
    except (RefusedError, IncompleteError) as error:
        return scorer, error
    except ServerError as error:
        _check_key(server, error)
        raise


def _miscount(endpoint: GenerationEndpoint) -> CountError | None:
    """An error if a server counts the tokens of the first of several prompts only (llama.cpp)."""
    texts = [context.text for context in _ROWS]
    (_, both), (_, one) = endpoint.ask(texts), endpoint.ask(texts[:1])
    if 0 < both.tokens <= one.tokens:
        return CountError("of several prompts the server counts the tokens of one")
    return None


def _check_key(server: Server, error: ServerError) -> None:
    """Find out whether a 500 means that a key is missing, as LiteLLM's does.

    Raises:
        InputError: No key was given, and the list of models gives a 500 too.
    """
    if server.signed or error.status != 500:  # a 502 is a gateway's, and may pass
        return
    try:
        server.endpoint.get("/models")
    except ServerError as second:
        if second.status != 500:
            return
        raise InputError(
            f"{error}, and so does {server.endpoint.url}/models: no key was given, by "
            "api_key_file or in OPENAI_API_KEY, which LiteLLM answers like that"
        ) from error
    except BackendError:
        return


def _remedy(server: Server, failures: Sequence[Exception]) -> str:
    """The remedy for the user, from the server's answers to all modes.

    Raises:
        InputError: The server does not have the model.
    """
    if any(isinstance(error, IncompleteError) for error in failures):
        return "the model and the URL are right, as it answers: try another scores= or endpoint="
    try:
        names = _models(server)
    except RefusedError as error:
        key = "the key" if server.signed else "whether it wants a key (none was given)"
        return f"/models is refused too ({error.status}, {error.reason}): check {key}"
    about_model = [e for e in failures if isinstance(e, RefusedError) and _names_model(server, e)]
    if about_model and names and server.model not in names:
        raise InputError(
            f"{server.endpoint.url} has no model {server.model!r}; "
            f"{did_you_mean(server.model, names)}"
        )
    if server.model in names and not about_model:
        return "it has the model: try another scores= or endpoint="
    return "check the model, and that the URL ends where /chat/completions begins, as in /v1"


def _models(server: Server) -> list[str]:
    """Names of a server's models; empty if it does not list them.

    Raises:
        RefusedError: It refuses to list them.
    """
    try:
        return [str(model["id"]) for model in server.endpoint.get("/models").json()["data"]]
    except BackendError as error:
        if isinstance(error, RefusedError) and error.status != 404:
            raise
        return []
    except (KeyError, TypeError):
        return []


def _names_model(server: Server, error: RefusedError) -> bool:
    """Whether a refusal is about the model's name."""
    return error.status == 404 or server.model in error.reason
