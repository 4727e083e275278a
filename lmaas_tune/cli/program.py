"""The main program: parses the arguments, runs one command, prints its outcome.

Every command returns an `Outcome`. With ``--json``, standard output holds it as one JSON object
and nothing else; progress, notes and errors go to standard error.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import TextIO

from lmaas_tune.cli import (
    compare,
    completion,
    demo,
    doctor,
    evaluate,
    interrupts,
    list_commands,
    predict,
    report,
    reproduce,
    serve,
    tune,
)
from lmaas_tune.cli.arguments import BAD_INPUT, FAILED, INTERRUPTED, Outcome, Parser
from lmaas_tune.cli.colour import RED, YELLOW, coloured
from lmaas_tune.cli.secrets import redactor
from lmaas_tune.errors import InputError, LMaaSError
from lmaas_tune.notes import OnNote
from lmaas_tune.task import check_text
from lmaas_tune.versions import versions


def run(argv: list[str]) -> int:
    """Run one command, see `lmaas_tune.cli.main`."""
    # not by the parser, because it also applies to errors of the parser
    as_json = "--json" in argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # unencodable characters are escaped
    try:
        outcome = _outcome(argv, as_json)
        _print(outcome, as_json)
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if interrupts.abandoned():
        interrupts.exit_now()
    return outcome.code


def parser() -> Parser:
    """The parser of all commands."""
    top = Parser(
        prog="lmaas-tune",
        description="Tune prompts of language models you cannot train.",
        epilog="Start with: lmaas-tune demo",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {versions()['lmaas-tune']}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (
        demo,
        tune,
        predict,
        evaluate,
        compare,
        report,
        reproduce,
        serve,
        list_commands,
        doctor,
        completion,
    ):
        command.add_to(commands)
    top.set_defaults(parser=top)
    return top


def _outcome(argv: list[str], as_json: bool) -> Outcome:
    redact = redactor(argv)
    on_note = _Notes(redact, plain=as_json)
    out = sys.stderr if as_json else sys.stdout
    with _shown_warnings(on_note), _sigterm_like_ctrl_c():
        try:
            with interrupts.enabled():
                outcome = _run(argv, out, on_note)
        except (Exception, KeyboardInterrupt) as error:
            if "--traceback" in argv:
                print(redact(traceback.format_exc()), file=sys.stderr)
            outcome = _failure(error)
    return outcome if outcome.code == 0 else _redact(outcome, redact)


def _redact(outcome: Outcome, redact: Callable[[str], str]) -> Outcome:
    """The outcome of a failed command, without secrets of the command line."""
    content = outcome.content
    if content is not None:
        content = json.loads(redact(json.dumps(content)))
    return replace(outcome, content=content, text=redact(outcome.text), error=redact(outcome.error))


def _run(argv: list[str], out: TextIO, on_note: OnNote) -> Outcome:
    for argument in argv:
        check_text(argument, f"the argument {argument!r}")
    arguments, unknown = parser().parse_known_args(argv)
    if unknown:
        arguments.command.refuse(unknown)
    arguments.argv, arguments.stdout, arguments.on_note = argv, sys.stdout, on_note
    with contextlib.redirect_stdout(out):
        outcome: Outcome = arguments.run(arguments)
    return outcome


def _failure(error: BaseException) -> Outcome:
    if isinstance(error, KeyboardInterrupt):
        return Outcome({"error": "interrupted"}, error="interrupted", code=INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        raise error
    if isinstance(error, LMaaSError):
        message = " ".join(str(error).split())
    elif isinstance(error, OSError):
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    else:
        message = (
            f"unexpected {type(error).__name__}: {error}; this is a fault of the program: "
            "run again with --traceback and report it"
        )
    code = BAD_INPUT if isinstance(error, InputError) else FAILED
    return Outcome({"error": message}, error=f"error: {message}", code=code)


def _print(outcome: Outcome, as_json: bool) -> None:
    if outcome.error:
        error = outcome.error
        print(error if as_json else coloured("^error:", RED, error, sys.stderr), file=sys.stderr)
    if as_json and outcome.content is not None:
        plain = (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
        print(json.dumps(outcome.content, indent=1, ensure_ascii=plain, allow_nan=False))
    elif not as_json and outcome.text:
        print(outcome.text)
    sys.stdout.flush()


class _Notes:
    """Prints each note once on standard error, without secrets of the command line."""

    def __init__(self, redact: Callable[[str], str], *, plain: bool) -> None:
        self._redact, self._plain = redact, plain
        self._seen: set[str] = set()

    def __call__(self, note: str) -> None:
        if note not in self._seen:
            self._seen.add(note)
            text = f"note: {self._redact(note)}"
            shown = text if self._plain else coloured("^note:", YELLOW, text, sys.stderr)
            print(shown, file=sys.stderr)


@contextlib.contextmanager
def _shown_warnings(on_note: OnNote) -> Iterator[None]:
    """Make notes of the `UserWarning`s of backends and libraries; suppress other warnings."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning:
            on_note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # only the main thread handles signals; they may have a handler already
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
