"""Finding out, before anything is tuned, in which way a server scores label words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lmaas_tune.errors import BackendError, InputError, PermanentError, did_you_mean
from lmaas_tune.middleware.retry import Retry
from lmaas_tune_adapters.http import RefusedError, ServerError
from lmaas_tune_adapters.openai.channels import Manner, Server
from lmaas_tune_adapters.openai.replies import CountError, LackingError
from lmaas_tune_adapters.openai.rows import Question
from lmaas_tune_adapters.openai.scorers import Scorer

_ROWS = (Question("One and one is", spaced=True), Question("Two and two is", spaced=True))
_WORDS = ("two", "four")
_NO_USE = (401, 402)  # not the way of asking is refused, but who asks


@dataclass(frozen=True)
class Way:
    """A way to score, not tried yet.

    Attributes:
        name: For messages.
        make: The scorer that asks in a manner.
    """

    name: str
    make: Callable[[Manner], Scorer]


def first_that_works(ways: Sequence[Way], manner: Manner, server: Server, retry: Retry) -> Scorer:
    """The scorer of the first way that the server goes, in the manner that it wants.

    Each try asks for two short rows; what a server refuses costs nothing.

    Raises:
        PermanentError: It goes none of them; or the last of a request's attempts failed.
        InputError: It has no such model.
    """
    reasons: dict[str, list[str]] = {}
    for way in ways:
        try:
            return _settled(way, manner, retry)
        except (RefusedError, LackingError) as error:
            if isinstance(error, RefusedError) and error.status in _NO_USE:
                raise
            said = (
                f"{error.status}, {error.reason}" if isinstance(error, RefusedError) else str(error)
            )
            reasons.setdefault(said, []).append(way.name)
        except PermanentError as error:
            if not isinstance(error.__cause__, ServerError):
                raise
            reasons.setdefault(str(error.__cause__), []).append(way.name)
    _check_model(server)
    told = "; ".join(f"{', '.join(names)}: {said}" for said, names in reasons.items())
    raise PermanentError(
        f"{server.endpoint.url} does not score label words with {server.model!r} ({told}): check "
        "the model, and that the URL ends where /chat/completions begins, as in /v1"
    )


def _settled(way: Way, manner: Manner, retry: Retry) -> Scorer:
    while True:
        scorer = way.make(manner)
        failure = retry.run(partial(_failure, scorer))
        if failure is None:
            return scorer
        another = scorer.channel.manner.after(failure)
        if another is None:
            raise failure
        manner = another


def _failure(scorer: Scorer) -> RefusedError | LackingError | None:
    try:
        both = scorer.try_out(_ROWS, _WORDS)
        if scorer.channel.manner.several and both.tokens:
            _, one = scorer.score(_ROWS[:1], _WORDS)
            if both.tokens <= one.tokens:  # llama.cpp
                return CountError("of several prompts the server counts the tokens of one")
    except (RefusedError, LackingError) as error:
        return error
    return None


def _check_model(server: Server) -> None:
    try:
        names = [str(model["id"]) for model in server.endpoint.get("/models").json()["data"]]
    except (BackendError, KeyError, TypeError):
        return  # it does not say what it has
    if names and server.model not in names:
        raise InputError(
            f"{server.endpoint.url} has no model {server.model!r}; "
            f"{did_you_mean(server.model, names)}"
        )
