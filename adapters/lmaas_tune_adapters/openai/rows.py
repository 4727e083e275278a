"""From a row and its text prompt to what a model reads before the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import TextPrompt
from lmaas_tune.task import Part, Slot, check_text


@dataclass(frozen=True)
class Question:
    """What a model reads, and goes on from with the label word.

    Attributes:
        text: The row up to the label, without the one space before it.
        spaced: Whether that space was there, so that it is part of the label word.
    """

    text: str
    spaced: bool

    def answered(self, word: str) -> str:
        """The text with a label word behind it."""
        return f"{self.text} {word}" if self.spaced else self.text + word


def questions(request: ScoreRequest) -> tuple[Question, ...]:
    """One a row.

    Raises:
        InputError: A prompt that is no text, or a row that cannot be asked, by its number from 1.
    """
    prompt = request.prompt
    if not isinstance(prompt, TextPrompt):
        raise InputError(
            f"an OpenAI-compatible server reads text prompts, and not {prompt}: tune a text "
            "prompt, or take the backend 'vllm', 'lmaas' or 'hf'"
        )
    check_text(prompt.text, "the prompt")
    asked = []
    for number, row in enumerate(request.batch.rows, start=1):
        try:
            asked.append(_question(row, prompt.text))
        except InputError as error:
            raise InputError(f"row {number} {error}") from None
    return tuple(asked)


def alike(questions: Sequence[Question]) -> list[list[int]]:
    """Places of the questions whose label words have the same tokens: behind a space, or not."""
    places = range(len(questions))
    groups = [[i for i in places if questions[i].spaced == spaced] for spaced in (True, False)]
    return [group for group in groups if group]


def _question(row: tuple[Part, ...], prompt: str) -> Question:
    if Slot.LABEL not in row:
        raise InputError("has no {label} slot")
    if row[-1] is not Slot.LABEL:
        raise InputError(
            "goes on after {label}, which a server that only writes on cannot read: "
            "put {label} last in the template"
        )
    if Slot.PROMPT not in row and prompt:
        raise InputError("has no {prompt} slot for the prompt to stand in")
    text = ""
    for part in row[:-1]:
        if isinstance(part, str):
            text += check_text(part, "holds what is no text")
        else:  # the space before the slot is the first character of the prompt, if it has any
            text = text + prompt if prompt else text.removesuffix(" ")
    if not text.strip():
        raise InputError("is empty with its prompt: a server needs a text to go on from")
    return Question(text.removesuffix(" "), spaced=text.endswith(" "))
