"""The backend itself: options in, a scorer that the server takes, requests and replies."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

import numpy as np

from lmaas_tune.backend import Capabilities, Inspection, ScoreReply, ScoreRequest, Usage
from lmaas_tune.calls.retry import Retry
from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.prompts import FloatArray
from lmaas_tune_adapters.http import AT_START, Endpoint, Key, RefusedError
from lmaas_tune_adapters.openai.channels import Chat, Completions, Manner, Server
from lmaas_tune_adapters.openai.forced import Forced
from lmaas_tune_adapters.openai.likeliest import Likeliest
from lmaas_tune_adapters.openai.margins import Margins
from lmaas_tune_adapters.openai.rows import Question, questions
from lmaas_tune_adapters.openai.scorers import Echoed, Scorer, Spoken
from lmaas_tune_adapters.openai.spelling import Spelling
from lmaas_tune_adapters.openai.trial import Way, first_that_works

OPENAI = "https://api.openai.com/v1"

Channel: TypeAlias = Literal["auto", "completions", "chat"]
Scores: TypeAlias = Literal["auto", "echo", "forced", "margins", "logprobs", "text"]

_WAYS = (
    ("completions", "echo"),
    ("completions", "forced"),
    ("completions", "margins"),
    ("completions", "logprobs"),
    ("chat", "forced"),
    ("chat", "margins"),
    ("chat", "logprobs"),
    ("chat", "text"),
    ("completions", "text"),
)
"""Best first."""

_OURS = frozenset(
    {"model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "n"}
    | {"seed", "stream", "echo", "logprobs", "top_logprobs", "logit_bias"}
)
"""Fields of a request that are not the user's."""


