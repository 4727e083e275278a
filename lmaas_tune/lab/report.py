"""`ComparisonResult`: the result of a comparison, with its report as HTML."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path

import pandas as pd

from lmaas_tune.lab.analysis import Analysis, Band
from lmaas_tune.lab.comparison import COMPARISON
from lmaas_tune.lab.costs import UNITS
from lmaas_tune.lab.record import Record, notes_of
from lmaas_tune.lab.runtimes import RESAMPLES, TARGETS, Runtimes
from lmaas_tune.lab.significance import Friedman, Significance
from lmaas_tune.lab.store import Store, read_stores
from lmaas_tune.lab.tables import write_tables
from lmaas_tune.lab.verdict import shown_rank
from lmaas_tune.reports.html import (
    MARKS,
    NONE,
    Column,
    Figure,
    Section,
    Series,
    Table,
    count,
    key_values,
    lines_of,
    loss,
    number,
    percent,
    span,
    spread,
    whole,
    write_page,
)
from lmaas_tune.reports.inline import inline

_TITLE, _SEARCH = "Comparison of optimizers", "search"
_MOST_FIGURES = 4  # in a notebook's cell
_CALLS = "calls (one prompt on all training rows)"
_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
_ROWS = {
    "test": "test rows, which chose nothing",
    "validation": "validation rows, which also chose the prompt",
    "train": "training rows, which the search itself saw",
}
_BACKEND, _TASK = Column("Backend", "backend"), Column("Task", "task")
_OPTIMIZER = Column("Optimizer", "optimizer")
_INTERVAL = "95% interval"


@dataclass(frozen=True, eq=False)
class ComparisonResult(Analysis):
    """The result of a comparison, see `Analysis`."""

    def __repr__(self) -> str:
        return f"ComparisonResult({self.verdict!r}, {_count('run', len(self.records))})"

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
        parts = [_ranking, _curves, _runtimes, _final, _target, _tests, _times, _runs, _conditions]
        if self.backends:
            parts.insert(1, _costs)
        sections = [part(self) for part in parts]
        if self.commands:
            sections.append(_repeat(self))
        return write_page(_TITLE, _summary(self), sections, Path(path))

    def _repr_html_(self) -> str:
        searched = [figure for figure in _curves(self).figures if figure.anchor.startswith(_SEARCH)]
        return inline(
            [
                Section(title=_TITLE, text=_summary(self)),
                _ranking(self),
                Section(title="Loss against calls", figures=searched[:_MOST_FIGURES]),
            ]
        )

    def tables(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the tables for other programs, see `lmaas_tune.lab.tables`.

        Returns:
            The files: each table as CSV with all digits, and as LaTeX for a paper.

        Raises:
            MissingExtraError: jinja2 is not installed.
            StorageError: A file cannot be written.
        """
        return write_tables(self, Path(folder))


def _summary(result: Analysis) -> list[str]:
    records = result.records
    optimizers, tasks, seeds = (
        _count(what, len({getattr(record, name) for record in records}))
        for what, name in (("optimizer", "method"), ("task", "task"), ("seed", "seed"))
    )
    failed, stopped = len(result.failed), len(result.stopped_early)
    models = {record.backend: record.identity for record in records}
    return [
        result.verdict,
        f"{optimizers} on {tasks} with {seeds}: {_count('run', len(records))}, of which "
        f"{failed or 'none'} failed and {stopped or 'none'} {'was' if stopped == 1 else 'were'} "
        f"stopped early. Each had the budget {records[0].conditions['budget']}.",
        *(f"The model{name and f' {name}'}: {model}." for name, model in models.items()),
    ]


def _rank(value: float | None) -> str:
    return NONE if value is None or value != value else shown_rank(value)


def _tasks_of(result: Analysis) -> list[Column]:
    """The columns that name a task."""
    return [_BACKEND, _TASK] if result.backends else [_TASK]


def _on(backend: str, task: str) -> str:
    """A task in a caption."""
    return f"{task}, {backend}" if backend else task


