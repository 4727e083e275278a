"""The backend `openai`: its options, the detected scorer, requests and replies."""

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
from lmaas_tune_adapters.http import AT_START, Endpoint, Key, RefusedError, joined
from lmaas_tune_adapters.openai.detect import ScoringMode, detect_mode
from lmaas_tune_adapters.openai.endpoints import Chat, Completions, RequestFormat, Server
from lmaas_tune_adapters.openai.forced import ForcedScorer
from lmaas_tune_adapters.openai.label_tokenizer import LabelTokenizer
from lmaas_tune_adapters.openai.margins import MarginScorer
from lmaas_tune_adapters.openai.rows import Context, contexts_of
from lmaas_tune_adapters.openai.scorers import EchoScorer, GeneratedTextScorer, Scorer
from lmaas_tune_adapters.openai.top_logprobs import TopLogprobsScorer

OPENAI = "https://api.openai.com/v1"

EndpointName: TypeAlias = Literal["auto", "completions", "chat"]
Scores: TypeAlias = Literal["auto", "echo", "forced", "margins", "logprobs", "text"]

_MODES = (
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

_RESERVED = frozenset(
    {"model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "n"}
    | {"seed", "stream", "echo", "logprobs", "top_logprobs", "logit_bias"}
)
"""Fields of a request that `extra_body` may not hold."""


class OpenAIBackend:
    """A model behind an OpenAI-compatible completions or chat endpoint, with text prompts.

    At the start it tries the scoring modes that the options leave open on two short rows, the
    best first, until the server supports one: the echoed tokens of label words (exact); words
    forced by `logit_bias` where they are not among the likeliest tokens (exact); words raised
    together (exact differences); the likeliest first tokens; the answer's text. `identity` names
    the mode.

    Args:
        model: The model's name on the server.
        url: Up to where ``/completions`` and ``/chat/completions`` begin. Without any path, not
            even a slash, it gets ``/v1``, which most servers have.
        api_key_file: A file that holds the key; else the environment's OPENAI_API_KEY, else none.
        endpoint: ``completions`` continues a row, ``chat`` answers it as a message, ``auto``
            takes the first that works.
        scores: ``echo``, ``forced``, ``margins``, ``logprobs`` or ``text``, in the order above,
            or ``auto``.
        top_logprobs: How many likeliest tokens to ask for; None asks for 20, fewer where that is
            refused, and with ``logprobs`` more where a label word is missing.
        token_ids: The ids of each label word's tokens in order, for a server that takes
            `logit_bias` and has no tokenizer endpoint.
        answer_tokens: Most tokens of an answer whose text is read.
        system: Message before every row, of a chat.
        seed: Sent with every request, for servers that then give equal answers.
        extra_body: Further fields of every request, as ``{"reasoning_effort": "none"}``.
        timeout: Seconds that one request may take.
        retry: How transient failures at the start are tried again; later the client does that.

    Raises:
        InputError: An option is invalid, or the server has no such model.
        PermanentError: The server supports no mode; the message quotes its answer to each.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str = OPENAI,
        api_key_file: str | os.PathLike[str] | None = None,
        endpoint: EndpointName = "auto",
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
        pairs = _open_modes(endpoint, scores, system)
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
        tokenizer = LabelTokenizer(root, model, _checked_ids(token_ids))
        modes = [_mode(*pair, server, answer_tokens, tokenizer) for pair in pairs]
        self._shown = f"OpenAIBackend({model!r}, url={server.endpoint.url!r})"
        self._scorer = _detect(modes, top_logprobs, server, retry)
        self.capabilities = Capabilities(
            soft_prompt_width=None,
            deterministic=False,  # other users' requests change the order of a server's sums
            rows_per_call=self._scorer.rows,
        )
        self.identity = _identity(server, self._scorer, seed, extra)

    def __repr__(self) -> str:
        return self._shown

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """See `lmaas_tune.backend.Backend.score`."""
        contexts = [contexts_of(request) for request in requests]
        each = (self._score(c, r.candidates) for c, r in zip(contexts, requests, strict=True))
        replies, _ = joined((reply, reply.usage) for reply in each)
        return replies

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        """See `lmaas_tune.backend.Inspects.inspect`."""
        rows = len(contexts_of(request))
        notes = self._scorer.notes(_words(request.candidates))
        return Inspection(tuple(notes), Usage(requests=1, sequences=rows))

    def _score(self, contexts: Sequence[Context], candidates: Sequence[str]) -> ScoreReply:
        words, most = _words(candidates), self._scorer.rows
        starts = range(0, len(contexts), most)
        each = (self._scorer.score(contexts[start : start + most], words) for start in starts)
        parts, usage = joined((part, part.usage) for part in each)
        scores = [np.zeros((0, len(words))), *(part.logprobs for part in parts)]
        usage = replace(usage, sequences=len(contexts))
        return ScoreReply(np.concatenate(scores), usage, sum(part.bounds for part in parts))


def _open_modes(endpoint: str, scores: str, system: str | None) -> list[tuple[str, str]]:
    """Those of `_MODES` that the options leave open."""
    for option, value, known in (
        ("endpoint", endpoint, get_args(EndpointName)),
        ("scores", scores, get_args(Scores)),
    ):
        if value not in known:
            raise InputError(f"unknown {option} {value!r}; {did_you_mean(value, known)}")
    pairs = [
        (name, mode)
        for name, mode in _MODES
        if endpoint in ("auto", name) and scores in ("auto", mode)
        if system is None or name == "chat"
    ]
    if not pairs:
        raise InputError(
            f"endpoint={endpoint!r} and scores={scores!r}"
            f"{' with a system message' if system is not None else ''} do not go together: "
            "only completions echo their text, and only a chat has a system message"
        )
    return pairs


def _mode(
    endpoint: str, scores: str, server: Server, answer_tokens: int, tokenizer: LabelTokenizer
) -> ScoringMode:
    def make(request_format: RequestFormat) -> Scorer:
        if scores == "echo":
            return EchoScorer(Completions(server, request_format))
        called = (Chat if endpoint == "chat" else Completions)(server, request_format)
        if scores == "forced":
            return ForcedScorer(called, tokenizer)
        if scores == "margins":
            return MarginScorer(called, tokenizer)
        if scores == "logprobs":
            return TopLogprobsScorer(called)
        return GeneratedTextScorer(called, max_tokens=answer_tokens)

    given = tokenizer.given if scores in ("forced", "margins") else ()
    name = f"{endpoint} with {scores}"
    return ScoringMode(name, make, given) if given else ScoringMode(name, make)


def _detect(
    modes: Sequence[ScoringMode], top_logprobs: int | None, server: Server, retry: Retry
) -> Scorer:
    """Detect the mode; an error for a missing key names the places where keys are read."""
    request_format = RequestFormat()
    if top_logprobs is not None:
        request_format = RequestFormat(top_counts=(top_logprobs,), larger_counts=())
    try:
        return detect_mode(modes, request_format, server, retry)
    except RefusedError as error:
        if server.signed or error.status != 401:
            raise
        raise RefusedError(
            f"{error}: none was given, by api_key_file or in OPENAI_API_KEY",
            status=401,
            reason=error.reason,
        ) from error


def _identity(
    server: Server, scorer: Scorer, seed: int | None, extra_body: Mapping[str, Any]
) -> str:
    """Name the model, the scoring mode, and every option that changes answers."""
    settings = [
        f"openai {server.model} at={_location(server.endpoint.url)}",
        f"endpoint={scorer.endpoint.name} {scorer.settings}",
    ]
    settings += [f"system={_digest(server.system)}"] if server.system is not None else []
    settings += [f"seed={seed}"] if seed is not None else []
    body = json.dumps(extra_body, sort_keys=True)
    settings += [f"extra_body={_digest(body)}"] if extra_body else []
    return " ".join(settings)


def _checked(extra_body: Mapping[str, Any] | None) -> dict[str, Any]:
    extra = dict(extra_body or {})
    for name in extra:
        if name in _RESERVED:
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


def _location(url: str) -> str:
    """A server in an identity. A path may name an account, so only its digest is shown."""
    parts = urlsplit(url)
    return parts.netloc if parts.path in ("", "/v1") else f"{parts.netloc}/{_digest(parts.path)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
