"""Marks for the slots of a row while a tokenizer reads it whole, and checks of its text."""

from __future__ import annotations

import copy
from typing import Any

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

from lmaas_tune.errors import InputError

PROMPT_MARK, LABEL_MARK = "\ufdd0", "\ufdd1"
"""Stand for the slots while a whole row is tokenized, since cutting it first would change its
tokens. Unicode reserves these code points for private use."""

GLUE = "\ufdd2"
"""Stands behind a mark where the tokenizer would insert a space before the text that follows."""


def add_marks(tokenizer: Any) -> tuple[Any, str]:
    """Copy a tokenizer and give it the marks as tokens.

    Returns:
        The copy, and the text to put behind a mark: `GLUE`, or nothing where it is not needed.
    """
    marking = copy.deepcopy(tokenizer)
    marking.add_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in (PROMPT_MARK, LABEL_MARK)],
        special_tokens=True,
    )
    return marking, GLUE if _add_glue(marking) else ""


def check_unicode(text: str, name: str) -> None:
    """Refuse half of a surrogate pair, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} holds {text[error.start]!r}, half of a surrogate pair, which no tokenizer "
            "reads: remove it or decode the text again"
        ) from error


def check_marks(text: str, name: str) -> None:
    """Refuse a text that holds a mark itself."""
    if any(mark in text for mark in (PROMPT_MARK, LABEL_MARK, GLUE)):
        raise InputError(
            f"{name} holds U+FDD0 to U+FDD2, which are reserved code points: remove them"
        )


def _add_glue(tokenizer: Any) -> bool:
    """Make `GLUE` remove the space that some tokenizers insert behind an added token.

    Such tokenizers begin every text between added tokens with a space, and so every text behind
    a mark. Those made from SentencePiece's files insert it in the normalizer (Llama 2, Phi-3,
    GGUF) or in the pre-tokenizer (T5, XLM-R, Llama with ``legacy``), byte-level ones where
    ``add_prefix_space`` is set.

    Returns:
        Whether the tokenizer inserts a space, so that the glue is needed.
    """
    if not tokenizer.is_fast:
        return False
    backend = tokenizer.backend_tokenizer
    return _glue_in_normalizer(backend) or _glue_in_pre_tokenizer(backend)


def _glue_in_normalizer(backend: Any) -> bool:
    steps = _steps(backend.normalizer)
    for place, step in enumerate(steps, start=1):
        if isinstance(step, normalizers.Prepend):
            steps.insert(place, normalizers.Replace(step.prepend + GLUE, ""))
            backend.normalizer = normalizers.Sequence(steps)
            return True
    return False


def _glue_in_pre_tokenizer(backend: Any) -> bool:
    steps = _steps(backend.pre_tokenizer)
    for step in steps:
        if isinstance(step, pre_tokenizers.Metaspace) and step.prepend_scheme == "always":
            glued = pre_tokenizers.Split(step.replacement + GLUE, "removed")
            backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, glued])
            return True
    first = steps[0] if steps else None
    if not (isinstance(first, pre_tokenizers.ByteLevel) and first.add_prefix_space):
        return False
    # its pattern would join the glue to the next word, so the normalizer inserts the space
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=first.use_regex)
    backend.pre_tokenizer = pre_tokenizers.Sequence([plain, *steps[1:]])
    backend.normalizer = normalizers.Sequence(
        [
            *_steps(backend.normalizer),
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(rf"\A (?=[\s{GLUE}])"), ""),
            normalizers.Replace(GLUE, ""),
        ]
    )
    return True


def _steps(part: Any) -> list[Any]:
    """List the steps of a part of a tokenizer, which may be a single one or None."""
    if part is None:
        return []
    return list(part) if hasattr(part, "__getitem__") else [part]