def _ranking(result: Analysis) -> Section:
    table = Table(
        "Best first, by mean rank",
        lines_of(result.ranking),
        [
            _OPTIMIZER,
            Column("Mean rank", "mean_rank", _rank),
            Column(_INTERVAL, "rank_low rank_high", span(_rank)),
            Column("Loss", "loss_mean loss_std", spread(loss)),
            Column(_INTERVAL, "loss_low loss_high", span(loss)),
            Column("Median loss", "loss_median", loss),
            Column("Accuracy", "accuracy_mean accuracy_std", spread(percent)),
            Column(_INTERVAL, "accuracy_low accuracy_high", span(percent)),
            Column("Calls", "calls_mean", number),
            Column("Runs", "runs failed stopped_early", _outcomes),
        ],
        note="Means over tasks of the means over seeds; ± is the standard deviation over the seeds "
        f"of a task, pooled over tasks. {_KIND_OF_INTERVAL} An optimizer asks for whole "
        "generations, so a rest of the budget may be left. Ranks are taken within a block, which "
        f"is {_block(result)}.",
    )
    text = (
        f"Final loss ({result.loss_name}) and accuracy are those on the {_ROWS[result.judged_on]}, "
        "in the blocks that all optimizers have."
    )
    return Section(title="Ranking", text=[text], figures=_differences(result), tables=[table])


_KIND_OF_INTERVAL = (
    "The 95% intervals are Student's over the seeds, for these tasks (over several tasks with the "
    "degrees of freedom of Welch and Satterthwaite); one seed has none, nor have values that all "
    "agree."
)


def _block(result: Analysis) -> str:
    return "one task with one seed" + " on one backend" * bool(result.backends)


def _differences(result: Analysis) -> list[Figure]:
    """The mean ranks, with bars that join optimizers which the tests do not tell apart."""
    ranked = result.ranking.dropna(subset="mean_rank")
    pairs, order = result.tests.pairs, ranked["optimizer"].tolist()
    groups = [[name for name in order if name in group] for group in pairs.alike]
    groups.sort(key=lambda group: [order.index(name) for name in group])
    if pairs.untested is not None:
        bars = f"Which of them differ was not tested: {pairs.untested}"
    elif groups:
        bars = (
            "A bar on the right joins optimizers that the tests do not tell apart (a dot for each; "
            "Wilcoxon's, adjusted by Holm's method)"
        )
    else:
        bars = "The tests tell all of them apart (Wilcoxon's, adjusted by Holm's method)"
    figure = Figure(
        anchor="ranks",
        kind="dots",
        caption=f"Mean ranks, lower is better, with 95% intervals. {bars}.",
        x="mean rank",
        series=[
            Series(
                name=line.optimizer,
                x=(),
                mean=line.mean_rank,
                interval=_known(line.rank_low, line.rank_high),
            )
            for line in lines_of(ranked)
        ],
        groups=groups,
        whole_x=True,
    )
    return [figure] if len(ranked) > 1 else []


def _known(low: float, high: float) -> tuple[float, float] | None:
    return None if low != low else (low, high)


def _costs(result: Analysis) -> Section:
    lines, unit = lines_of(result.costs), result.cost_unit
    cost = f"{unit} a search, mean over runs"
    table = Table(
        "The cheapest first",
        lines,
        [
            _BACKEND,
            _OPTIMIZER,
            Column("Accuracy", "accuracy", percent),
            _cost_column(unit),
            Column("On the front", "on_front", lambda on_front: "yes" if on_front else ""),
            Column(_INTERVAL, "accuracy_low accuracy_high", span(percent)),
            Column("Loss", "loss", loss),
            *(_cost_column(name) for name in UNITS if name != unit),
            Column("Runs", "runs", whole),
        ],
        note="Money, tokens and calls are those that the search of a run spent, mean over tasks of "
        "the means over seeds; scoring test rows is not part of it, and a cached answer is free.",
    )
    why = "" if unit == UNITS[0] else f" At least one backend has no price, so it is {unit} here."
    text = (
        f"A point is a backend with an optimizer; accuracy is that on {_ROWS[result.judged_on]}. "
        "Each backend tunes its own prompts. The dotted line is the Pareto front: no other point "
        f"is as accurate for less.{why}"
    )
    return Section(
        title="Price against accuracy", text=[text], figures=[_points(result, cost)], tables=[table]
    )


def _cost_column(unit: str) -> Column:
    return Column(unit.capitalize(), unit, number if unit == "money" else count)


