"""From a row and its text prompt to the text that a model reads before the label word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import Prompt, TextPrompt
from lmaas_tune.task import Part, Slot, check_text


@dataclass(frozen=True)
class Context:
    """The text of a row before its label word.

    Attributes:
        text: The row up to the label, without the one space before it.
        spaced: Whether that space was there, which makes it part of the label word.
    """

    text: str
    spaced: bool

    def continued(self, word: str) -> str:
        """The text with a label word behind it."""
        return f"{self.text} {word}" if self.spaced else self.text + word


def contexts_of(request: ScoreRequest) -> tuple[Context, ...]:
    """Build the context of every row.

    Raises:
        InputError: The prompt is no text, or a row cannot be sent; it is named by its number
            from 1.
    """
    prompt = _text_of(request.prompt)
    check_text(prompt, "the prompt")
    contexts = []
    for number, row in enumerate(request.batch.rows, start=1):
        try:
            contexts.append(_context(row, prompt))
        except InputError as error:
            raise InputError(f"row {number} {error}") from None
    return tuple(contexts)


def _text_of(prompt: Prompt) -> str:
    if not isinstance(prompt, TextPrompt):
        raise InputError(
            f"an OpenAI-compatible server reads text prompts, and not {prompt}: tune a text "
            "prompt, or take the backend 'vllm', 'lmaas' or 'hf'"
        )
    return prompt.text


def by_spacing(contexts: Sequence[Context]) -> list[list[int]]:
    """Group contexts whose label words have the same tokens: behind a space, or not.

    Returns:
        Indices.
    """
    indices = range(len(contexts))
    groups = [[i for i in indices if contexts[i].spaced == spaced] for spaced in (True, False)]
    return [group for group in groups if group]


def _context(row: tuple[Part, ...], prompt: str) -> Context:
    if Slot.LABEL not in row:
        raise InputError("has no {label} slot")
    if row[-1] is not Slot.LABEL:
        raise InputError(
            "continues after {label}, which a server that only continues texts cannot read: "
            "put {label} last in the template"
        )
    if Slot.PROMPT not in row and prompt:
        raise InputError("has no {prompt} slot for the prompt to stand in")
    text = ""
    for part in row[:-1]:
        if isinstance(part, str):
            text += check_text(part, "holds a part that is no text")
        else:  # the space before the slot is the prompt's first character, unless it is empty
            text = text + prompt if prompt else text.removesuffix(" ")
    if not text.strip():
        raise InputError("is empty with its prompt: a server needs a text to continue")
    return Context(text.removesuffix(" "), spaced=text.endswith(" "))
