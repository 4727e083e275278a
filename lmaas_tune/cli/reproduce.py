"""``lmaas-tune reproduce`` and ``pretrain``: the paper's table, and a start for its prompts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial

from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Budget
from lmaas_tune.cli.arguments import (
    FAILED,
    Commands,
    Outcome,
    Parser,
    add_command,
    add_model,
    open_backend,
    parse_options,
    parse_seeds,
)
from lmaas_tune.cli.formatting import count
from lmaas_tune.errors import InputError
from lmaas_tune.lab.paper import (
    METHODS,
    PAPER_TASKS,
    DataSource,
    Record,
    Setup,
    Table,
    differences_text,
    read_table,
    reproduce,
    table_text,
)
from lmaas_tune.lab.paper.methods import family_of, method
from lmaas_tune.lab.paper.pretrain import pretrain
from lmaas_tune.lab.paper.tasks import LAYOUTS, paper_task
from lmaas_tune.notes import OnNote

_ROWS = tuple(name for name in METHODS if not METHODS[name].pretrained)


def add_to(commands: Commands) -> None:
    """Add both commands."""
    _add_reproduce(commands)
    _add_pretrain(commands)


def _add_reproduce(commands: Commands) -> None:
    command = add_command(commands, "reproduce", "Compute the paper's table of results on a model")
    add_model(command)
    _add_table(command)
    group = add_setup(command)
    group.add_argument(
        "--shots",
        default="16",
        metavar="N",
        help="training rows a class; 16,dbpedia=4 for another number on a task (16)",
    )
    group.add_argument(
        "--test-rows", type=int, metavar="N", help="the most test rows, drawn once for all seeds"
    )
    group.add_argument(
        "--budget", metavar="NAME=N,...", help="of each search, as calls=500 (the preset's)"
    )
    command.set_defaults(run=run_reproduce)


def _add_table(command: Parser) -> None:
    group = command.add_argument_group("the table")
    group.add_argument(
        "--tasks",
        type=_names,
        metavar="NAME,...",
        help=f"columns: {', '.join(PAPER_TASKS)} (all)",
    )
    group.add_argument(
        "--methods",
        type=_names,
        metavar="NAME,...",
        help=f"rows: {', '.join(METHODS)} (all that need no pre-trained prompt)",
    )
    group.add_argument("--seeds", metavar="N,...", help="(13,21,42)")
    group.add_argument(
        "--pretrained",
        action="append",
        default=[],
        metavar="TASK,...=DIR",
        help="the prompt of `lmaas-tune pretrain` that two of the rows start from; may be given "
        "several times",
    )
    group.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for the runs; the same command resumes unfinished ones",
    )
    group.add_argument(
        "--table",
        action="store_true",
        help="print the table of the runs in --out, all or those of --tasks, --methods and "
        "--seeds, and stop",
    )


def add_setup(command: Parser) -> argparse._ArgumentGroup:
    """The flags for the labelled rows and the setup."""
    group = command.add_argument_group("the rows and their layout")
    group.add_argument(
        "--data",
        metavar="DIR",
        help="a folder with TASK/seed-N/train.jsonl and dev.jsonl, or TASK/train.jsonl, and "
        "TASK/test.jsonl; or hub, for the public data sets",
    )
    group.add_argument(
        "--preset",
        help="settings of the black-box rows: paper-icml22, repo-head, or default, those of "
        "lmaas-tune (default for causal models, paper-icml22 for others)",
    )
    group.add_argument(
        "--layout",
        help=f"{' or '.join(LAYOUTS)}: the paper's templates with the prompt first, or templates "
        "with the text first (text-first for causal models by default, paper for others)",
    )
    return group


def read_setup(arguments: argparse.Namespace, client: Client) -> Setup:
    """The setup that the flags of `add_setup` describe."""
    return Setup.for_family(family_of(client), preset=arguments.preset, layout=arguments.layout)


def open_model(arguments: argparse.Namespace) -> Client:
    """The model of the flags of `add_model`."""
    options = parse_options(arguments.backend_options)
    backend = open_backend(arguments.backend, arguments.model, options)
    return Client(backend, on_note=arguments.on_note)


def data_of(arguments: argparse.Namespace) -> str:
    """The folder of the labelled rows."""
    if arguments.data is None:
        raise InputError("there are no rows: give --data, a folder or hub")
    data: str = arguments.data
    return data


def _read_source(arguments: argparse.Namespace) -> DataSource:
    data = data_of(arguments)
    shots: dict[str, int] = {}
    for name, value in parse_options(f"all={arguments.shots}").items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"--shots {arguments.shots!r}: write 16, or 16,dbpedia=4")
        shots[name] = value
    return DataSource(
        data=data,
        shots=shots.pop("all"),
        other_shots=shots,
        test_rows=arguments.test_rows,
    )


def run_reproduce(arguments: argparse.Namespace) -> Outcome:
    """Compute or resume the table."""
    tasks, methods = arguments.tasks, arguments.methods
    seeds = None if arguments.seeds is None else parse_seeds(arguments.seeds)
    if arguments.table:
        table = read_table(arguments.out, tasks=tasks, methods=methods, seeds=seeds)
        return _outcome(table, arguments.out)
    tasks = list(PAPER_TASKS) if tasks is None else tasks
    methods = list(_ROWS) if methods is None else methods
    source = _read_source(arguments)
    budget = None if arguments.budget is None else Budget.parse(arguments.budget)
    for task in tasks:  # before the model is loaded, which takes long
        paper_task(task)
    for name in methods:
        method(name)
    client = open_model(arguments)
    try:
        table = reproduce(
            client,
            tasks=tasks,
            methods=methods,
            seeds=(13, 21, 42) if seeds is None else seeds,
            source=source,
            out=arguments.out,
            setup=replace(read_setup(arguments, client), budget=budget),
            pretrained=_pretrained(arguments.pretrained),
            say=partial(_say, arguments.on_note),
        )
    except KeyboardInterrupt:
        arguments.on_note(
            f"finished runs are kept in {arguments.out}: the same command resumes the others"
        )
        raise
    return _outcome(table, arguments.out)


def _outcome(table: Table, out: str) -> Outcome:
    content = {
        "table": {
            task: {name: asdict(cell) for name, cell in row.items()}
            for task, row in table.cells.items()
        },
        "differences": [asdict(difference) for difference in table.differences],
        "deviations": table.deviations,
        "failed": [record.to_json() for record in table.failed],
        "out": out,
    }
    lines = ["Means over seeds, with standard deviations.", "", table_text(table.cells), ""]
    if table.differences:
        lines += ["Differences with 95% intervals over seeds and test rows:", ""]
        lines += [differences_text(table.differences), ""]
    lines += table.deviations
    errors = "\n".join(f"failed: {record.name}: {record.reason}" for record in table.failed)
    return Outcome(content, "\n".join(lines), errors, FAILED if table.failed else 0)


def _say(on_note: OnNote, record: Record) -> None:
    if record.value is not None:
        took = count("second", round(record.wall_seconds))
        on_note(f"{record.name}: {100 * record.value:.1f} in {took}")
    for note in record.notes:
        on_note(f"{record.name}: {note}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _pretrained(given: list[str]) -> Mapping[str, str]:
    folders: dict[str, str] = {}
    for text in given:
        names, equals, folder = text.partition("=")
        if not equals:
            raise InputError(f"--pretrained {text!r}: write TASK=DIR, as mrpc,rte=prompt")
        folders |= dict.fromkeys(_names(names), folder)
    return folders


def _add_pretrain(commands: Commands) -> None:
    command = add_command(
        commands, "pretrain", "Tune a prompt by gradient descent, as a start for other tasks"
    )
    add_model(command)
    group = command.add_argument_group("the prompt")
    group.add_argument(
        "--task",
        default="snli",
        help=f"task on whose rows the prompt is trained: {', '.join(PAPER_TASKS)} (snli)",
    )
    group.add_argument("--seed", type=int, default=0, help="random seed (0)")
    group.add_argument("--out", required=True, metavar="DIR", help="folder for the prompt")
    add_setup(command)
    command.set_defaults(run=run_pretrain)


def run_pretrain(arguments: argparse.Namespace) -> Outcome:
    """Tune a prompt by gradient descent and save it."""
    task, source = paper_task(arguments.task), DataSource(data=data_of(arguments))
    client = open_model(arguments)
    tuned = pretrain(client, task, source, read_setup(arguments, client), seed=arguments.seed)
    tuned.save(arguments.out)
    provenance = tuned.provenance
    content = {**provenance, "out": arguments.out}
    rows, steps = count("row", provenance["source_rows"]), count("step", provenance["steps"])
    text = (
        f"Trained on {rows} of {task.name} in {steps}; loss on rows held out: "
        f"{provenance['validation_loss']:.3f}.\n"
        f"Saved in {arguments.out}: give it to `lmaas-tune reproduce --pretrained TASK="
        f"{arguments.out}`, or to `lmaas-tune tune --start-from {arguments.out}`."
    )
    return Outcome(content, text)