def _points(result: Analysis, cost: str) -> Figure:
    lines, unit, backends = result.costs, result.cost_unit, result.backends
    front = lines[lines["on_front"]]
    marks = ", ".join(
        f"{mark}\N{NO-BREAK SPACE}{name}"
        for mark, name in zip(cycle(MARKS), backends, strict=False)
    )
    return Figure(
        anchor="costs",
        kind="points",
        caption=f"Accuracy against {unit}, with 95% intervals: {marks}",
        x=cost,
        y="accuracy",
        y_is_share=True,
        marks=backends,
        series=[_points_of(str(name), own, unit) for name, own in lines.groupby("optimizer")],
        front=list(zip(front[unit].tolist(), front["accuracy"].tolist(), strict=True)),
    )


def _points_of(name: str, own: pd.DataFrame, unit: str) -> Series:
    known = own["accuracy_low"].notna().all()
    return Series(
        name=name,
        x=own[unit].tolist(),
        y=own["accuracy"].tolist(),
        text=own["backend"].tolist(),
        low=own["accuracy_low"].tolist() if known else None,
        high=own["accuracy_high"].tolist() if known else None,
    )


def _outcomes(counts: tuple[int, int, int]) -> str:
    runs, failed, stopped = counts
    text = str(runs) + f", {failed} failed" * (failed > 0)
    return text + f", {stopped} stopped early" * (stopped > 0)


def _curves(result: Analysis) -> Section:
    searched = _ranked(result, result.curves("lowest_loss"))
    validated = {r.task for r in result.records if r.rows.get("validation") is not None}
    chosen = [line for line in result.curves("kept_loss") if line.task in validated]
    aims = lines_of(result.calls_to_target)
    targets = {(line.backend, line.task): line.target for line in aims}
    text = (
        "A line is the median over seeds, and its band goes from the first to the third quartile. "
        "A run that has ended keeps its last loss. The dotted line is the target of the table "
        "below. A button hides a series in all figures."
    )
    lowest, kept = "{}: lowest training loss so far", "{}: validation loss of the prompt kept"
    figures = _figures(searched, _SEARCH, lowest, targets)
    figures += _figures(_ranked(result, chosen), "kept", kept, {})
    table = _progress(_tasks_of(result), searched)
    return Section(title="Loss against calls", text=[text], figures=figures, tables=[table])


def _ranked(result: Analysis, lines: Sequence[Band]) -> list[Band]:
    """Task by task, the best optimizer first."""
    tasks = list(dict.fromkeys((line.backend, line.task) for line in lines))
    order = result.ranking["optimizer"].tolist()
    return sorted(
        lines,
        key=lambda line: (tasks.index((line.backend, line.task)), order.index(line.optimizer)),
    )


def _figures(
    lines: Sequence[Band],
    anchor: str,
    caption: str,
    targets: Mapping[tuple[str, str], float],
) -> list[Figure]:
    tasks = dict.fromkeys((line.backend, line.task) for line in lines)
    return [
        Figure(
            anchor=f"{anchor}-{index}",
            caption=caption.format(_on(*task)),
            x=_CALLS,
            y="loss",
            target=targets.get(task),
            series=[_series(line) for line in lines if (line.backend, line.task) == task],
        )
        for index, task in enumerate(tasks)
    ]


def _series(line: Band) -> Series:
    series = Series(name=line.optimizer, x=line.calls, y=line.median, stepped=True)
    return series if line.runs == 1 else replace(series, low=line.low, high=line.high)


def _progress(tasks: Sequence[Column], lines: Sequence[Band]) -> Table:
    shares = [Column(f"{share:.0%}", partial(_median_after, share), loss) for share in _SHARES]
    return Table(
        "In numbers: median of the lowest training loss after a share of the calls",
        lines,
        [*tasks, _OPTIMIZER, *shares],
        folded=True,
    )


def _median_after(share: float, line: Band) -> float | None:
    return _last_within(share, line.calls, line.median)


def _last_within(share: float, calls: Sequence[int], values: Sequence[float]) -> float | None:
    """The value after a share of the calls."""
    known = [value for at, value in zip(calls, values, strict=True) if at <= share * calls[-1]]
    return known[-1] if known else None


