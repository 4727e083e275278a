"""`ComparisonResult`: the result of a comparison, with its report as HTML."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from lmaas_tune.lab.analysis import Analysis, Band
from lmaas_tune.lab.comparison import COMPARISON
from lmaas_tune.lab.record import Record
from lmaas_tune.lab.significance import Friedman, Significance
from lmaas_tune.lab.store import Store, read_stores
from lmaas_tune.reports.html import (
    NONE,
    Column,
    Figure,
    Section,
    Series,
    Table,
    key_values,
    lines_of,
    loss,
    number,
    percent,
    spread,
    whole,
    write_page,
)
from lmaas_tune.reports.inline import inline

_TITLE, _SEARCH = "Comparison of optimizers", "search"
_MOST_FIGURES = 4  # in a notebook's cell
_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
_ROWS = {
    "test": "test rows, which chose nothing",
    "validation": "validation rows, which also chose the prompt",
    "train": "training rows, which the search itself saw",
}
_TASK, _OPTIMIZER = Column("Task", "task"), Column("Optimizer", "optimizer")


@dataclass(frozen=True, eq=False)
class ComparisonResult(Analysis):
    """The result of a comparison, see `Analysis`."""

    @classmethod
    def of(cls, *stores: str | os.PathLike[str], target: float | None = None) -> ComparisonResult:
        """The result of all runs in some folders or files of records.

        Raises:
            InputError: There are none, they are of comparisons that differ, or all failed.
            StorageError: A file is damaged.
        """
        return cls(read_stores([Store(Path(place), COMPARISON) for place in stores]), target)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write all this as one HTML file, which needs no network.

        Raises:
            MissingExtraError: jinja2 or plotly is not installed.
            StorageError: The file cannot be written.
        """
        parts = (_ranking, _curves, _final, _target, _tests, _times, _runs, _conditions)
        sections = [part(self) for part in parts]
        return write_page(_TITLE, _summary(self), sections, Path(path))

    def __repr__(self) -> str:
        return "\n".join([f"{_TITLE}: {_summary(self)[0]}", *_summary(self)[1:]])

    def _repr_html_(self) -> str:
        searched = [figure for figure in _curves(self).figures if figure.anchor.startswith(_SEARCH)]
        return inline(
            [
                Section(title=_TITLE, text=_summary(self)),
                _ranking(self),
                Section(title="Loss against calls", figures=searched[:_MOST_FIGURES]),
            ]
        )


def _summary(result: Analysis) -> list[str]:
    records = result.records
    optimizers, tasks, seeds = (
        _count(what, len({record.key[place] for record in records}))
        for what, place in (("optimizer", 1), ("task", 0), ("seed", 2))
    )
    failed, stopped = len(result.failed), len(result.stopped_early)
    return [
        f"{optimizers} on {tasks} with {seeds}: {_count('run', len(records))}, of which "
        f"{failed or 'none'} failed and {stopped or 'none'} {'was' if stopped == 1 else 'were'} "
        f"stopped early. Each had the budget {records[0].conditions['budget']}.",
        f"The model: {records[0].identity}.",
        _verdict(result),
    ]


def _verdict(result: Analysis) -> str:
    lines, tests = lines_of(result.ranking), result.tests
    best = lines[0]
    if best.mean_rank != best.mean_rank:
        return "No block has a loss of every optimizer, so they cannot be ranked."
    rank, blocks = _rank(best.mean_rank), _count("block", tests.blocks)
    first = [line.optimizer for line in lines if _rank(line.mean_rank) == rank]
    of = f"{rank} of {len(lines)}, over {blocks}. "
    if len(first) > 1:
        return f"{', '.join(first)} share the lowest mean rank: {of}".rstrip()
    text = f"The lowest mean rank is that of {best.optimizer}: {of}"
    differing = [{pair.first, pair.second} for pair in tests.pairs.of if pair.differ]
    worse = [other for pair in differing for other in pair - {first[0]} if first[0] in pair]
    if worse:
        return text + f"It differs significantly from {', '.join(worse)}, and from no other."
    if tests.pairs.untested is not None:
        return text + f"Whether that is more than chance was not tested: {tests.pairs.untested}."
    return text + "It does not differ significantly from the others."


def _rank(value: float) -> str:
    return NONE if value != value else f"{value:.2f}"


def _ranking(result: Analysis) -> Section:
    table = Table(
        "Best first, by mean rank",
        lines_of(result.ranking),
        [
            _OPTIMIZER,
            Column("Mean rank", "mean_rank", _rank),
            Column("Loss", "loss_mean loss_std", spread(loss)),
            Column("Median loss", "loss_median", loss),
            Column("Accuracy", "accuracy_mean accuracy_std", spread(percent)),
            Column("Calls", "calls_mean", number),
            Column("Runs", "runs failed stopped_early", _outcomes),
        ],
        note="Means over tasks of the means over seeds; ± is the standard deviation over the seeds "
        "of a task, pooled over tasks. An optimizer asks for whole generations, so a rest of "
        "the budget may be left. Ranks are taken within a block, which is one task with one seed.",
    )
    text = (
        f"Final loss ({result.loss_name}) and accuracy are those on the {_ROWS[result.judged_on]}, "
        "in the blocks that all optimizers have."
    )
    return Section(title="Ranking", text=[text], tables=[table])


