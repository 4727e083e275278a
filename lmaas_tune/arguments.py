"""Checks of the arguments of a tuner, before anything is prepared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.calls.client import Client
from lmaas_tune.errors import InputError
from lmaas_tune.peft import PeftPrompt, is_adapter, other_base
from lmaas_tune.prompts import Prompt
from lmaas_tune.settings import Settings
from lmaas_tune.task import Template


def check_types(
    backend: object,
    settings: object,
    template: object,
    labels: object,
    objective: object,
    head: object,
    callbacks: object,
) -> None:
    """Check the types of the arguments.

    Raises:
        InputError: One has a wrong type.
    """
    if not hasattr(backend, "score"):
        raise InputError(
            f"backend={backend!r:.60} is no backend: give load_backend('hf')('MODEL') or another "
            "object with the methods of lmaas_tune.Backend"
        )
    if not isinstance(settings, Settings):
        raise InputError(f"settings={settings!r:.60}: give Settings(...) or the name of a preset")
    if not isinstance(template, str | Template | None):
        raise InputError(f"template={template!r:.60}: give a text with {{prompt}} and {{label}}")
    if not isinstance(labels, Mapping | None):
        raise InputError(
            f"labels={labels!r:.60}: give the word for each label, as {{'0': 'bad', '1': 'good'}}"
        )
    if objective is not None and not callable(objective):
        raise InputError(
            f"objective={objective!r:.60} is no function: a name goes into Settings(objective=...)"
        )
    if head is not None and not hasattr(head, "fit"):
        raise InputError(
            f"head={head!r:.60} is no head: give an object with the methods of "
            "lmaas_tune.heads.Head; a name goes into Settings(head=...)"
        )
    if not isinstance(callbacks, Iterable | None):
        raise InputError(f"callbacks={callbacks!r:.60}: give a list of them")


def checked_seed(seed: object) -> int:
    """The seed as a Python int, which JSON can hold.

    Raises:
        InputError: It is no whole number, or is below 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise InputError(f"seed={seed!r}: it must be a whole number from 0 on")
    return int(seed)


def load_start(folder: str) -> TunedPrompt | PeftPrompt:
    """The prompt in a folder, saved by this package or by peft.

    Raises:
        InputError: There is none.
        StorageError: The files are damaged.
    """
    return PeftPrompt.load(folder) if is_adapter(folder) else TunedPrompt.load(folder)


def initial_prompt(
    client: Client, start: Prompt | TunedPrompt | PeftPrompt | None
) -> Prompt | None:
    """The initial prompt in the form that the model takes; None if none is given.

    Notes if peft trained it for another model.

    Raises:
        InputError: It is no prompt, or its vectors need word embeddings that are not available.
    """
    if isinstance(start, PeftPrompt) and (note := other_base(start.base_model, client.identity)):
        client.on_note(note)
    if isinstance(start, TunedPrompt | PeftPrompt):
        start = start.prompt.for_model(client.backend)
    if start is None:
        return None
    if not hasattr(start, "kind"):
        raise InputError(
            f"start={start!r:.60} is no prompt: give a SoftPrompt, a TextPrompt or a saved one; "
            "words to start from go into the settings, as Soft(prompt_init=...)"
        )
    if start.kind == "point":
        raise InputError(
            f"the prompt to start from is {start}, whose vectors are computed from the model's "
            f"word embeddings, and {client.identity} does not give them: start from words, or use "
            "the model itself"
        )
    return start
