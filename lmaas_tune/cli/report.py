"""``lmaas-tune report``: writes the results of comparisons as one HTML file, and as tables."""

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
        "--tables",
        metavar="DIR",
        help="write the ranking and the table by task there too, as CSV and LaTeX",
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
    tables = [] if arguments.tables is None else result.tables(arguments.tables)
    content = {**result.to_json(), "report": str(path), "tables": [str(each) for each in tables]}
    repeat = [f"To repeat it: {command}" for command in result.commands]
    written = f"Written: {', '.join(map(str, [path, *tables]))}"
    text = "\n".join([result_text(result), *repeat, written])
    return Outcome(content, text, failures(result))
