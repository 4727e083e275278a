"""Shared by all commands: parser, outcome, and the flags that select a backend."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from lmaas_tune.backend import Backend
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Price
from lmaas_tune.calls.pace import Pace
from lmaas_tune.cli.colour import BOLD, coloured
from lmaas_tune.cli.interrupts import INTERRUPTED as INTERRUPTED
from lmaas_tune.data import read_examples
from lmaas_tune.errors import InputError, LMaaSError, did_you_mean
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.registry import load_backend
from lmaas_tune.task import Example
from lmaas_tune.typed_json import parse_object

FAILED, BAD_INPUT = 1, 2
"""Exit statuses, in addition to 0 and `INTERRUPTED`."""

_NAMES = {"model": "model", "url": "URL", "api_key_file": "file with a key"}
"""Parameters of backends that have their own flag, with their names in messages."""


@dataclass(frozen=True)
class Outcome:
    """The result of a command.

    Attributes:
        content: Output of ``--json``; None if it was printed already.
        text: Output without ``--json``.
        error: A line for standard error.
        code: Exit status.
    """

    content: Mapping[str, Any] | None
    text: str = ""
    error: str = ""
    code: int = 0


_INVALID_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")
"""The message of argparse; from Python 3.12 on without quotation marks around the choices."""


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


class Parser(argparse.ArgumentParser):
    """A parser that raises `InputError` with one sentence."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **settings)

    @property
    def flags(self) -> list[argparse.Action]:
        """All arguments."""
        return self._actions

    def format_help(self) -> str:
        """The help, with its headings in bold; from Python 3.14 on argparse colours more."""
        text = super().format_help()
        return text if sys.version_info >= (3, 14) else coloured(r"^\S.*:$", BOLD, text, sys.stdout)

    def error(self, message: str) -> NoReturn:
        """Raise an `InputError` instead of exiting."""
        if wrong := _INVALID_CHOICE.search(message):
            choices = wrong[2].replace("'", "").split(", ")
            message = (
                message[: wrong.start()] + f"no {wrong[1]!r}; {did_you_mean(wrong[1], choices)}"
            )
        raise InputError(f"{message} ({self.prog} --help lists the arguments)")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raise an `InputError` for unknown arguments."""
        message = f"unrecognized arguments: {' '.join(unknown)}"
        flag = next((one.partition("=")[0] for one in unknown if one.startswith("--")), None)
        if flag is not None:
            known = [one for one in self._option_string_actions if one.startswith("--")]
            message += f"; for {flag}, {did_you_mean(flag, known)}"
        self.error(message)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001  # a type only
"""The parsers of the commands."""


def add_command(commands: Commands, name: str, summary: str) -> Parser:
    """Add a command, with the flags that all commands have."""
    command = commands.add_parser(name, help=summary, description=f"{summary}.")
    command.add_argument("--json", action="store_true", help="print the result as one JSON object")
    command.add_argument(
        "--traceback", action="store_true", help="show the Python traceback of an error"
    )
    command.set_defaults(command=command)
    return command


def add_model(command: Parser) -> argparse._ArgumentGroup:
    """Add the flags that select a model; `add_connection` adds those of a server."""
    group = command.add_argument_group("the model")
    group.add_argument(
        "--backend", default="hf", help="name of the backend; `lmaas-tune backends` lists them (hf)"
    )
    group.add_argument(
        "--model",
        help="name of the model; for hf a name on the Hugging Face hub, a folder or a .gguf file",
    )
    group.add_argument(
        "--backend-options",
        default="",
        metavar="NAME=VALUE,...",
        help="settings of the backend, as dtype=bfloat16,device=cpu; or a JSON object",
    )
    return group


def add_backend(command: Parser) -> None:
    """Add the flags that `open_client` reads."""
    group = add_model(command)
    add_connection(group)
    group.add_argument(
        "--cache", metavar="FILE", help="file that caches answers, so that no request is paid twice"
    )
    group.add_argument(
        "--price-in", type=float, metavar="P", help="price of a million input tokens"
    )
    group.add_argument(
        "--price-out",
        type=float,
        metavar="P",
        help="price of a million output tokens (one token a row)",
    )
    _add_pace(command)


def _add_pace(command: Parser) -> None:
    group = command.add_argument_group("the pace", "For backends behind HTTP.")
    group.add_argument(
        "--workers",
        type=_workers,
        default="adaptive",
        metavar="N",
        help="most concurrent calls; or adaptive: more while calls succeed, fewer while the "
        "provider is overloaded (adaptive)",
    )
    for name, unit in (("requests", "requests"), ("tokens", "estimated tokens")):
        group.add_argument(
            f"--{name}-per-minute", type=int, metavar="N", help=f"most {unit} in any minute"
        )


def _workers(text: str) -> int | str:
    return int(text) if text.isdigit() else text  # `Pace` checks other texts


def add_connection(group: argparse._ArgumentGroup | Parser) -> None:
    """Add the flags of backends behind HTTP."""
    group.add_argument("--url", help="address of the server of the model, as http://127.0.0.1:8000")
    group.add_argument(
        "--api-key-file", metavar="FILE", help="file with the API key of that server"
    )


_CLIENT = (
    "backend",
    "model",
    "backend_options",
    "url",
    "api_key_file",
    "cache",
    "price_in",
    "price_out",
    "workers",
    "requests_per_minute",
    "tokens_per_minute",
)


def client_flags(arguments: argparse.Namespace) -> argparse.Namespace:
    """The flags that `open_client` reads, without the parsers, so that they can be pickled."""
    return argparse.Namespace(**{name: getattr(arguments, name) for name in _CLIENT})


def open_client(arguments: argparse.Namespace, on_note: OnNote = warn) -> Client:
    """Build the client that the flags describe.

    Raises:
        InputError: A flag is invalid or missing.
    """
    pace = Pace(
        workers=arguments.workers,
        requests_per_minute=arguments.requests_per_minute,
        tokens_per_minute=arguments.tokens_per_minute,
    )
    backend = open_backend(
        arguments.backend,
        arguments.model,
        parse_options(arguments.backend_options),
        url=arguments.url,
        api_key_file=arguments.api_key_file,
    )
    price_in, price_out = arguments.price_in, arguments.price_out
    free = price_in is None and price_out is None
    price = None if free else Price(input=price_in or 0.0, output=price_out or 0.0)
    return Client(backend, cache=arguments.cache, pace=pace, price=price, on_note=on_note)


def add_encoding(group: argparse._ArgumentGroup | Parser) -> None:
    """Add the flag for files of rows."""
    group.add_argument(
        "--encoding", metavar="NAME", help="encoding of files of rows, as cp1252 (it is found)"
    )


def read_rows(arguments: argparse.Namespace, name: str) -> list[Example]:
    """The labelled rows of the file that the flag `name` gives."""
    return read_examples(
        getattr(arguments, name),
        label_field=arguments.label_field,
        what=name,
        encoding=arguments.encoding,
        on_note=arguments.on_note,
    )


def open_backend(
    name: str,
    model: str | None,
    options: Mapping[str, object],
    *,
    url: str | None = None,
    api_key_file: str | None = None,
) -> Backend:
    """Build a backend by name.

    The factory gets ``model``, ``url`` and ``api_key_file`` if it has such parameters; those
    without a default are required.

    Raises:
        InputError: The name or an option is unknown, a flag is missing or not taken, or the
            factory raised it.
    """
    factory = load_backend(name)
    parameters = inspect.signature(factory).parameters
    flags = {"model": model, "url": url, "api_key_file": api_key_file}
    for flag, value in flags.items():
        parameter, dashed = parameters.get(flag), "--" + flag.replace("_", "-")
        if parameter is None and value is not None:
            raise InputError(f"the backend {name!r} takes no {_NAMES[flag]}: leave out {dashed}")
        if parameter is not None and value is None and parameter.default is parameter.empty:
            raise InputError(f"the backend {name!r} needs a {_NAMES[flag]}: give {dashed}")
    known = [parameter for parameter in parameters if parameter not in flags]
    for option in options:
        if option not in known:
            raise InputError(
                f"the backend {name!r} has no option {option!r}; {did_you_mean(option, known)}"
            )
    given = {flag: value for flag, value in flags.items() if value is not None}
    try:
        return factory(**given, **options)
    except LMaaSError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        given_options = ", ".join(f"{option}={value}" for option, value in options.items())
        raise InputError(
            f"the backend {name!r} cannot be made with {given_options}: {error}"
        ) from error


def backend_flags(arguments: argparse.Namespace) -> list[str]:
    """The flags that select the same backend, for a command that is shown to the user."""
    flags = ["--backend", arguments.backend]
    for flag in ("model", "url", "api_key_file"):
        if (value := getattr(arguments, flag)) is not None:
            flags += ["--" + flag.replace("_", "-"), value]
    if arguments.backend_options:
        flags += ["--backend-options", arguments.backend_options]
    return flags


def parse_options(text: str) -> dict[str, object]:
    """Read ``"population=20,step_rule=csa"``; numbers, true and false are converted.

    Nested values, and values with commas, are given as JSON, ``{"extra_body": {"top_k": 1}}``.

    Raises:
        InputError: A part is no ``name=value``, a name is repeated, or the JSON is no object.
    """
    if text.lstrip().startswith("{"):
        try:
            return parse_object(text)
        except InputError as error:
            raise InputError(f"options {text!r:.80}: {error}") from None
    options: dict[str, object] = {}
    for part in text.split(",") if text.strip() else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise InputError(f"options {text!r}: {part.strip()!r} is no name=value")
        if name in options:
            raise InputError(f"options {text!r}: {name} is given twice")
        options[name] = _value(value)
    return options


def parse_seeds(text: str) -> list[int]:
    """Read ``"13,21,42"``.

    Raises:
        InputError: A part is no whole number.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds {text!r}: give whole numbers, as 13,21,42") from None


def _value(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def command_line(*words: str) -> str:
    """A command, quoted for a shell."""
    return shlex.join(["lmaas-tune", *words])
