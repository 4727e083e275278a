"""API keys of a service: a file of keys, of which only digests are kept in memory.

One key a line; empty lines and those that begin with ``#`` are skipped. A line holds the key
alone, or a name, the key, and its quota::

    # name   key                                           limits
    alice    tW3n0kC0fXn1q8Yb5Zf0rVYl7v2vQf0m1Jj4p3d6N9s   requests=600 tokens=200000 concurrent=8
    bob      sha256:448232393b389be738d38ce289254c69d86d12fd68980d7d6833fd073e7c8807
    monitor  Xk2m9s4vQe7Jc1RrT5wYz8uAoBdHfLgN3pVxE6iKqM0   metrics=yes

A key may be written as ``sha256:`` and its hexadecimal SHA-256, so that the file reveals no key.
Logs and metrics show the name of a key; without one, the number of its line.

This is a plain SHA-256, and no slow hash with salt as for passwords: those protect secrets that
can be guessed. A key of 128 random bits or more cannot be guessed at any speed, and with a slow
hash any client could keep the service busy by sending wrong keys. Therefore a key must be random.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.key_hiding import read_hidden
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.service.key_quota import DEFAULT_QUOTA, KeyQuota

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,24}")  # so short that few keys can be taken for one
_SHORT = 20  # characters; of base64 they hold 120 bits
_OPTIONS = (*KeyQuota.model_fields, "metrics")


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key that may use a service.

    Attributes:
        name: Shown in logs and metrics.
        digest: SHA-256 of the key.
        quota: Its quota.
        metrics: Whether it may read the metrics, which cover all keys.
    """

    name: str
    digest: bytes = field(repr=False)
    quota: KeyQuota = DEFAULT_QUOTA
    metrics: bool = False


class Keyring:
    """The keys of a service.

    Args:
        keys: All keys; None accepts everybody, as one key.
        quota: The quota of that one key.

    Raises:
        InputError: No key, or two of one name, or one twice.
    """

    def __init__(self, keys: Iterable[Key] | None, *, quota: KeyQuota = DEFAULT_QUOTA) -> None:
        self.open = keys is None
        everybody = Key(name="anybody", digest=b"", quota=quota, metrics=True)
        self.keys = (everybody,) if keys is None else tuple(keys)
        if not self.keys:
            raise InputError("there is no key, so that no client could use the service: add one")
        _check_distinct(self.keys, [key.name for key in self.keys], "name")
        _check_distinct(self.keys, [key.digest for key in self.keys], "key")

    def find(self, token: str) -> Key | None:
        """The key of this text, found in constant time; None for a wrong one."""
        if self.open:
            return self.keys[0]
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self.keys:  # all of them, whichever it is
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _check_distinct(keys: Sequence[Key], values: Sequence[object], field_name: str) -> None:
    same = [key.name for key, value in zip(keys, values, strict=True) if values.count(value) > 1]
    if same:
        raise InputError(f"{same[0]!r} and {same[1]!r} have the same {field_name}: change one")


def read_keys(path: str | Path, *, quota: KeyQuota, on_note: OnNote = warn) -> Keyring:
    """The keys of a file.

    Args:
        path: A file as this module describes.
        quota: The defaults of a line.
        on_note: Called with a note on each key that may be guessed.

    Raises:
        InputError: The file cannot be read, or a line of it; keys are never quoted.
    """
    keys = []
    for number, line in enumerate(read_hidden(path, "the keys").splitlines(), start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            try:
                keys.append(_key(words, number, quota, on_note))
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from None
    try:
        return Keyring(keys)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _key(words: list[str], number: int, quota: KeyQuota, on_note: OnNote) -> Key:
    name, secret = (f"line-{number}", words[0]) if len(words) == 1 else (words[0], words[1])
    if not _NAME.fullmatch(name):
        raise InputError(
            "a name comes first and has up to 24 letters, digits, dots, dashes, underscores or @"
        )
    if secret.partition("=")[0] in _OPTIONS and "=" in secret:
        raise InputError(
            "a name comes first, then the key, then its limits: here the name is missing"
        )
    options = _options(words[2:])
    metrics = options.pop("metrics", "no")
    if metrics not in ("yes", "no"):
        raise InputError("metrics is yes or no")
    limits = {option: _whole(text) for option, text in options.items()}
    return Key(
        name=name,
        digest=_digest(secret, name, on_note),
        quota=KeyQuota.of(quota.model_dump() | limits),
        metrics=metrics == "yes",
    )


def _options(words: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for word in words:
        option, equals, value = word.partition("=")
        if not equals or option not in _OPTIONS:
            raise InputError(
                "after the name and the key come limits as requests=600, and this is none; "
                f"{did_you_mean(option, _OPTIONS)}"
            )
        options[option] = value
    return options


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InputError(f"a limit is a whole number of up to 18 digits, not {text!r:.40}")
    return int(text)


def _digest(secret: str, name: str, on_note: OnNote) -> bytes:
    if hashed := _HASHED.fullmatch(secret):
        return bytes.fromhex(hashed[1])
    if secret.startswith("sha256:") or not secret.isascii() or not secret.isprintable():
        raise InputError("the key is no printable ASCII, or no SHA-256 of 64 hexadecimal digits")
    if len(secret) < _SHORT:
        on_note(
            f"the key {name!r} has {len(secret)} characters and may be guessed: make one by "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return hashlib.sha256(secret.encode()).digest()
