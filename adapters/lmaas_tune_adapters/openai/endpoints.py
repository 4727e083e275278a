"""The two endpoints, completions and chat, and the request format that a server accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from lmaas_tune.backend import Usage
from lmaas_tune.errors import InputError, LMaaSError
from lmaas_tune_adapters.http import NO_USAGE, BusyError, Endpoint, RefusedError, joined
from lmaas_tune_adapters.openai.replies import Choice, CountError, IncompleteError, read

TOP_COUNTS = (20, 5, 1)
"""Numbers of likeliest tokens to ask for; the next one follows where a server refuses."""

LARGER_COUNTS = (100, 1000, 5000)
"""Numbers to ask for where label words are missing from the first of `TOP_COUNTS`."""

INVALID = (400, 422)
"""Statuses that refuse the form of a request."""

Bias: TypeAlias = Mapping[str, float]
"""The number that is added to the logit of each token."""

_TOO_LONG = re.compile(
    r"context.?(length|size|window)|too many tokens|prompt is too long|tokens? exceed"
    r"|max_tokens must be at least 1, got 0",  # vLLM, where the prompt fills the context
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class RequestFormat:
    """The variant of the API that a server accepts, found from its refusals.

    Attributes:
        top_counts: Numbers of likeliest tokens to ask for: the first now, the others later.
        larger_counts: Numbers to raise it to where label words are missing.
        batched: Whether one completions request holds several prompts.
        limit_field: The field that limits the written tokens.
        greedy: Whether a temperature of 0 is sent.
    """

    top_counts: tuple[int, ...] = TOP_COUNTS
    larger_counts: tuple[int, ...] = LARGER_COUNTS
    batched: bool = True
    limit_field: str = "max_tokens"
    greedy: bool = True

    def fallback(self, error: RefusedError | IncompleteError) -> RequestFormat | None:
        """The format to try after an error of this one; None if nothing is left."""
        if isinstance(error, RefusedError):
            if error.status not in INVALID:
                return None
            if (named := self._without_field(error.reason)) is not None:
                return named
        elif not isinstance(error, CountError):
            return None
        return replace(self, batched=False) if self.batched else None

    def _without_field(self, reason: str) -> RequestFormat | None:
        """The format without the field that a refusal names."""
        if "max_completion_tokens" in reason and self.limit_field == "max_tokens":
            return replace(self, limit_field="max_completion_tokens")
        if "temperature" in reason and self.greedy:
            return replace(self, greedy=False)
        if "logprobs" in reason and len(self.top_counts) > 1:
            return replace(self, top_counts=self.top_counts[1:], larger_counts=())
        return None

    def fields(self, max_tokens: int) -> dict[str, Any]:
        """Fields of every request body."""
        return {self.limit_field: max_tokens, **({"temperature": 0} if self.greedy else {})}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of one request.

    Attributes:
        max_tokens: Most tokens to write.
        top_logprobs: How many of the likeliest tokens to return in each place; None asks for no
            log-probabilities.
        echo: Return the text's own tokens too, before the written ones (completions only).
        logit_bias: Added to tokens' logits before one is chosen.
    """

    max_tokens: int = 1
    top_logprobs: int | None = None
    echo: bool = False
    logit_bias: Bias | None = None


