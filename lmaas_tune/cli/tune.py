"""``lmaas-tune tune``: searches for a better prompt."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmaas_tune.arguments import load_start
from lmaas_tune.callbacks import Callback, CSVLogger, ProgressBar, TensorBoardLogger
from lmaas_tune.calls.meter import Spent
from lmaas_tune.cli.arguments import (
    Commands,
    Outcome,
    Parser,
    add_backend,
    add_command,
    add_encoding,
    backend_flags,
    command_line,
    open_client,
    read_rows,
)
from lmaas_tune.cli.formatting import (
    comparison_table,
    format_best,
    format_plan,
    format_spent,
    sentence,
)
from lmaas_tune.cli.search_flags import (
    add_search_flags,
    add_template_flags,
    label_words,
    read_settings,
)
from lmaas_tune.cli.tune_report import check_test_rows, interrupted, note_limits, report
from lmaas_tune.dataset import Dataset, task_for
from lmaas_tune.errors import BackendError, InputError
from lmaas_tune.exactness import describe_bounds
from lmaas_tune.row_files import KINDS
from lmaas_tune.task import Example, Task, Template, Verbalizer
from lmaas_tune.trackers import MLflowLogger, WandbLogger
from lmaas_tune.tuner import Tuner


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "tune", "Search for a better prompt")
    _add_task(command)
    add_backend(command)
    add_search_flags(command)
    _add_run(command)
    command.set_defaults(run=run)


def _add_task(command: Parser) -> None:
    group = command.add_argument_group(
        "the task", f"Labelled rows come in files that end in {', '.join(KINDS)}."
    )
    group.add_argument(
        "--train", metavar="FILE", required=True, help="labelled rows that each call scores"
    )
    group.add_argument(
        "--validation", metavar="FILE", help="further labelled rows (--validation-rows: their use)"
    )
    group.add_argument(
        "--test", metavar="FILE", help="labelled rows that are scored before and after the search"
    )
    add_template_flags(group)
    add_encoding(group)
    group.add_argument(
        "--fields",
        metavar="NAME,...",
        help="the fields that the model reads (all but ids, dates and addresses)",
    )
    group.add_argument(
        "--truncate",
        type=int,
        metavar="N",
        help="the model reads the first N characters of each field (all)",
    )


def _add_run(command: Parser) -> None:
    group = command.add_argument_group("the run")
    group.add_argument("--out", metavar="DIR", help="folder for the run and its best prompt")
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="make one call, and tell what the search would cost",
    )
    group.add_argument(
        "--resume", action="store_true", help="resume the run in --out; no answer is paid twice"
    )
    group.add_argument("--csv", metavar="FILE", help="file for one line of CSV a generation")
    group.add_argument(
        "--tensorboard", metavar="DIR", help="folder for the curves, in the format of TensorBoard"
    )
    group.add_argument(
        "--mlflow", metavar="NAME", help="experiment of MLflow, at MLFLOW_TRACKING_URI"
    )
    group.add_argument("--wandb", metavar="NAME", help="project of Weights & Biases")


def run(arguments: argparse.Namespace) -> Outcome:
    """Search for a prompt, and score it on test rows."""
    if arguments.resume and arguments.out is None:
        raise InputError("--resume needs the folder of the run: give --out")
    settings = read_settings(arguments)
    start = None if arguments.start_from is None else load_start(arguments.start_from)
    train = read_rows(arguments, "train")
    validation = None if arguments.validation is None else read_rows(arguments, "validation")
    test = None if arguments.test is None else read_rows(arguments, "test")
    task = _task(arguments, train, prompt_first=settings.prompt.demonstrations > 0)
    if test is not None:
        check_test_rows(task, test)
        seen = Dataset("train", [*train, *(validation or ())])
        if again := Dataset("test", test).overlap(seen):
            arguments.on_note(
                f"test: {again} of {len(test)} rows are training or validation rows too, so the "
                "test scores are too optimistic"
            )
        note_limits(task.template, "test", test, arguments.on_note)
    tuner = Tuner(
        open_client(arguments, arguments.on_note),
        settings=settings,
        template=task.template,
        labels=task.verbalizer.words,
        start=start,
        seed=arguments.seed,
        out=arguments.out,
        callbacks=_callbacks(arguments),
    )
    if arguments.dry_run:
        plan = tuner.plan(train, validation)
        return Outcome(plan.to_json(), format_plan(plan))
    resume = command_line(*(word for word in arguments.argv if word != "--resume"), "--resume")
    try:
        result = tuner.fit(train, validation, resume=arguments.resume)
    except BackendError:
        if arguments.out is not None:
            arguments.on_note(f"all paid answers are saved; to resume: {resume}")
        raise
    if not result.finished:
        return interrupted(result, resume)
    content = report(result, test)
    return Outcome(content, _text(content, arguments))


def _task(arguments: argparse.Namespace, train: Sequence[Example], *, prompt_first: bool) -> Task:
    template, labels = arguments.template, arguments.labels
    if template is not None and arguments.fields is not None:
        raise InputError("--fields and --template exclude each other: a template names its fields")
    fields = None if arguments.fields is None else arguments.fields.split(",")
    task = task_for(
        train,
        template=None if template is None else Template(template),
        verbalizer=None if labels is None else Verbalizer(label_words(labels)),
        fields=None if fields is None else [name.strip() for name in fields],
        prompt_first=prompt_first,
        on_note=arguments.on_note,
    )
    if arguments.truncate is None:
        return task
    return replace(task, template=task.template.truncated(arguments.truncate))


def _callbacks(arguments: argparse.Namespace) -> list[Callback]:
    callbacks: list[Callback] = [ProgressBar()]
    if arguments.csv is not None:
        callbacks.append(CSVLogger(arguments.csv))
    if arguments.tensorboard is not None:
        callbacks.append(TensorBoardLogger(arguments.tensorboard))
    if arguments.mlflow is not None:
        callbacks.append(MLflowLogger(arguments.mlflow))
    if arguments.wandb is not None:
        callbacks.append(WandbLogger(arguments.wandb))
    return callbacks


def _text(content: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    lines = [f"Done. {sentence(content['stop_reason'])}", format_best(content["best"])]
    if content["bounds"]:
        lines.append(f"{describe_bounds(content['bounds'])}.")
    if content["prompt_text"] is not None:
        lines += ["", content["prompt_text"]]
    if content["tuned"] is not None:
        lines += ["", comparison_table(content)]
    if content["prompt_text"] is not None or content["tuned"] is not None:
        lines.append("")
    lines.append(f"Spent: {format_spent(Spent.from_json(content['spent']))}.")
    if arguments.out is None:
        lines.append("The prompt is not saved: give --out to keep it.")
        return "\n".join(lines)
    several = len(content["fields"]) > 1
    rows = ("--input", arguments.train) if several else ("--text", "your text")
    command = command_line("predict", "--prompt", arguments.out, *backend_flags(arguments), *rows)
    return "\n".join([*lines, f"Saved in {arguments.out}. To use it:", f"  {command}"])
