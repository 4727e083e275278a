"""Flags for the settings of a search and for the template, and their conversion."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmaas_tune.calls.meter import Budget
from lmaas_tune.cli.arguments import Parser, parse_options
from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.heads import AUTO, HEADS
from lmaas_tune.optimizers import NEVERGRAD, OPTIMIZERS
from lmaas_tune.prompts import Text
from lmaas_tune.prompts.projections import PROJECTIONS
from lmaas_tune.prompts.text import SOURCES
from lmaas_tune.settings import PRESETS, Settings, preset, with_fields
from lmaas_tune.typed_json import checked, parse_json


def _layers(text: str) -> str | tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    return tuple(map(int, parts)) if all(map(str.isdigit, parts)) else text  # `Settings` rejects it


# Each flag sets the field of `Settings` of the same name; without it, the value of the preset
# stays.
_FIELDS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("prompt", str, "kind of prompt: soft (vectors), text (words), or auto: by the model"),
    ("start", str, "start of the search: words, vocabulary or zero"),
    ("prompt_length", int, "length of the prompt in tokens; by default that of the starting words"),
    ("insertion", str, "how a soft prompt is inserted: concat, add or prepend"),
    ("deep", _layers, "layers that get a prompt each: all, or numbers from 0 as 0,10,20"),
    ("intrinsic_dim", int, "number of dimensions of the search, in each layer"),
    ("projection", str, f"kind of the random projection: {', '.join(PROJECTIONS)}"),
    ("alpha", float, "scale of the random projection"),
    ("objective", str, "loss of the search: cross_entropy, hinge, error_rate or negative_f1"),
    ("head", str, f"map from the scores of words to labels: {', '.join(HEADS)}"),
    ("head_words", int, "most words that the head reads beside the label words"),
    ("averaged", int, "most prompts that the result averages; each costs a call at prediction"),
    ("validation_rows", str, "join: validation rows judge with the others; select: as the paper"),
    (
        "selection",
        str,
        "which candidate is the result: lowest-loss, or candidate@N (the paper's rule)",
    ),
)
_PLAIN = ("prompt_init", "score_start", "allow_bounds", "optimizer")
_METAVARS = {int: "N", float: "X", str: "NAME", _layers: "LAYERS"}


def add_search_flags(command: Parser) -> None:
    """Add the flags that `read_settings` reads."""
    group = add_settings(command)
    group.add_argument(
        "--optimizer",
        metavar="NAME",
        help="name of the optimizer; `lmaas-tune optimizers` lists them "
        f"({PRESETS['default'].optimizer})",
    )
    group.add_argument(
        "--optimizer-options",
        metavar="NAME=VALUE,...",
        help="settings of it, as population=20,step_rule=csa",
    )
    group.add_argument(
        "--start-from",
        metavar="DIR",
        help="start from the saved prompt of another run, or a prompt-tuning adapter of peft",
    )
    group.add_argument("--seed", type=int, default=0, help="random seed (0)")


def add_settings(command: Parser) -> argparse._ArgumentGroup:
    """Add the flags that apply to several optimizers and seeds.

    The other flags have no value.
    """
    command.set_defaults(optimizer=None, optimizer_options=None, start_from=None)
    group = command.add_argument_group(
        "the search", "Defaults come from --preset; those of the preset default are in brackets."
    )
    group.add_argument(
        "--preset", default="default", help=f"a set of settings: {', '.join(PRESETS)} (default)"
    )
    default = PRESETS["default"]
    content = default.to_json()
    group.add_argument(
        "--prompt-init",
        action="append",
        metavar="WORDS",
        help="the starting words; if repeated, the search starts from the best "
        f"({' / '.join(default.prompt.given_words)}: a list of wordings)",
    )
    group.add_argument(
        "--instructions", metavar="FILE", help="starting words from a file, one a line"
    )
    for name, kind, help_text in _FIELDS:
        value = content.get(name)
        shown = "" if value is None else f" ({value})"
        group.add_argument(_flag(name), type=kind, metavar=_METAVARS[kind], help=help_text + shown)
    group.add_argument(
        "--score-start",
        action=argparse.BooleanOptionalAction,
        help="score the start first, for one call, so that the result is never worse than it",
    )
    group.add_argument(
        "--allow-bounds",
        action="store_true",
        default=None,
        help="continue if more than half of the scores are only upper bounds",
    )
    group.add_argument(
        "--budget",
        metavar="NAME=N,...",
        help="limits that end the run, one or more of calls, sequences, tokens, seconds, money, "
        f"patience, target; or none ({default.budget})",
    )
    _add_text(command)
    return group


def _add_text(command: Parser) -> None:
    group = command.add_argument_group("text prompts", "The parts beside the starting words.")
    default = Text()
    group.add_argument(
        "--prompt-words",
        metavar="SOURCE",
        help=f"words after the starting words: built-in, train (distinctive words of the "
        f"training rows), or a file with one a line ({default.words})",
    )
    group.add_argument(
        "--word-slots",
        type=int,
        metavar="N",
        help=f"largest number of these words ({default.slots})",
    )
    group.add_argument(
        "--demonstrations",
        type=int,
        metavar="N",
        help=f"training rows shown in the prompt, in the best order ({default.demonstrations})",
    )


def read_settings(arguments: argparse.Namespace) -> Settings:
    """The settings of the preset, changed by the given flags.

    Raises:
        InputError: A value is invalid, or two flags exclude each other.
    """
    base = preset(arguments.preset)
    given = {
        name: getattr(arguments, name)
        for name in (*_PLAIN, *(name for name, _, _ in _FIELDS))
        if getattr(arguments, name) is not None
    }
    if arguments.instructions is not None:
        if "prompt_init" in given:
            raise InputError(
                "--instructions and --prompt-init exclude each other: put all into the file"
            )
        given["prompt_init"] = _lines(arguments.instructions)
    if text := _text(arguments):
        given = {"prompt": "text", **given, **text}
    _check_start(arguments, given)
    if "prompt_init" in given:  # words determine start and length
        given = {"start": "words", "prompt_length": None, **given}
        given["prompt_init"] = tuple(given["prompt_init"])
    if arguments.budget is not None:
        given["budget"] = Budget.parse(arguments.budget)
    optimizer = given.get("optimizer", base.optimizer)
    if optimizer != AUTO and not optimizer.startswith(NEVERGRAD):
        OPTIMIZERS.entry(optimizer)  # checks the name before a model is loaded
    options = dict(base.optimizer_options) if optimizer == base.optimizer else {}
    options |= parse_options(arguments.optimizer_options or "")
    return with_fields(base, {**given, "optimizer_options": options})


def _text(arguments: argparse.Namespace) -> dict[str, Any]:
    words = arguments.prompt_words
    given = {
        "words": words if words is None or words in SOURCES else _lines(words, or_one_of=SOURCES),
        "slots": arguments.word_slots,
        "demonstrations": arguments.demonstrations,
    }
    return {name: value for name, value in given.items() if value is not None}


def _lines(path: str, *, or_one_of: Sequence[str] = ()) -> tuple[str, ...]:
    """The non-empty lines of a text file.

    Args:
        path: The file.
        or_one_of: Names that the user may have meant instead.

    Raises:
        InputError: The file cannot be read, or has no such line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        meant = f"; {did_you_mean(path, or_one_of)}" if or_one_of else ""
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}){meant}") from error
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise InputError(f"{path}: it has no words")
    return lines


