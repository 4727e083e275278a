"""``lmaas-tune report``: writes the results of comparisons as one HTML file."""

from __future__ import annotations

import argparse

from lmaas_tune.cli.arguments import Commands, Outcome, add_command
from lmaas_tune.cli.compare import failures, result_text
from lmaas_tune.extras import need


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "report", "Write the results of `compare` as one HTML file")
    command.add_argument(
        "stores",
        nargs="+",
        metavar="DIR",
        help="folders of `lmaas-tune compare`, or files of JSON lines; several are merged",
    )
    command.add_argument(
        "-o", "--output", default="report.html", metavar="FILE", help="file to write (report.html)"
    )
    command.add_argument(
        "--target",
        type=float,
        metavar="LOSS",
        help="count the calls until the training loss is at most LOSS",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    """Read the results, and write the report."""
    need("a report", "jinja2", "plotly", "scipy", "statsmodels")
    from lmaas_tune.lab.report import ComparisonResult

    result = ComparisonResult.of(*arguments.stores, target=arguments.target)
    path = result.report(arguments.output)
    content = {**result.to_json(), "report": str(path)}
    return Outcome(content, f"{result_text(result)}\nWritten: {path}", failures(result))