def _outcomes(counts: tuple[int, int, int]) -> str:
    runs, failed, stopped = counts
    text = str(runs) + f", {failed} failed" * (failed > 0)
    return text + f", {stopped} stopped early" * (stopped > 0)


def _curves(result: Analysis) -> Section:
    searched = _ranked(result, result.curves("lowest_loss"))
    validated = {r.task for r in result.records if r.rows.get("validation") is not None}
    chosen = [line for line in result.curves("kept_loss") if line.task in validated]
    targets = {line.task: line.target for line in lines_of(result.calls_to_target)}
    text = (
        "A line is the median over seeds, and its band goes from the first to the third quartile. "
        "A run that has ended keeps its last loss. The dotted line is the target of the table "
        "below. A button hides a series in all figures."
    )
    lowest, kept = "{}: lowest training loss so far", "{}: validation loss of the prompt kept"
    figures = _figures(searched, _SEARCH, lowest, targets)
    figures += _figures(_ranked(result, chosen), "kept", kept, {})
    return Section(
        title="Loss against calls", text=[text], figures=figures, tables=[_progress(searched)]
    )


def _ranked(result: Analysis, lines: Sequence[Band]) -> list[Band]:
    """Task by task, the best optimizer first."""
    tasks = list(dict.fromkeys(line.task for line in lines))
    order = result.ranking["optimizer"].tolist()
    return sorted(lines, key=lambda line: (tasks.index(line.task), order.index(line.optimizer)))


def _figures(
    lines: Sequence[Band], anchor: str, caption: str, targets: Mapping[str, float]
) -> list[Figure]:
    return [
        Figure(
            anchor=f"{anchor}-{index}",
            caption=caption.format(task),
            x="calls (one prompt on all training rows)",
            y="loss",
            target=targets.get(task),
            series=[_series(line) for line in lines if line.task == task],
        )
        for index, task in enumerate(dict.fromkeys(line.task for line in lines))
    ]


def _series(line: Band) -> Series:
    series = Series(name=line.optimizer, x=line.calls, y=line.median, stepped=True)
    return series if line.runs == 1 else replace(series, low=line.low, high=line.high)


def _progress(lines: Sequence[Band]) -> Table:
    shares = [Column(f"{share:.0%}", partial(_median_after, share), loss) for share in _SHARES]
    return Table(
        "In numbers: median of the lowest training loss after a share of the calls",
        lines,
        [_TASK, _OPTIMIZER, *shares],
        folded=True,
    )


def _median_after(share: float, line: Band) -> float | None:
    at = zip(line.calls, line.median, strict=True)
    return ([None] + [loss for calls, loss in at if calls <= share * line.calls[-1]])[-1]


def _final(result: Analysis) -> Section:
    table = Table(
        "Each task by itself; ± is the standard deviation over seeds",
        lines_of(result.by_task),
        [
            _TASK,
            _OPTIMIZER,
            Column("Runs", "runs", whole),
            Column("Loss", "loss_mean loss_std", spread(loss)),
            Column("Median", "loss_median", loss),
            Column("Accuracy", "accuracy_mean accuracy_std", spread(percent)),
            Column("Median", "accuracy_median", percent),
        ],
    )
    tasks = dict.fromkeys(record.task for record in result.records)
    figures = [_dots(result, f"final-{index}", task) for index, task in enumerate(tasks)]
    return Section(title="Final loss and accuracy", figures=figures, tables=[table])


def _dots(result: Analysis, anchor: str, task: str) -> Figure:
    """The final losses on one task, a dot a run."""
    frame = result.frame[result.frame["task"] == task].dropna(subset="loss")
    dots = {
        name: Series(
            name=name, x=own["loss"].tolist(), text=[f"seed {seed}" for seed in own["seed"]]
        )
        for name, own in frame.groupby("optimizer")
    }
    return Figure(
        anchor=anchor,
        kind="dots",
        caption=f"{task}: final loss, a dot a run",
        x=f"loss on {result.judged_on} rows",
        series=[dots[name] for name in result.ranking["optimizer"] if name in dots],
    )


def _target(result: Analysis) -> Section:
    origin = (
        "the lowest training loss that half of all runs of the task reached"
        if result.target is None
        else "the one that was given"
    )
    table = Table(
        "Calls until the training loss reached the target",
        lines_of(result.calls_to_target),
        [
            _TASK,
            _OPTIMIZER,
            Column("Target", "target", loss),
            Column("Runs that reached it", "reached runs", lambda of: f"{of[0]} of {of[1]}"),
            Column(
                "Median calls",
                "calls_median",
                lambda calls: "not within the budget" if calls != calls else number(calls),
            ),
            Column("Calls a success", "calls_a_success", number),
        ],
        note="A run that ended before the target is censored: it counts in the median as later "
        "than all that reached it, and its calls are added to those of a success (the expected "
        "running time).",
    )
    return Section(title="Calls to a target", text=[f"The target is {origin}."], tables=[table])


