"""``lmaas-tune demo``: tunes a prompt for a small model on messages of the package."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmaas_tune.callbacks import Callback, ProgressBar
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Budget
from lmaas_tune.cli.arguments import Commands, Outcome, add_command, command_line, open_backend
from lmaas_tune.cli.formatting import (
    comparison_json,
    comparison_table,
    count,
    format_spent,
    number,
    result_json,
)
from lmaas_tune.cli.tune_report import interrupted
from lmaas_tune.demo import BACKEND, SETTINGS, TASK, Changed, Demo, demo_model
from lmaas_tune.demo_model import SMOLLM2
from lmaas_tune.errors import InputError
from lmaas_tune.extras import need
from lmaas_tune.journal import FILE_NAME
from lmaas_tune.lab.baselines import fit_baseline
from lmaas_tune.scores import Comparison, Score
from lmaas_tune.step import Step

OUT = "lmaas-tune-demo"
SHOWN = 3
PROBES = {
    "tfidf": "TF-IDF of the words and logistic regression",
    "mean-states": "the model's own states, which no API gives, and the same",
}
MESSAGE = "The courier left my parcel in the rain and the box is soaked."
INTRO = """\
A language model sorts customers' messages by department. Its weights are not changed. The search
tunes a few vectors in front of the answer, and sees only the model's scores."""


class Improvements(Callback):
    """Prints a line for every better prompt, if the output is no terminal."""

    def on_step(self, step: Step) -> None:
        """Print the loss of a better prompt on rows that are left out."""
        best = step.best.evaluation
        if step.improved and best is not None:
            print(f"  call {step.spent.calls:>4}  loss {number(best.loss)}", flush=True)


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "demo", "See it work on a small model, in minutes")
    command.add_argument(
        "--model",
        help=f"hub name or folder of another model ({SMOLLM2.name}, fetched once: "
        f"{SMOLLM2.megabytes} MB)",
    )
    command.add_argument(
        "--budget", metavar="NAME=N,...", help=f"limits that end the search ({SETTINGS.budget})"
    )
    command.add_argument("--seed", type=int, default=0, help="random seed (0)")
    command.add_argument(
        "--out", metavar="DIR", help=f"folder of the run ({OUT}, or with a number appended)"
    )
    command.add_argument("--resume", action="store_true", help="resume the run in --out")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    """Score the test messages, search, and score them again."""
    if arguments.resume and arguments.out is None:
        raise InputError("--resume needs the folder of the run: give --out")
    need("the demo", "torch", "transformers", "gguf", "sklearn", extra="demo")
    budget = None if arguments.budget is None else Budget.parse(arguments.budget)
    out = _free_folder() if arguments.out is None else Path(arguments.out)
    if (out / FILE_NAME).exists() and not arguments.resume:
        raise InputError(
            f"{out} holds a run already: resume it with --resume, or name another --out"
        )
    print(INTRO + "\n", flush=True)
    model = arguments.model or str(demo_model(say=_say))
    demo = Demo(Client(open_backend(BACKEND, model, {}), on_note=arguments.on_note))
    name = SMOLLM2.name if arguments.model is None else Path(model).name
    print(f"{name} classifies the test messages without tuning ...", flush=True)
    before = demo.before()
    print(
        f"{before.accuracy:.1%} of {count('test message', before.rows)} right (chance: 25%).\n"
        f"Searching for a better prompt with {count('labelled message', demo.labelled_rows)} ...",
        flush=True,
    )
    progress = ProgressBar() if sys.stderr.isatty() else Improvements()
    result = demo.tune(
        budget=budget, seed=arguments.seed, out=out, resume=arguments.resume, callbacks=[progress]
    )
    if not result.finished:
        return interrupted(result, _resume_command(arguments, out))
    print("Scoring the test messages with it, and with two usual methods ...", flush=True)
    after, probes = demo.after(result), _probes(demo)
    next_command = command_line(
        "predict", "--prompt", str(out), "--backend", BACKEND, "--model", model, "--text", MESSAGE
    )
    content = {
        **comparison_json(after.comparison),
        **result_json(result),
        "probes": {name: score.to_json() for name, score in probes.items()},
        "changed": [asdict(changed) for changed in after.changed[:SHOWN]],
        "prompt": str(out.resolve()),
        "next_command": next_command,
    }
    lines = [
        "",
        comparison_table(content),
        _shares(after.comparison),
        "",
        "Without a prompt, on the same labelled messages:",
        *(f"  {PROBES[name]:<62}{score.accuracy:>6.1%}" for name, score in probes.items()),
        "",
        *_changed_lines(after.changed),
        "",
        f"Spent: {format_spent(result.spent)}.",
        f"The prompt is saved in {out}. Try it on another message:",
        f"  {next_command}",
    ]
    return Outcome(content, "\n".join(lines))


def _probes(demo: Demo) -> dict[str, Score]:
    """The scores of what users try first, fitted to all labelled messages."""
    backend: Any = demo.client.backend
    scores = {}
    for name in PROBES:
        fitted = fit_baseline(name, backend, TASK, demo.train, demo.validation, seed=0, words="")
        scores[name] = Score.of(fitted.scores(demo.test), TASK.verbalizer.targets(demo.test))
    return scores


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _free_folder() -> Path:
    """`OUT`, with a number appended if it holds a run."""
    folder, number = Path(OUT), 1
    while (folder / FILE_NAME).exists():
        number += 1
        folder = Path(f"{OUT}-{number}")
    return folder


def _resume_command(arguments: argparse.Namespace, out: Path) -> str:
    words = [word for word in arguments.argv if word != "--resume"]
    out_flags = [] if arguments.out is not None else ["--out", str(out)]
    return command_line(*words, *out_flags, "--resume")


def _shares(comparison: Comparison) -> str:
    """The shares of head and search in the gain, as text."""
    head = comparison.start.accuracy - comparison.baseline.accuracy
    search = comparison.tuned.accuracy - comparison.start.accuracy
    return (
        f"The head (fitted to the answers for the labelled messages) gave "
        f"{100 * head:+.1f} points, the search on top of it {100 * search:+.1f}."
    )


def _changed_lines(changed: Sequence[Changed]) -> list[str]:
    gained = sum(change.after == change.label for change in changed)
    lost = sum(change.before == change.label for change in changed)
    lines = [
        f"{count('answer', len(changed))} changed: {gained} became right, {lost} became wrong."
        + (f" The first {SHOWN}:" if len(changed) > SHOWN else "")
    ]
    for change in changed[:SHOWN]:
        verdict = "right" if change.after == change.label else f"it is {change.label}"
        lines.append(f"  {textwrap.shorten(change.text, 90, placeholder=' ...')}")
        lines.append(f"    {change.before} -> {change.after} ({verdict})")
    return lines
