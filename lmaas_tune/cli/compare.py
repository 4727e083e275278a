"""``lmaas-tune compare``: compare optimizers on a task at equal budgets."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lmaas_tune.cli.arguments import (
    FAILED,
    Commands,
    Outcome,
    Parser,
    add_backend,
    add_command,
    client_flags,
    command_line,
    open_client,
    parse_options,
    parse_seeds,
)
from lmaas_tune.cli.backends import read_backends
from lmaas_tune.cli.formatting import count, number
from lmaas_tune.cli.search_flags import add_settings, add_template_flags, label_words, read_settings
from lmaas_tune.cli.secrets import redactor
from lmaas_tune.errors import InputError, MissingExtraError
from lmaas_tune.lab.comparison import OptimizerSpec
from lmaas_tune.lab.early_stopping import EarlyStop
from lmaas_tune.lab.tasks import NamedTask, read_tasks

if TYPE_CHECKING:
    from lmaas_tune.lab.report import ComparisonResult
    from lmaas_tune.lab.significance import Significance

_TASK = ("train", "validation", "test", "template", "labels", "shots")
"""Flags that describe one task, which a file of tasks replaces."""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "compare", "Compare optimizers at equal budgets")
    _add_tasks(command)
    add_backend(command)
    command.add_argument(
        "--backends",
        metavar="FILE",
        help="compare several backends: a .toml or .json file with a table of the flags above for "
        "each (backend, model, url, price_in, ...), under its label",
    )
    _add_comparison(command)
    add_settings(command)
    command.set_defaults(run=run)


def _add_tasks(command: Parser) -> None:
    group = command.add_argument_group(
        "the tasks",
        "One by these flags, or several in a file. {seed} in a path is the seed of the run.",
    )
    group.add_argument(
        "--tasks", metavar="FILE", help="a .toml or .json file with a table for each task"
    )
    group.add_argument("--train", metavar="FILE", help="labelled rows that each call scores")
    group.add_argument(
        "--validation", metavar="FILE", help="further labelled rows (--validation-rows: their use)"
    )
    group.add_argument(
        "--test", metavar="FILE", help="labelled rows that compare the final prompts"
    )
    group.add_argument(
        "--shots",
        type=int,
        metavar="N",
        help="for each seed, draw N rows a class from --train, and N for validation",
    )
    add_template_flags(group)


def _add_comparison(command: Parser) -> None:
    group = command.add_argument_group("the comparison")
    group.add_argument(
        "--optimizers",
        required=True,
        metavar="NAME,...",
        help="optimizers; `lmaas-tune optimizers` lists them; options go in brackets, as "
        '"cma(population=20),random"',
    )
    group.add_argument(
        "--seeds",
        required=True,
        metavar="N,...",
        help="random seeds, as 13,21,42; one run for each",
    )
    group.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for the results; the same command resumes unfinished runs",
    )
    group.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="number of processes, each with its own model; no more than free cores (1)",
    )
    group.add_argument(
        "--dask", metavar="ADDRESS", help="run on the Dask cluster whose scheduler listens there"
    )
    group.add_argument(
        "--stop-early",
        type=float,
        metavar="SHARE",
        help="after this share of the calls, end runs whose loss is above the median of the "
        "finished runs; by default no run is ended early",
    )
    group.add_argument(
        "--target",
        type=float,
        metavar="LOSS",
        help="count the calls until the training loss is at most LOSS",
    )


def run(arguments: argparse.Namespace) -> Outcome:
    """Run or resume a comparison."""
    from lmaas_tune.lab.optimizers import compare

    rule = None if arguments.stop_early is None else EarlyStop(after=arguments.stop_early)
    repeat = _repeating(arguments.argv)
    backends = (
        partial(open_client, client_flags(arguments))
        if arguments.backends is None
        else read_backends(arguments.backends, arguments)
    )
    try:
        with _cluster(arguments.dask):
            result = compare(
                backends,
                _tasks(arguments),
                optimizers=_optimizers(arguments.optimizers),
                seeds=parse_seeds(arguments.seeds),
                out=arguments.out,
                settings=read_settings(arguments),
                jobs=arguments.jobs,
                early_stop=rule,
                target=arguments.target,
                command=repeat,
                on_note=arguments.on_note,
            )
    except KeyboardInterrupt:
        arguments.on_note(
            f"finished runs are kept in {arguments.out}: the same command resumes the others"
        )
        raise
    content = {**result.to_json(), "out": arguments.out}
    code = FAILED if result.failed else 0
    report = command_line("report", arguments.out, "-o", "report.html")
    text = f"{result_text(result)}\nThe same anew: {repeat}\nCurves, tests and times: {report}"
    return Outcome(content, text, failures(result), code)


def _repeating(argv: Sequence[str]) -> str:
    """The command line that repeats the comparison in a new folder, without secrets."""
    words = [word for word in argv if word not in ("--json", "--traceback")]
    for place, word in enumerate(words):
        if word.startswith("--out=") or words[place - 1] == "--out":
            words[place] = f"{word.rstrip('/')}-again"
    return redactor(argv)(command_line(*words))


def result_text(result: ComparisonResult) -> str:
    """The ranking and its significance test, as text."""
    from lmaas_tune.lab.analysis import plain

    ranking = plain(result.ranking)
    where = f"On {result.judged_on} rows, loss {result.loss_name}, with 95% intervals:"
    lines = [
        *([result.caution] if result.caution else []),
        where,
        *_columns(
            ["", "mean rank", "loss", "", "accuracy", ""],
            [
                [
                    line["optimizer"],
                    number(line["mean_rank"]),
                    number(line["loss_mean"]),
                    _between(number, line["loss_low"], line["loss_high"]),
                    _percent(line["accuracy_mean"]),
                    _between(_percent, line["accuracy_low"], line["accuracy_high"]),
                ]
                for line in ranking
            ],
        ),
        _test(result.tests, len(ranking)),
    ]
    if left_out := result.tests.blocks_left_out:
        lines.append(
            f"{count('block', left_out)} left out, because an optimizer has no loss there."
        )
    if stopped := len(result.stopped_early):
        lines.append(f"{count('run', stopped)} stopped early.")
    if result.backends:
        lines += _costs(plain(result.costs), result.cost_unit)
    return "\n".join(lines)


def _costs(lines: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    """Accuracy against cost, the cheapest first."""
    rows = [
        [
            f"{line['backend']}, {line['optimizer']}",
            f"{line[unit]:,.4g}",
            _percent(line["accuracy"]),
            _between(_percent, line["accuracy_low"], line["accuracy_high"]),
            "front" if line["on_front"] else "",
        ]
        for line in lines
    ]
    title = f"Accuracy against {unit} of a search (front: no other is as accurate for less):"
    return [title, *_columns(["", unit, "accuracy", "", ""], rows)]


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the first column is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "  ".join(["", row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in (heads, *rows)
    ]


def _between(show: Callable[[float | None], str], low: float | None, high: float | None) -> str:
    return "" if low is None else f"{show(low)} to {show(high)}"


def failures(result: ComparisonResult) -> str:
    """The failed runs, one line each."""
    return "\n".join(
        f"failed: {record.method} on {record.task} with seed {record.seed}: {record.reason}"
        for record in result.failed
    )


def _test(tests: Significance, optimizers: int) -> str:
    """The result of Wilcoxon's test for two optimizers, of Friedman's test for more."""
    two = optimizers <= 2
    test = tests.pairs if two else tests.friedman
    if test.untested is not None:
        return f"Not tested: {test.untested}."
    p = tests.pairs.of[0].p if two else tests.friedman.p or 0.0
    name, blocks = "Wilcoxon" if two else "Friedman", count("block", tests.blocks)
    return f"{name}'s test over {blocks}: p = {p:.2g}."


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _tasks(arguments: argparse.Namespace) -> tuple[NamedTask, ...]:
    given = [name for name in _TASK if getattr(arguments, name) is not None]
    if arguments.tasks is not None:
        if given:
            raise InputError(
                f"--tasks and --{given[0]} exclude each other: set it in the file for each task"
            )
        return read_tasks(arguments.tasks)
    if arguments.train is None:
        raise InputError("there is no task: give --train, or a file of tasks with --tasks")
    content: dict[str, Any] = {name: getattr(arguments, name) for name in given}
    if "labels" in content:
        content["labels"] = label_words(content["labels"])
    return (NamedTask(name="task", label_field=arguments.label_field, **content),)


def _optimizers(text: str) -> list[OptimizerSpec]:
    """Read ``"cma(population=20),random"``."""
    found = []
    for part in re.findall(r"(?:[^,(]|\([^)]*\)?)+", text):
        match = re.fullmatch(r"([^()]+)(?:\((.*)\))?", part.strip())
        if match is None:
            raise InputError(
                f'--optimizers {text!r}: {part.strip()!r} is no optimizer; write "cma(population='
                '20),random"'
            )
        name, options = match.groups()
        found.append(OptimizerSpec(optimizer=name.strip(), options=parse_options(options or "")))
    return found


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Run joblib's tasks on a Dask cluster, if one is given."""
    if address is None:
        yield
        return
    try:
        from distributed import Client
        from joblib import parallel_config
    except ImportError as error:
        raise MissingExtraError("--dask", package="distributed", extra="cluster") from error
    try:
        client = Client(address)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise InputError(f"--dask {address}: no scheduler answers there ({error})") from error
    with client, parallel_config(backend="dask"):
        yield