def _tests(result: Analysis) -> Section:
    tests = result.tests
    text = _what_was_tested(tests)
    if result.stopped_early:
        text.append(
            "Runs that were stopped early count with their last loss, which favours the other runs."
        )
    friedman = _friedman(tests.friedman, "", " (statistic {}; p by permuting the blocks)")
    text.append(f"Do they differ at all? {friedman}.")
    if tests.tasks > 1:
        tell = ", which says more about other tasks, though all have the same seeds"
        over = _friedman(tests.friedman_over_tasks, f" over {tests.tasks} tasks", tell)
        text.append(f"Do the means of the tasks differ? {over}.")
    if tests.pairs.untested is not None:
        text.append(f"Which ones differ? Not tested: {tests.pairs.untested}.")
        return Section(title="Tests", text=text)
    return Section(title="Tests", text=text, tables=[_pairs(tests)])


def _what_was_tested(tests: Significance) -> list[str]:
    text = [
        f"Tested over {_count('block', tests.blocks)} of one task with one seed each, where all "
        "had the same rows, subspace and budget. Blocks of one task have much in common, so a "
        "difference here is a difference on these tasks."
    ]
    if tests.blocks_left_out:
        left_out = _count("block", tests.blocks_left_out)
        text.append(f"Left out, because an optimizer has no loss there: {left_out}.")
    if tests.optimizers_left_out:
        text.append(f"Left out, because they have no loss: {', '.join(tests.optimizers_left_out)}.")
    return text


def _friedman(test: Friedman, over: str, more: str) -> str:
    if test.untested is not None or test.p is None:
        return f"Not tested: {test.untested}"
    p = "p < 0.001" if test.p < 0.001 else f"p = {test.p:.3f}"
    return f"Friedman's test{over}: {p}{more.format(number(test.statistic))}"


def _pairs(tests: Significance) -> Table:
    return Table(
        "Which ones differ? Wilcoxon's signed-rank test, p adjusted by Holm's method",
        tests.pairs.of,
        [
            Column("First", "first"),
            Column("Second", "second"),
            Column("First is better", "first_better", lambda n: f"{n} of {tests.blocks}"),
            Column("Median difference", "median_difference", loss),
            Column("p", "p", number),
            Column("p, adjusted", "p_holm", number),
            Column(f"Differ at {tests.alpha}", lambda pair: "yes" if pair.differ else "no"),
        ],
        note="A negative difference is in favour of the first.",
    )


def _times(result: Analysis) -> Section:
    table = Table(
        "Seconds of the optimizer itself (ask and tell), and of a whole run",
        lines_of(result.times),
        [
            _OPTIMIZER,
            Column("Per 100 calls", "seconds_per_100_calls", number),
            Column("A run", "seconds_a_run", number),
            Column("Share of the search", "share_of_search", percent),
            Column("Whole run", "wall_seconds_a_run", number),
        ],
        note="Wall time, on machines that may have had other work.",
    )
    return Section(title="Time", tables=[table])


def _runs(result: Analysis) -> Section:
    part = result.judged_on
    columns = [
        _TASK,
        Column("Optimizer", "method"),
        Column("Seed", "seed", whole),
        Column("Loss", lambda record: record.loss(part), loss),
        Column("Accuracy", lambda record: record.accuracy(part), percent),
        Column("Calls", lambda record: record.spent.get("calls"), number),
        Column("How it ended", lambda record: f"{record.status}: {record.reason}"),
    ]
    tables = [
        Table("Runs that failed, which are not counted", result.failed, columns),
        Table("Runs that were stopped early", result.stopped_early, columns),
        Table("All runs", result.records, columns, folded=True),
    ]
    notes = dict.fromkeys(note for record in result.records for note in record.notes)
    text = [f"Note: {note}" for note in notes]
    return Section(title="Runs", text=text, tables=[table for table in tables if table.lines])


def _conditions(result: Analysis) -> Section:
    records = result.records
    tasks = Table(
        "The tasks",
        list({record.task: record for record in records}.values()),
        [
            _TASK,
            Column("Template", "template"),
            Column("Label words", _words),
            Column("Rows", _rows),
        ],
    )
    options = {r.method: r.settings.get("optimizer_options") or "defaults" for r in records}
    versions = pd.DataFrame([record.versions for record in records])
    installed = {str(name): ", ".join(own.dropna().unique()) for name, own in versions.items()}
    return Section(
        title="Settings and versions",
        tables=[
            tasks,
            key_values("Options of the optimizers", options),
            key_values("Settings of all runs", records[0].conditions, folded=True),
            key_values("Versions", installed, folded=True),
        ],
    )


def _words(record: Record) -> str:
    return ", ".join(f"{label}: {word}" for label, word in record.label_words.items())


def _rows(record: Record) -> str:
    return ", ".join(f"{own.rows} {part}" for part, own in record.rows.items() if own)


def _count(word: str, n: int) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