def _check_start(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    words = "--prompt-init" if arguments.instructions is None else "--instructions"
    if arguments.start_from is not None:
        for name in ("start", "prompt_init", "prompt_length", "insertion"):
            if name in given:
                raise InputError(
                    f"{words if name == 'prompt_init' else _flag(name)} and --start-from exclude "
                    "each other: the saved prompt brings its own"
                )
    if "prompt_init" in given and given.get("start", "words") != "words":
        raise InputError(
            f"{words} and --start {given['start']} exclude each other: starting words are "
            "for --start words"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_template_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags; `label_words` parses ``--labels``."""
    group.add_argument(
        "--label-field", default="label", metavar="NAME", help="the field with the label (label)"
    )
    group.add_argument(
        "--template", help='text with fields and slots, as "{sentence} {prompt} It was {label}"'
    )
    group.add_argument(
        "--labels", metavar="JSON", help='a word for each label, as {"0": "terrible", "1": "great"}'
    )


def label_words(text: str) -> dict[str, str]:
    """Parse the value of ``--labels``.

    Raises:
        InputError: It is no JSON object of words.
    """
    try:
        words: dict[str, str] = checked(Mapping[str, str], parse_json(text), "it")
    except InputError as error:
        raise InputError(
            f"--labels {text!r:.80} is {error}; "
            'give an object, as {"0": "terrible", "1": "great"}'
        ) from error
    return words