ONE_TOKEN = SamplingParams()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server, its model, and the fields of every request.

    Attributes:
        endpoint: With the URL and the key.
        model: The model's name on the server.
        system: Message before the text, of a chat.
        fields: Further fields of every body.
        signed: Whether there is a key.
    """

    endpoint: Endpoint
    model: str
    system: str | None
    fields: Mapping[str, Any]
    signed: bool = False

    def ask(
        self, path: str, body: Mapping[str, Any], *, prompts: int
    ) -> tuple[list[Choice], Usage]:
        """Send one request with `prompts` prompts; see `GenerationEndpoint.ask`."""
        body = {"model": self.model, **self.fields, **body}
        try:
            answer = self.endpoint.post(path, content=body)
        except RefusedError as error:
            if _TOO_LONG.search(error.reason):
                raise InputError(
                    f"a row with its prompt is longer than {self.model!r} reads "
                    f"({error.reason}): shorten the texts (--truncate N) or the prompt"
                ) from error
            raise
        choices, tokens = read(answer, count=prompts, logprobs="logprobs" in body)
        return choices, answer.usage + Usage(sequences=prompts, tokens=tokens)


class GenerationEndpoint(Protocol):
    """One of the two endpoints, called in one request format.

    Attributes:
        name: ``completions`` or ``chat``.
        request_format: As given.
    """

    name: str
    request_format: RequestFormat

    def ask(
        self, texts: Sequence[str], params: SamplingParams = ONE_TOKEN
    ) -> tuple[list[Choice], Usage]:
        """Let the model continue each text.

        Args:
            texts: One or more.
            params: Of all requests.

        Raises:
            InputError: A text is longer than the model reads.
            RefusedError: The server refuses the request.
            TransientError: No answer, or an incomplete one.
        """
        ...


class Completions:
    """The completions endpoint, which continues a text as it is."""

    name = "completions"

    def __init__(self, server: Server, request_format: RequestFormat) -> None:
        self._server, self.request_format = server, request_format

    def ask(
        self, texts: Sequence[str], params: SamplingParams = ONE_TOKEN
    ) -> tuple[list[Choice], Usage]:
        """See `GenerationEndpoint.ask`."""
        body = self.request_format.fields(params.max_tokens)
        if params.top_logprobs is not None:
            body["logprobs"] = params.top_logprobs
        if params.echo:
            body["echo"] = True
        if params.logit_bias is not None:
            body["logit_bias"] = params.logit_bias
        if not self.request_format.batched:
            return _joined(self._ask(body, [text]) for text in texts)
        return self._ask(body, texts)

    def _ask(self, body: Mapping[str, Any], texts: Sequence[str]) -> tuple[list[Choice], Usage]:
        """Send one request; two of half the size where the server's queue is too short for it."""
        prompt = list(texts) if len(texts) > 1 else texts[0]
        try:
            return self._server.ask("/completions", {**body, "prompt": prompt}, prompts=len(texts))
        except BusyError as error:
            if len(texts) == 1 or error.retry_after is not None:
                raise
        half = len(texts) // 2
        parts = (self._ask(body, part) for part in (texts[:half], texts[half:]))
        return _joined(parts, before=Usage(requests=1))


class Chat:
    """The chat endpoint, which answers one message a request."""

    name = "chat"

    def __init__(self, server: Server, request_format: RequestFormat) -> None:
        self._server, self.request_format = server, replace(request_format, batched=False)

    def ask(
        self, texts: Sequence[str], params: SamplingParams = ONE_TOKEN
    ) -> tuple[list[Choice], Usage]:
        """See `GenerationEndpoint.ask`."""
        body = self.request_format.fields(params.max_tokens)
        if params.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": params.top_logprobs}
        if params.logit_bias is not None:
            body["logit_bias"] = params.logit_bias
        return _joined(
            self._server.ask("/chat/completions", {**body, "messages": messages}, prompts=1)
            for messages in map(self._messages, texts)
        )

    def _messages(self, text: str) -> list[dict[str, str]]:
        system = self._server.system
        before = [] if system is None else [{"role": "system", "content": system}]
        return [*before, {"role": "user", "content": text}]


class TrackedEndpoint:
    """Adds up the usage of requests; an error that leaves the context carries all of it.

    Args:
        endpoint: Receives the requests.

    Attributes:
        endpoint: As given.
        usage: Of all requests so far.
    """

    def __init__(self, endpoint: GenerationEndpoint) -> None:
        self.endpoint, self.usage = endpoint, NO_USAGE
        self._under_way = False

    def __enter__(self) -> TrackedEndpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, LMaaSError):
            sent = self._under_way and not isinstance(error, InputError)
            failed = Usage(requests=int(sent)) if error.usage is None else error.usage
            error.usage = self.usage + failed

    def book(self, error: LMaaSError) -> None:
        """Add the usage of a request whose error does not leave the context."""
        self.usage += Usage(requests=1) if error.usage is None else error.usage
        self._under_way = False

    def ask(self, texts: Sequence[str], params: SamplingParams = ONE_TOKEN) -> list[Choice]:
        """See `GenerationEndpoint.ask`."""
        self._under_way = True
        choices, usage = self.endpoint.ask(texts, params)
        self._under_way = False
        self.usage += usage
        return choices


def _joined(
    parts: Iterable[tuple[list[Choice], Usage]], before: Usage = NO_USAGE
) -> tuple[list[Choice], Usage]:
    found, usage = joined(parts, before)
    return [choice for part in found for choice in part], usage
