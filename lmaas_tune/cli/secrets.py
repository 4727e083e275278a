"""Removes secrets of the command line from messages, also those given to a wrong flag."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import zip_longest

from lmaas_tune.key_hiding import KEY, looks_secret

_FLAG = re.compile(r"--\w[\w-]*?(key|token|secret|passw|auth|header|credential)(?!s)", re.I)
_NAMED = re.compile(
    r"(?:key|token|secret|password|authorization|bearer)[\"']*\s*[=:\s]\s*[\"']*"
    r"(?:bearer\s+)?([^\s\"',}&]+)",
    re.I,
)
_IN_URL = re.compile(r"://([^/@\s]+)@")
_HEAD = 8  # characters that identify a secret
_SHORTEST = 4  # shorter texts occur in many messages


def redactor(argv: Sequence[str]) -> Callable[[str], str]:
    """A function that hides the secrets of these arguments in a text."""
    secrets = sorted(set(_secrets(argv)), key=len, reverse=True)
    found = re.compile("|".join(map(_pattern, secrets)) or r"(?!)")
    return lambda text: found.sub("***", text)


def _pattern(secret: str) -> str:
    """A pattern for a secret, also if a message truncates it."""
    head = re.escape(secret[:_HEAD])
    return f"{re.escape(secret)}|{head}[^\\s\"',]*" if len(secret) > _HEAD else head


def _secrets(argv: Sequence[str]) -> list[str]:
    found: list[str] = []
    for word, following in zip_longest(argv, argv[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        given = value if equals else following
        if _FLAG.match(flag) and (flag != "--api-key-file" or looks_secret(given)):
            found.append(given)
        for pattern in (_NAMED, _IN_URL, KEY):
            found += pattern.findall(word)
    return [secret for secret in found if len(secret) >= _SHORTEST]
