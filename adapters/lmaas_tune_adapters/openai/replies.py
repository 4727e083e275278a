"""Reading the replies of the completions and the chat endpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lmaas_tune.backend import Usage
from lmaas_tune.errors import TransientError
from lmaas_tune_adapters.http import Answer, paid, quoted, tokens_read

FLOOR = -100.0
"""Smallest log-probability that is passed on; smaller ones are raised to it."""

_ENDED = ("stop", "content_filter")
"""Values of `finish_reason` for which an answer may be empty."""

_NOTHING = 1e-3  # a smaller rest of probability is rounding

_EXCESS = 0.2  # of a sum of probabilities over 1, which servers that round to bfloat16 return

_THOUGHTS = ("<think", "[think]", "<|channel")
"""How a model's thoughts begin, where a server returns them as its answer."""

_FILLER = -9999.0  # means minus infinity, as null does


class IncompleteError(TransientError):
    """A reply lacks a part that the request names, this time or always."""


class CountError(IncompleteError):
    """Not all prompts of a request were answered, or not all were counted."""


@dataclass(frozen=True)
class Token:
    """One token that was read or written.

    Attributes:
        text: As the server writes it.
        content: Its bytes, which may end within a character.
        logprob: None for the first token read.
        top: The likeliest tokens in its place, itself included, each with its log-probability.
            Several may have one text.
        has_filler: Whether the server returned filler in place of some of them: entries without
            probability, though the others leave some.
    """

    text: str
    content: bytes
    logprob: float | None
    top: tuple[tuple[str, float], ...]
    has_filler: bool

    def known_logprob(self) -> float:
        """The log-probability.

        Raises:
            IncompleteError: The server does not give it.
        """
        if self.logprob is None:
            raise IncompleteError("the server gives no log-probability for one of the tokens")
        return self.logprob


@dataclass(frozen=True)
class Choice:
    """The text written for one prompt.

    Attributes:
        text: The whole text.
        tokens: Its tokens, where the request wants log-probabilities; empty where the model ended
            at once, or a filter removed the answer.
        thinks: Whether it begins with the model's thoughts instead of the answer.
    """

    text: str
    tokens: tuple[Token, ...]
    thinks: bool = False


def read(answer: Answer, *, count: int, logprobs: bool) -> tuple[list[Choice], int]:
    """Read the choices of a reply, in the order of the prompts.

    Errors carry the usage of the reply, which was paid.

    Args:
        answer: Of either endpoint.
        count: Prompts that were sent.
        logprobs: Whether the request wants log-probabilities.

    Returns:
        The choices, and the number of tokens that the server read.

    Raises:
        IncompleteError: No log-probabilities, or none that can be right.
        CountError: Another number of choices.
        TransientError: The content is no reply of these endpoints.
    """
    reply = _parsed(answer)
    tokens = tokens_read(reply)
    with paid(answer.usage + Usage(sequences=count, tokens=tokens or 0)):
        _check_error(reply, answer)
        if tokens is None:
            raise TransientError(f"{answer.url} does not give its usage in numbers")
        return _choices(reply, answer, count=count, logprobs=logprobs), tokens


def _parsed(answer: Answer) -> Any:
    """Parse the body as JSON, with minus infinity as some servers write it."""
    try:
        return json.loads(answer.content, parse_constant=_lowest)
    except (ValueError, RecursionError):
        return answer.json()  # raises an error that names the fault


def _lowest(name: str) -> float:
    if name != "-Infinity":
        raise ValueError(f"{name} is no number in JSON")
    return -math.inf


def _check_error(part: Any, answer: Answer) -> None:
    """Check that a reply with a status of success, or a choice in it, contains no error.

    Raises:
        TransientError: It does; the message quotes the server.
    """
    if not isinstance(part, Mapping):
        return
    failed = part.get("finish_reason") == "error"
    if error := part.get("error") or ("no reason given" if failed else None):
        message = error.get("message") if isinstance(error, Mapping) else error
        raise TransientError(
            f"{answer.url} answered with an error: {quoted(str(message), answer.key, most=300)}"
        )


