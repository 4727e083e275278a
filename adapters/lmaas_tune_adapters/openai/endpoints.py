"""The two endpoints: how each is asked, and in which manner a server wants it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from lmaas_tune.backend import Usage
from lmaas_tune.errors import InputError, LMaaSError
from lmaas_tune_adapters.http import NOTHING, BusyError, Endpoint, RefusedError, joined
from lmaas_tune_adapters.openai.replies import Choice, CountError, LackingError, read

TOPS = (20, 5, 1)
"""How many of the likeliest tokens are asked for, as long as a server refuses."""

MORE = (100, 1000, 5000)
"""How many are asked for where label words are missing from the first of `TOPS`."""

Bias: TypeAlias = Mapping[str, float]

_TOO_LONG = re.compile(
    r"context.?(length|size|window)|too many tokens|prompt is too long|tokens? exceed"
    r"|max_tokens must be at least 1, got 0",  # vLLM, where the prompt fills the context
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a server wants to be asked, which its refusals tell.

    Attributes:
        tops: Numbers of likeliest tokens to try from here on, the first one now.
        more: Numbers to raise it to where label words are missing.
        several: Whether one completions request holds several prompts.
        limit: Field that bounds what is written.
        greedy: Whether a temperature of 0 is asked for.
    """

    tops: tuple[int, ...] = TOPS
    more: tuple[int, ...] = MORE
    several: bool = True
    limit: str = "max_tokens"
    greedy: bool = True

    def after(self, error: RefusedError | LackingError) -> Manner | None:
        """What to try after this one failed; None if nothing is left."""
        if isinstance(error, RefusedError):
            if error.status not in (400, 422):
                return None
            if "max_completion_tokens" in error.reason and self.limit == "max_tokens":
                return replace(self, limit="max_completion_tokens")
            if "temperature" in error.reason and self.greedy:
                return replace(self, greedy=False)
            if "logprobs" in error.reason and len(self.tops) > 1:
                return replace(self, tops=self.tops[1:], more=())
        elif not isinstance(error, CountError):
            return None
        return replace(self, several=False) if self.several else None

    def fields(self, write: int) -> dict[str, Any]:
        """Fields of every body that is to bring so many tokens."""
        return {self.limit: write, **({"temperature": 0} if self.greedy else {})}


@dataclass(frozen=True, kw_only=True)
class Server:
    """Who is asked, and what goes with every request.

    Attributes:
        endpoint: Of the URL and the key.
        model: As the server calls it.
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
        """Send one request that holds so many prompts; see `Channel.ask`."""
        body = {"model": self.model, **self.fields, **body}
        try:
            answer = self.endpoint.post(path, content=body)
        except RefusedError as error:
            if _TOO_LONG.search(error.reason):
                raise InputError(
                    f"a row with its prompt is longer than {self.model!r} reads "
                    f"({error.reason}): shorten the texts or the prompt"
                ) from error
            raise
        choices, tokens = read(answer, count=prompts, logprobs="logprobs" in body)
        return choices, answer.usage + Usage(sequences=prompts, tokens=tokens)


class Channel(Protocol):
    """One of the two endpoints, asked in one manner.

    Attributes:
        name: ``completions`` or ``chat``.
        manner: As given.
    """

    name: str
    manner: Manner

    def ask(
        self,
        texts: Sequence[str],
        *,
        write: int = 1,
        top: int | None = None,
        echo: bool = False,
        bias: Bias | None = None,
    ) -> tuple[list[Choice], Usage]:
        """What the model writes after each text.

        Args:
            texts: One or more.
            write: Most tokens to write.
            top: How many of the likeliest tokens to ask for in each place; None asks for no
                log-probabilities.
            echo: Give the text's own tokens too, before the written ones (completions only).
            bias: What is added to tokens' logits before one is chosen, by token.

        Raises:
            InputError: A text is longer than the model reads.
            RefusedError: The server does not do that.
            TransientError: No answer, or no whole one.
        """
        ...


class Completions:
    """Goes on with a text as it stands."""

    name = "completions"

    def __init__(self, server: Server, manner: Manner) -> None:
        self._server, self.manner = server, manner

    def ask(
        self,
        texts: Sequence[str],
        *,
        write: int = 1,
        top: int | None = None,
        echo: bool = False,
        bias: Bias | None = None,
    ) -> tuple[list[Choice], Usage]:
        """See `Channel.ask`."""
        body = self.manner.fields(write)
        body |= {"logprobs": top} if top is not None else {}
        body |= {"echo": True} if echo else {}
        body |= {"logit_bias": bias} if bias is not None else {}
        if not self.manner.several:
            return _joined(self._ask(body, [text]) for text in texts)
        return self._ask(body, texts)

    def _ask(self, body: Mapping[str, Any], texts: Sequence[str]) -> tuple[list[Choice], Usage]:
        """One request; two of half the size where the server's queue is too short for it."""
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
    """Answers a message; one a request."""

    name = "chat"

    def __init__(self, server: Server, manner: Manner) -> None:
        self._server, self.manner = server, replace(manner, several=False)

    def ask(
        self,
        texts: Sequence[str],
        *,
        write: int = 1,
        top: int | None = None,
        echo: bool = False,
        bias: Bias | None = None,
    ) -> tuple[list[Choice], Usage]:
        """See `Channel.ask`."""
        body = self.manner.fields(write)
        body |= {"logprobs": True, "top_logprobs": top} if top is not None else {}
        body |= {"logit_bias": bias} if bias is not None else {}
        return _joined(
            self._server.ask("/chat/completions", {**body, "messages": said}, prompts=1)
            for said in map(self._messages, texts)
        )

    def _messages(self, text: str) -> list[dict[str, str]]:
        system = self._server.system
        before = [] if system is None else [{"role": "system", "content": system}]
        return [*before, {"role": "user", "content": text}]


class Asking:
    """The requests of one answer, added up: an error that ends it tells what all of them took.

    Args:
        channel: Who is asked.

    Attributes:
        channel: As given.
        usage: What was taken so far.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel, self.usage = channel, NOTHING
        self._under_way = False

    def __enter__(self) -> Asking:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, LMaaSError):
            sent = self._under_way and not isinstance(error, InputError)
            own = Usage(requests=int(sent)) if error.usage is None else error.usage
            error.usage = self.usage + own

    def __call__(
        self,
        texts: Sequence[str],
        *,
        write: int = 1,
        top: int | None = None,
        echo: bool = False,
        bias: Bias | None = None,
    ) -> list[Choice]:
        """See `Channel.ask`."""
        self._under_way = True
        choices, taken = self.channel.ask(texts, write=write, top=top, echo=echo, bias=bias)
        self._under_way = False
        self.usage += taken
        return choices


def _joined(
    parts: Iterable[tuple[list[Choice], Usage]], before: Usage = NOTHING
) -> tuple[list[Choice], Usage]:
    found, usage = joined(parts, before)
    return [choice for part in found for choice in part], usage
