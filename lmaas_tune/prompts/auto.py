"""`Auto`: chooses the kind of prompt by the capabilities of the model; changes of settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lmaas_tune.capabilities import Embeds, Model
from lmaas_tune.errors import InputError, did_you_mean, named
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
    def given_words(self) -> tuple[str, ...]:
        """The starting words as given."""
        return self.soft.given_words

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


def soft_of(kind: PromptKind | Auto) -> Soft | None:
    """The settings of soft prompts; None if only text prompts are searched."""
    kind = kind.soft if isinstance(kind, Auto) else kind
    return kind if isinstance(kind, Soft) else None


def kind_named(name: str, present: PromptKind | Auto) -> PromptKind | Auto:
    """The kind of prompt of this name, with the present settings for it.

    Raises:
        InputError: The name is unknown.
    """
    if not isinstance(present, Auto):
        text = present if isinstance(present, Text) else Text()
        present = Auto(soft=soft_of(present) or Soft(), text=text)
    kinds: dict[str, PromptKind | Auto] = {
        "auto": present,
        "soft": present.soft,
        "text": present.text,
    }
    return named("prompt", name, kinds)


def changed_kind(kind: PromptKind | Auto, given: Mapping[str, Any]) -> PromptKind | Auto:
    """The kind of prompt with some fields changed; `Auto` changes both of its kinds.

    Raises:
        InputError: A value is out of range, or a field is unknown.
    """
    if isinstance(kind, Auto):
        of_soft = {name: value for name, value in given.items() if name not in _TEXT - _SOFT}
        of_text = {name: value for name, value in given.items() if name in _TEXT}
        return Auto(soft=_changed_soft(kind.soft, of_soft), text=_changed_text(kind.text, of_text))
    if isinstance(kind, Soft):
        return _changed_soft(kind, given)
    if isinstance(kind, Text):
        return _changed_text(kind, given)
    own: Any = kind  # a user's kind; `Settings` rejects anything else
    return replace(own, **given) if given else own  # type: ignore[no-any-return]


def _changed_soft(soft: Soft, given: Mapping[str, Any]) -> Soft:
    fields_given = dict(given)
    if "deep" in fields_given:
        plain = {name: getattr(soft, name) for name in _SOFT}
        layers = fields_given.pop("deep")
        soft = Soft(**plain) if layers is None else Deep(**plain, layers=layers)
    for name in fields_given:
        if name in _TEXT - _SOFT:
            raise InputError(f"prompt='soft' does not use {name}: set prompt='text'")
        if name not in _SOFT:
            raise InputError(f"settings have no field {name!r}; {did_you_mean(name, _SOFT)}")
    return replace(soft, **fields_given)


def _changed_text(text: Text, given: Mapping[str, Any]) -> Text:
    """Fields of soft prompts alone are ignored, unless their value requires soft prompts."""
    if given.get("start", "words") != "words":
        raise InputError(
            f"start={given['start']!r} is for soft prompts, and a text starts from words: leave "
            "it out, or set prompt='soft'"
        )
    if given.get("deep") is not None:
        raise InputError(f"deep={given['deep']!r} is for soft prompts: set prompt='soft'")
    for name in given:
        if name not in _TEXT | _SOFT | {"deep"}:
            raise InputError(f"settings have no field {name!r}; {did_you_mean(name, _TEXT)}")
    return replace(text, **{name: value for name, value in given.items() if name in _TEXT})


_SOFT = {each.name for each in fields(Soft)}
_TEXT = {each.name for each in fields(Text)}


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