class OpenAIBackend:
    """A model behind an OpenAI-compatible completions or chat endpoint, with text prompts.

    At the start it asks two short rows in each way that is open, the best first, until the
    server goes one of them: label words' own tokens, echoed (exact); the words forced by
    `logit_bias` where they are not among the likeliest tokens (exact); raised together (exact
    differences); the likeliest first tokens; the answer's text. `identity` says which it was.

    Args:
        model: As the server calls it.
        url: Up to where ``/completions`` and ``/chat/completions`` begin. With no path at all,
            not even a slash, it gets ``/v1``, where most servers have them.
        api_key_file: A file that holds the key; else the environment's OPENAI_API_KEY, else none.
        endpoint: ``completions`` goes on with a row as it stands, ``chat`` answers it as a
            message, ``auto`` takes what works.
        scores: ``echo``, ``forced``, ``margins``, ``logprobs`` or ``text``, in the order above,
            or ``auto``.
        top_logprobs: How many likeliest tokens to ask for; None asks for 20, fewer where that is
            refused, and with ``logprobs`` more where a label word is missing.
        token_ids: The ids of each label word's tokens, in the order of the word, for a server
            that takes `logit_bias` and has no tokenizer to ask.
        answer_tokens: Most tokens of an answer whose text is read.
        system: Message before every row, of a chat.
        seed: Sent with every request, for servers that then answer alike.
        extra_body: Further fields of every request, as ``{"reasoning_effort": "none"}``.
        timeout: Seconds that one request may take.
        retry: How transient failures at the start are tried again; later the client does that.

    Raises:
        InputError: An option that cannot be, or the server has no such model.
        PermanentError: The server goes none of the ways, with what it said to each.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str = OPENAI,
        api_key_file: str | os.PathLike[str] | None = None,
        endpoint: Channel = "auto",
        scores: Scores = "auto",
        top_logprobs: int | None = None,
        token_ids: Mapping[str, Sequence[int]] | None = None,
        answer_tokens: int = 16,
        system: str | None = None,
        seed: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
        retry: Retry = AT_START,
    ) -> None:
        if not model:
            raise InputError("the model has no name: give it as the server calls it")
        if not isinstance(system, str | None):
            raise InputError(f"system={system!r}: give the message as text")
        for name, value in (("top_logprobs", top_logprobs), ("answer_tokens", answer_tokens)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")
        pairs = _open_ways(endpoint, scores, system)
        extra = _checked(extra_body)
        key = Key.find(file=api_key_file, variable="OPENAI_API_KEY")
        server = Server(
            endpoint=Endpoint(_with_path(url), key=key, timeout=timeout),
            model=model,
            system=system,
            fields=extra if seed is None else {**extra, "seed": seed},
            signed=key is not None,
        )
        root = Endpoint(server.endpoint.url.removesuffix("/v1"), key=key, timeout=timeout)
        spelling = Spelling(root, model, _checked_ids(token_ids))
        ways = [_way(*pair, server, answer_tokens, spelling) for pair in pairs]
        manner = Manner() if top_logprobs is None else Manner(tops=(top_logprobs,), more=())
        self._shown = f"OpenAIBackend({model!r}, url={server.endpoint.url!r})"
        try:
            self._scorer = first_that_works(ways, manner, server, retry)
        except RefusedError as error:
            if key is not None or error.status != 401:
                raise
            raise RefusedError(
                f"{error}: none was given, by api_key_file or in OPENAI_API_KEY",
                status=401,
                reason=error.reason,
            ) from error
        self.capabilities = Capabilities(
            soft_prompt_width=None,
            deterministic=False,  # a server that others use adds up in another order each time
            rows_per_call=self._scorer.rows,
        )
        settings = [
            f"openai {model} at={_place(server.endpoint.url)}",
            f"endpoint={self._scorer.channel.name} {self._scorer.settings}",
        ]
        settings += [f"system={_digest(system)}"] if system is not None else []
        settings += [f"seed={seed}"] if seed is not None else []
        settings += [f"extra_body={_digest(json.dumps(extra, sort_keys=True))}"] if extra else []
        self.identity = " ".join(settings)

    def __repr__(self) -> str:
        return self._shown

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """See `lmaas_tune.backend.Backend.score`."""
        asked = [questions(request) for request in requests]
        return [self._score(q, r.candidates) for q, r in zip(asked, requests, strict=True)]

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        """See `lmaas_tune.backend.Inspects.inspect`."""
        rows = len(questions(request))
        notes = self._scorer.notes(_words(request.candidates))
        return Inspection(tuple(notes), Usage(requests=1, sequences=rows))

    def _score(self, asked: Sequence[Question], candidates: Sequence[str]) -> ScoreReply:
        words, most = _words(candidates), self._scorer.rows
        scores: list[FloatArray] = [np.zeros((0, len(words)))]
        usage, bounds = Usage(), 0
        for start in range(0, len(asked), most):
            part = self._scorer.score(asked[start : start + most], words)
            scores.append(part.logprobs)
            usage, bounds = usage + part.usage, bounds + part.bounds
        usage = replace(usage, sequences=len(asked))
        return ScoreReply(np.concatenate(scores), usage, bounds)


def _open_ways(endpoint: str, scores: str, system: str | None) -> list[tuple[str, str]]:
    """Those of `_WAYS` that the options leave."""
    for what, value, known in (
        ("endpoint", endpoint, get_args(Channel)),
        ("scores", scores, get_args(Scores)),
    ):
        if value not in known:
            raise InputError(f"unknown {what} {value!r}; {did_you_mean(value, known)}")
    pairs = [
        (channel, way)
        for channel, way in _WAYS
        if endpoint in ("auto", channel) and scores in ("auto", way)
        if system is None or channel == "chat"
    ]
    if not pairs:
        raise InputError(
            f"endpoint={endpoint!r} and scores={scores!r}"
            f"{' with a system message' if system is not None else ''} do not go together: "
            "only completions echo what they read, and only a chat has a system message"
        )
    return pairs


def _way(channel: str, scores: str, server: Server, answer_tokens: int, spelling: Spelling) -> Way:
    def make(manner: Manner) -> Scorer:
        if scores == "echo":
            return Echoed(Completions(server, manner))
        asked = Chat(server, manner) if channel == "chat" else Completions(server, manner)
        if scores in ("forced", "margins"):
            return (Forced if scores == "forced" else Margins)(asked, spelling)
        return Likeliest(asked) if scores == "logprobs" else Spoken(asked, write=answer_tokens)

    given = spelling.given if scores in ("forced", "margins") else ()
    name = f"{channel} with {scores}"
    return Way(name, make, given) if given else Way(name, make)


def _checked(extra_body: Mapping[str, Any] | None) -> dict[str, Any]:
    extra = dict(extra_body or {})
    for name in extra:
        if name in _OURS:
            raise InputError(f"extra_body holds {name!r}, which this backend sets itself")
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"extra_body cannot be sent as JSON: {error}") from error
    return extra


def _checked_ids(token_ids: Mapping[str, Sequence[int]] | None) -> dict[str, Sequence[int]]:
    given = dict(token_ids or {})
    for word, ids in given.items():
        whole = isinstance(ids, list | tuple) and all(type(i) is int and i >= 0 for i in ids)
        if not whole or not ids:
            raise InputError(f"token_ids of {word!r}: {ids!r:.60} are no ids; give as [2294, 11]")
    return {word.strip(): ids for word, ids in given.items()}


def _with_path(url: str) -> str:
    host = url.partition("://")[2]
    return f"{url}/v1" if host and "/" not in host else url


def _words(candidates: Sequence[str]) -> tuple[str, ...]:
    return tuple(candidate.strip() for candidate in candidates)


def _place(url: str) -> str:
    """Who is asked. A path may name an account: only that it is another one is shown."""
    parts = urlsplit(url)
    return parts.netloc if parts.path in ("", "/v1") else f"{parts.netloc}/{_digest(parts.path)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
