"""Finding out, before anything is tuned, in which way a server scores label words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lmaas_tune.calls.retry import Retry
from lmaas_tune.errors import BackendError, InputError, PermanentError, did_you_mean
from lmaas_tune_adapters.http import RefusedError, ServerError
from lmaas_tune_adapters.openai.channels import Channel, Manner, Server
from lmaas_tune_adapters.openai.replies import CountError, LackingError
from lmaas_tune_adapters.openai.rows import Question
from lmaas_tune_adapters.openai.scorers import Scorer

_ROWS = (Question("One and one is", spaced=True), Question("Two and two is", spaced=True))
_NO_USE = (401, 402)  # not the way of asking is refused, but who asks


@dataclass(frozen=True)
class Way:
    """A way to score, not tried yet.

    Attributes:
        name: For messages.
        make: The scorer that asks in a manner.
        words: Label words to try it with.
    """

    name: str
    make: Callable[[Manner], Scorer]
    words: Sequence[str] = ("two", "four")


def first_that_works(ways: Sequence[Way], manner: Manner, server: Server, retry: Retry) -> Scorer:
    """The scorer of the first way that the server goes, in the manner that it wants.

    Each try asks for two short rows; what a server refuses costs nothing.

    Raises:
        PermanentError: It goes none of them; or the last of a request's attempts failed.
        InputError: It has no such model.
    """
    reasons: dict[str, list[str]] = {}
    failures: list[Exception] = []
    for way in ways:
        try:
            return _settled(way, manner, server, retry)
        except (RefusedError, LackingError) as error:
            if isinstance(error, RefusedError) and error.status in _NO_USE:
                raise
            said = (
                f"{error.status}, {error.reason}" if isinstance(error, RefusedError) else str(error)
            )
            reasons.setdefault(said, []).append(way.name)
            failures.append(error)
        except PermanentError as error:
            if not isinstance(error.__cause__, ServerError):
                raise
            reasons.setdefault(str(error.__cause__), []).append(way.name)
    remedy = _blamed(server, failures)
    told = "; ".join(f"{', '.join(names)}: {said}" for said, names in reasons.items())
    raise PermanentError(
        f"{server.endpoint.url} does not score label words with {server.model!r} ({told}): {remedy}"
    )


def _settled(way: Way, manner: Manner, server: Server, retry: Retry) -> Scorer:
    while True:
        scorer = way.make(manner)
        failure = retry.run(partial(_failure, scorer, server, way.words))
        if failure is None:
            return scorer
        another = scorer.channel.manner.after(failure)
        if another is None:
            raise failure
        manner = another


def _failure(
    scorer: Scorer, server: Server, words: Sequence[str]
) -> RefusedError | LackingError | None:
    try:
        scorer.try_out(_ROWS, words)
        return _miscounts(scorer.channel) if scorer.channel.manner.several else None
    except (RefusedError, LackingError) as error:
        return error
    except ServerError as error:
        _see_key(server, error)
        raise


def _miscounts(channel: Channel) -> CountError | None:
    """What is wrong where a server counts the first of several prompts alone, as llama.cpp does."""
    texts = [question.text for question in _ROWS]
    (_, both), (_, one) = channel.ask(texts), channel.ask(texts[:1])
    if 0 < both.tokens <= one.tokens:
        return CountError("of several prompts the server counts the tokens of one")
    return None


def _see_key(server: Server, error: ServerError) -> None:
    """See that a server which fails without a key does not fail for want of one, as LiteLLM does.

    Raises:
        InputError: Not even its models can be asked for.
    """
    if server.signed:
        return
    try:
        server.endpoint.get("/models")
    except ServerError:
        raise InputError(
            f"{error}, and so does {server.endpoint.url}/models: no key was given, by "
            "api_key_file or in OPENAI_API_KEY, which LiteLLM answers like that"
        ) from error
    except BackendError:
        return


def _blamed(server: Server, failures: Sequence[Exception]) -> str:
    """What to check, by what the server said to each way.

    Raises:
        InputError: It does not have the model.
    """
    if any(isinstance(error, LackingError) for error in failures):
        return "the model and the URL are right, as it answers: try another scores= or endpoint="
    try:
        names = [str(model["id"]) for model in server.endpoint.get("/models").json()["data"]]
    except BackendError as error:
        if isinstance(error, RefusedError) and error.status != 404:
            key = "the key" if server.signed else "whether it wants a key (none was given)"
            return f"/models is refused too ({error.status}, {error.reason}): check {key}"
        names = []
    except (KeyError, TypeError):
        names = []  # it does not say what it has
    named = [e for e in failures if isinstance(e, RefusedError) and _names_model(server, e)]
    if named and names and server.model not in names:
        raise InputError(
            f"{server.endpoint.url} has no model {server.model!r}; "
            f"{did_you_mean(server.model, names)}"
        )
    if server.model in names and not named:
        return "it has the model: try another scores= or endpoint="
    return "check the model, and that the URL ends where /chat/completions begins, as in /v1"


def _names_model(server: Server, error: RefusedError) -> bool:
    """Whether a refusal is about the model's name."""
    return error.status == 404 or server.model in error.reason
