"""``lmaas-tune pretrain``: tunes a prompt by gradient descent, as a start for other tasks."""

from __future__ import annotations

import argparse

from lmaas_tune.cli.arguments import (
    Commands,
    Outcome,
    add_command,
    add_model,
)
from lmaas_tune.cli.formatting import count
from lmaas_tune.cli.reproduce import add_setup, data_of, open_model, read_setup
from lmaas_tune.lab.paper.pretrain import pretrain
from lmaas_tune.lab.paper.rows import DataSource
from lmaas_tune.lab.paper.tasks import PAPER_TASKS, paper_task


def add_to(commands: Commands) -> None:
    """Add the command."""
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
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    """Tune the prompt and save it."""
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
