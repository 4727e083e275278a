"""`Auto`: chooses the kind of prompt by the capabilities of the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lmaas_tune.capabilities import Embeds, Model
from lmaas_tune.errors import InputError
from lmaas_tune.prompts.base import Prompt, PromptKind
from lmaas_tune.prompts.deep import Deep
from lmaas_tune.prompts.soft import Soft
from lmaas_tune.prompts.subspace import ProviderDrawn
from lmaas_tune.prompts.text import Text, no_soft_start


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Soft prompts if the model takes them or the start is soft, else text prompts.

    Attributes:
        soft: Settings for soft prompts.
        text: Settings for text prompts.
    """

    soft: Soft = field(default_factory=Soft)
    text: Text = field(default_factory=Text)

    @property
    def starting_words(self) -> tuple[str, ...]:
        """The starting words."""
        return self.soft.starting_words

    @property
    def demonstrations(self) -> int:
        """Number of training rows that a text prompt shows with their labels."""
        return self.text.demonstrations

    def to_json(self) -> dict[str, Any]:
        """The fields of both, as JSON has them."""
        return {**self.text.to_json(), **self.soft.to_json(), "prompt": "auto"}

    def chosen(self, model: Model, start: Prompt | None) -> tuple[PromptKind, str]:
        """The kind for a model, and a note for the user.

        Raises:
            InputError: The settings start from a soft prompt, which the model does not take.
        """
        can = model.capabilities
        if start is not None and start.kind == "text":
            return self.text, ""
        takes_soft = can.soft_prompt_width is not None or can.point_prompts
        if takes_soft or isinstance(self.soft, Deep):
            return self.soft, ""
        if start is None and self.soft.start != "words":
            raise InputError(no_soft_start(model))
        note = (
            f"{model.identity} takes no soft prompts, so the search is over words (prompt='text')"
        )
        return self.text, note if start is None else ""


def resolve(
    kind: PromptKind | Auto, model: Model, embeds: Embeds | None, start: Prompt | None
) -> tuple[PromptKind, str]:
    """The kind of prompt to search for a model, and a note for the user.

    Raises:
        InputError: The model does not take this kind of prompt.
    """
    note = ""
    if isinstance(kind, Auto):
        kind, note = kind.chosen(model, start)
    kind.check(model, start)
    if type(kind) is Soft and model.capabilities.point_prompts and embeds is None:
        kind = ProviderDrawn(**vars(kind))
    return kind, note