def _choices(reply: Any, answer: Answer, *, count: int, logprobs: bool) -> list[Choice]:
    try:
        found = _ordered(reply["choices"], count, answer.url)
        for choice in found:
            _check_error(choice, answer)
        return [_choice(c, answer.url, logprobs=logprobs) for c in found]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise TransientError(
            f"{answer.url} did not answer as an OpenAI-compatible server does "
            f"({type(error).__name__}: {quoted(str(error), answer.key, most=200)}); check the URL "
            "if it stays so"
        ) from error


def _ordered(choices: list[Mapping[str, Any]], count: int, url: str) -> list[Mapping[str, Any]]:
    if len(choices) != count:
        raise CountError(f"{url} gave {len(choices)} choices for {count} prompts")
    if count == 1:
        return choices
    by_index = {choice.get("index"): choice for choice in choices}
    if set(by_index) != set(range(count)):
        raise CountError(f"{url} does not number its choices for the {count} prompts")
    return [by_index[index] for index in range(count)]


def _choice(choice: Mapping[str, Any], url: str, *, logprobs: bool) -> Choice:
    text, tokens = _text(choice), _tokens(choice, url) if logprobs else ()
    first = tokens[0].text if tokens else text
    message = choice.get("message") or {}
    thoughts = message.get("reasoning_content") or message.get("reasoning")  # the newer name
    return Choice(text, tokens, bool(thoughts and not text) or _thinks(first) or _thinks(text))


def _thinks(text: str) -> bool:
    return text.lstrip().casefold().startswith(_THOUGHTS)


def _text(choice: Mapping[str, Any]) -> str:
    text = choice["message"].get("content") if "message" in choice else choice["text"]
    return str(text or "")


def _tokens(choice: Mapping[str, Any], url: str) -> tuple[Token, ...]:
    found = choice.get("logprobs") or {}
    entries = found.get("content") or found.get("tokens")
    if choice.get("finish_reason") in _ENDED and not _text(choice) and not entries:
        return ()
    if found.get("content"):  # the chat endpoint's form; llama.cpp uses it for both
        tokens = [_of_chat(entry) for entry in found["content"]]
    elif found.get("tokens") and found.get("token_logprobs"):
        tops = found.get("top_logprobs") or [None] * len(found["tokens"])
        entries = zip(found["tokens"], found["token_logprobs"], tops, strict=True)
        tokens = [
            _token(text, None, logprob, (top or {}).items()) for text, logprob, top in entries
        ]
    else:
        raise IncompleteError(f"{url} answered without log-probabilities")
    return tuple(tokens)


def _of_chat(entry: Mapping[str, Any]) -> Token:
    tops = [(top["token"], top["logprob"]) for top in entry.get("top_logprobs") or ()]
    return _token(entry["token"], entry.get("bytes"), entry["logprob"], tops)


def _token(text: str, content: Any, logprob: float | None, tops: Any) -> Token:
    if not isinstance(text, str) or not isinstance(content, list | None):
        raise TypeError(f"{text!r} with the bytes {content!r} is no token")
    encoded = text.encode("utf-8", "replace") if content is None else bytes(content)
    if logprob is None:
        return Token(text, encoded, None, (), has_filler=False)
    given = [(str(piece), _FILLER if value is None else _checked(value)) for piece, value in tops]
    top = [(piece, value) for piece, value in dict.fromkeys(given) if value > _FILLER]
    checked, same = _checked(logprob), [value for piece, value in top if piece == text]
    if not same or checked > max(same):  # a dictionary by text keeps any one of several tokens
        top = [(piece, value) for piece, value in top if piece != text] + [(text, checked)]
    if (left := _left(top)) < -_EXCESS:
        raise IncompleteError(
            f"the probabilities of the likeliest tokens add up to {1.0 - left:.3g}, more than 1"
        )
    return Token(
        text,
        encoded,
        max(FLOOR, checked),
        tuple((piece, max(FLOOR, value)) for piece, value in top),
        has_filler=any(value <= _FILLER for _, value in given) and left > _NOTHING,
    )


def _left(top: Iterable[tuple[str, float]]) -> float:
    """The probability that tokens leave for all others."""
    return 1.0 - math.fsum(math.exp(value) for _, value in top)


def _checked(logprob: object) -> float:
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or logprob > 1e-3:
        raise ValueError(f"{logprob!r} is no log-probability")
    return min(0.0, float(logprob))