def _runtimes(result: Analysis) -> Section:
    order = result.ranking["optimizer"].tolist()
    lines = [own for own in result.runtimes if own.pairs and own.calls]
    lines = sorted(lines, key=lambda own: order.index(own.optimizer))
    per = "each task on each backend" if result.backends else "each task"
    text = (
        f"The share of (task, seed, target) pairs that an optimizer reached within so many calls. "
        f"{per.capitalize()} has {TARGETS} targets: training losses with equal distances, from the "
        "start (the highest first loss of its runs, itself no target) down to the lowest loss that "
        "any run of it has reached (the last target). Runs that ended reach nothing more. The band "
        f"is the 95% interval by bootstrap over the seeds ({RESAMPLES:,} draws); one seed has none."
    )
    if not lines:
        return Section(title="Runtime distributions", text=[text, "No run improved on its start."])
    figure = Figure(
        anchor="runtimes",
        caption="Share of targets reached, over all tasks",
        x=_CALLS,
        y="share of targets reached",
        y_is_share=True,
        series=[_steps(own) for own in lines],
    )
    shares = [Column(f"{share:.0%}", partial(_share_after, share), percent) for share in _SHARES]
    table = Table(
        "In numbers: share of targets reached after a share of the calls",
        lines,
        [_OPTIMIZER, Column("Pairs", "pairs", whole), *shares],
        folded=True,
    )
    return Section(title="Runtime distributions", text=[text], figures=[figure], tables=[table])


def _steps(own: Runtimes) -> Series:
    return Series(
        name=own.optimizer, x=own.calls, y=own.share, low=own.low, high=own.high, stepped=True
    )


def _share_after(share: float, own: Runtimes) -> float:
    return _last_within(share, own.calls, own.share) or 0.0


def _final(result: Analysis) -> Section:
    table = Table(
        "Each task by itself; ± is the standard deviation over seeds",
        lines_of(result.by_task),
        [
            *_tasks_of(result),
            _OPTIMIZER,
            Column("Loss", "loss_mean loss_std", spread(loss)),
            Column(_INTERVAL, "loss_low loss_high", span(loss)),
            Column("Median", "loss_median", loss),
            Column("Accuracy", "accuracy_mean accuracy_std", spread(percent)),
            Column(_INTERVAL, "accuracy_low accuracy_high", span(percent)),
            Column("Median", "accuracy_median", percent),
            Column("Runs", "runs", whole),
        ],
        note=_KIND_OF_INTERVAL,
    )
    tasks = dict.fromkeys((record.backend, record.task) for record in result.records)
    figures = [_dots(result, f"final-{index}", *task) for index, task in enumerate(tasks)]
    return Section(title="Final loss and accuracy", figures=figures, tables=[table])


def _dots(result: Analysis, anchor: str, backend: str, task: str) -> Figure:
    """The final losses on one task, a dot a run, with their mean."""
    frame = _of(result.frame, backend, task).dropna(subset="loss")
    means = {line.optimizer: line for line in lines_of(_of(result.by_task, backend, task))}
    dots = {
        name: Series(
            name=name,
            x=own["loss"].tolist(),
            text=[f"seed {seed}" for seed in own["seed"]],
            mean=means[name].loss_mean,
            interval=_known(means[name].loss_low, means[name].loss_high),
        )
        for name, own in frame.groupby("optimizer")
    }
    return Figure(
        anchor=anchor,
        kind="dots",
        caption=f"{_on(backend, task)}: final loss, a dot a run; the mean with its 95% interval",
        x=f"loss on {result.judged_on} rows",
        series=[dots[name] for name in result.ranking["optimizer"] if name in dots],
    )


def _of(lines: pd.DataFrame, backend: str, task: str) -> pd.DataFrame:
    own: pd.DataFrame = lines[(lines["backend"] == backend) & (lines["task"] == task)]
    return own


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
            *_tasks_of(result),
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
    text = _what_was_tested(tests, _block(result))
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


def _what_was_tested(tests: Significance, block: str) -> list[str]:
    text = [
        f"Tested over {_count('block', tests.blocks)} of {block} each, where all "
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
        *_tasks_of(result),
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
    text = [f"Note: {note}" for note in notes_of(result.records)]
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


def _repeat(result: Analysis) -> Section:
    text = (
        "Run it where the first one was run, because its paths are relative. It writes to a new "
        "folder. Of several commands, later ones added runs."
    )
    return Section(title="To repeat it", text=[text], code=result.commands)


def _words(record: Record) -> str:
    return ", ".join(f"{label}: {word}" for label, word in record.label_words.items())


def _rows(record: Record) -> str:
    return ", ".join(f"{own.rows} {part}" for part, own in record.rows.items() if own)


def _count(word: str, n: int) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
