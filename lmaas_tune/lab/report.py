"""The report of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmaas_tune.lab.comparison_result import ComparisonResult
from lmaas_tune.lab.html import (
    NONE,
    Figure,
    Page,
    Section,
    Series,
    Table,
    key_values,
    loss,
    number,
    percent,
    spread,
    write_page,
)
from lmaas_tune.lab.record import Record

_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
_ROWS = {
    "test": "test rows, which chose nothing",
    "validation": "validation rows, which also chose the prompt",
    "train": "training rows, which the search itself saw",
}


def write_comparison(result: ComparisonResult, path: Path) -> Path:
    """Write the report of a comparison, see `ComparisonResult.report`."""
    sections = [
        _ranking(result),
        _curves(result),
        _final(result),
        _target(result),
        _tests(result),
        _times(result),
        _runs(result),
        _conditions(result),
    ]
    return write_page(
        Page(title="Comparison of optimizers", summary=_summary(result), sections=sections), path
    )


def _summary(result: ComparisonResult) -> list[str]:
    records = result.records
    names = [dict.fromkeys(getattr(r, what) for r in records) for what in ("optimizer", "task")]
    seeds = dict.fromkeys(record.seed for record in records)
    failed, stopped = len(result.failed), len(result.stopped_early)
    first = records[0]
    return [
        f"{_count('optimizer', len(names[0]))} on {_count('task', len(names[1]))} with "
        f"{_count('seed', len(seeds))}: {_count('run', len(records))}, of which {failed or 'none'} "
        f"failed and {stopped or 'none'} {'was' if stopped == 1 else 'were'} stopped early. Each "
        f"had the budget {first.conditions['budget']}.",
        f"The model: {first.identity}.",
        _verdict(result),
    ]


def _verdict(result: ComparisonResult) -> str:
    best, tests = result.ranking[0], result.tests
    if best["mean_rank"] is None:
        return "No block has a loss of every optimizer, so they cannot be ranked."
    rank = _rank(best["mean_rank"])
    first = [line["optimizer"] for line in result.ranking if _rank(line["mean_rank"]) == rank]
    if len(first) > 1:
        return (
            f"{', '.join(first)} share the lowest mean rank: {rank} of {len(result.ranking)}, "
            f"over {_count('block', tests['blocks'])}."
        )
    said = (
        f"The lowest mean rank is that of {best['optimizer']}: {rank} of "
        f"{len(result.ranking)}, over {_count('block', tests['blocks'])}. "
    )
    worse = [
        pair["second"] if pair["first"] == best["optimizer"] else pair["first"]
        for pair in tests["pairs"]["of"]
        if pair["differ"] and best["optimizer"] in (pair["first"], pair["second"])
    ]
    if worse:
        return said + f"The tests tell it apart from {', '.join(worse)}, and from no other."
    if tests["pairs"]["untested"] is not None:
        return said + f"Whether that is more than chance was not tested: {_untested(tests)}."
    return said + "The tests tell it apart from none of the others."


def _rank(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _untested(tests: dict[str, Any]) -> str:
    return str(tests["pairs"]["untested"])


def _ranking(result: ComparisonResult) -> Section:
    rows = [
        (
            line["optimizer"],
            _rank(line["mean_rank"]),
            spread(loss(line["loss_mean"]), loss(line["loss_std"])),
            loss(line["loss_median"]),
            spread(percent(line["accuracy_mean"]), percent(line["accuracy_std"])),
            number(line["calls_mean"]),
            _outcomes(line),
        )
        for line in result.ranking
    ]
    table = Table(
        caption="Best first, by mean rank",
        columns=("Optimizer", "Mean rank", "Loss", "Median loss", "Accuracy", "Calls", "Runs"),
        rows=rows,
        numbers=frozenset(range(1, 7)),
        note="Means over tasks of the means over seeds; ± is the standard deviation over the seeds "
        "of a task, pooled over tasks. An optimizer asks for whole generations, so it may leave a "
        "rest of the budget. Ranks are taken within a block, which is one task with one seed.",
    )
    return Section(
        title="Ranking",
        text=[
            f"Final loss ({result.loss_name}) and accuracy are those on the {_rows(result)}, "
            "in the blocks that all optimizers have."
        ],
        tables=[table],
    )


def _rows(result: ComparisonResult) -> str:
    return _ROWS[result.judged_on]


def _outcomes(line: dict[str, Any]) -> str:
    said = [str(line["runs"])]
    said += [f"{line['failed']} failed"] if line["failed"] else []
    said += [f"{line['stopped_early']} stopped early"] if line["stopped_early"] else []
    return ", ".join(said)


def _curves(result: ComparisonResult) -> Section:
    targets = {line["task"]: line["target"] for line in result.calls_to_target}
    searched = _ranked(result, result.curves("lowest_loss"))
    figures = [
        *_figures(searched, "search", "{}: lowest training loss so far", targets),
        *_figures(
            _ranked(result, _validated(result)),
            "kept",
            "{}: validation loss of the prompt kept",
            {},
        ),
    ]
    return Section(
        title="Loss against calls",
        text=[
            "A line is the median over seeds, its band goes from the first to the third quartile. "
            "A run that has ended keeps its last loss. The dotted line is the target of the table "
            "below. The buttons take a series away, in all figures.",
        ],
        figures=figures,
        tables=[_progress(searched)],
    )


def _ranked(result: ComparisonResult, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Task by task, the best optimizer first."""
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    order = [line["optimizer"] for line in result.ranking]
    return sorted(
        lines, key=lambda line: (tasks.index(line["task"]), order.index(line["optimizer"]))
    )


def _validated(result: ComparisonResult) -> list[dict[str, Any]]:
    tasks = {r.task for r in result.records if r.rows.get("validation") is not None}
    return [line for line in result.curves("kept_loss") if line["task"] in tasks]


def _figures(
    lines: Sequence[dict[str, Any]], anchor: str, caption: str, targets: dict[str, float]
) -> list[Figure]:
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    return [
        Figure(
            anchor=f"{anchor}-{index}",
            caption=caption.format(task),
            x="calls (one prompt on all training rows)",
            y="loss",
            target=targets.get(task),
            series=[
                Series(
                    name=line["optimizer"],
                    x=line["calls"],
                    y=line["median"],
                    low=line["low"] if line["runs"] > 1 else None,
                    high=line["high"] if line["runs"] > 1 else None,
                    stepped=True,
                )
                for line in lines
                if line["task"] == task
            ],
        )
        for index, task in enumerate(tasks)
    ]


def _progress(lines: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for line in lines:
        last = line["calls"][-1] if line["calls"] else 0
        rows.append(
            (
                line["task"],
                line["optimizer"],
                *(loss(_median_after(line, share * last)) for share in _SHARES),
            )
        )
    return Table(
        caption="In numbers: median of the lowest training loss after a share of the calls",
        columns=("Task", "Optimizer", *(f"{share:.0%}" for share in _SHARES)),
        rows=rows,
        numbers=frozenset(range(2, 2 + len(_SHARES))),
        folded=True,
    )


def _median_after(line: dict[str, Any], calls: float) -> float | None:
    known = [m for at, m in zip(line["calls"], line["median"], strict=True) if at <= calls]
    return known[-1] if known else None


def _final(result: ComparisonResult) -> Section:
    frame, tasks = result.frame, list(dict.fromkeys(r.task for r in result.records))
    finite = frame[frame["loss"].notna()]
    figures = [
        Figure(
            anchor=f"final-{index}",
            kind="dots",
            caption=f"{task}: final loss, a dot a run",
            x=f"loss on {result.judged_on} rows",
            series=[
                Series(
                    name=line["optimizer"],
                    x=own["loss"].tolist(),
                    text=[f"seed {seed}" for seed in own["seed"]],
                )
                for line in result.ranking
                if len(
                    own := finite[
                        (finite["task"] == task) & (finite["optimizer"] == line["optimizer"])
                    ]
                )
            ],
        )
        for index, task in enumerate(tasks)
    ]
    rows = [
        (
            line["task"],
            line["optimizer"],
            str(line["runs"]),
            spread(loss(line["loss_mean"]), loss(line["loss_std"])),
            loss(line["loss_median"]),
            spread(percent(line["accuracy_mean"]), percent(line["accuracy_std"])),
            percent(line["accuracy_median"]),
        )
        for line in result.by_task
    ]
    table = Table(
        caption="Each task by itself; ± is the standard deviation over seeds",
        columns=("Task", "Optimizer", "Runs", "Loss", "Median", "Accuracy", "Median"),
        rows=rows,
        numbers=frozenset(range(2, 7)),
    )
    return Section(title="Final loss and accuracy", figures=figures, tables=[table])


def _target(result: ComparisonResult) -> Section:
    rows = [
        (
            line["task"],
            line["optimizer"],
            loss(line["target"]),
            f"{line['reached']} of {line['runs']}",
            "not within the budget"
            if line["calls_median"] is None
            else number(line["calls_median"]),
            number(line["calls_a_success"]),
        )
        for line in result.calls_to_target
    ]
    whence = (
        "the lowest training loss that half of all runs of the task reached"
        if result.target is None
        else "the one that was asked for"
    )
    table = Table(
        caption="Calls until the training loss came to the target",
        columns=(
            "Task",
            "Optimizer",
            "Target",
            "Runs that reached it",
            "Median calls",
            "Calls a success",
        ),
        rows=rows,
        numbers=frozenset(range(2, 6)),
        note="A run that ended before the target is censored: it counts in the median as later "
        "than all that reached it, and its calls are added to those of a success (the expected "
        "running time).",
    )
    return Section(title="Calls to a target", text=[f"The target is {whence}."], tables=[table])


def _tests(result: ComparisonResult) -> Section:
    tests = result.tests
    friedman, pairs = tests["friedman"], tests["pairs"]
    text = [
        f"Tested over {_count('block', tests['blocks'])} of one task with one seed each, where all "
        "had the same rows, subspace and budget. Blocks of one task have much in common: what "
        "is told apart here is told apart on these tasks."
    ]
    if tests["blocks_left_out"]:
        left_out = _count("block", tests["blocks_left_out"])
        text.append(f"Left out, for want of an optimizer's loss: {left_out}.")
    if tests["optimizers_left_out"]:
        text.append(f"Without one loss: {', '.join(tests['optimizers_left_out'])}.")
    if result.stopped_early:
        text.append(
            "Runs that were stopped early count with the loss they had, which is in favour of "
            "those that were not."
        )
    if friedman["untested"] is None:
        text.append(
            f"Do they differ at all? Friedman's test: {_p(friedman['p'])} (statistic "
            f"{number(friedman['statistic'])}; p by permuting the blocks)."
        )
    else:
        text.append(f"Do they differ at all? Not tested: {friedman['untested']}.")
    if tests["tasks"] > 1:
        text.append(f"Do they by the means of the tasks? {_over_tasks(tests)}.")
    if pairs["untested"] is not None:
        text.append(f"Which ones differ? Not tested: {pairs['untested']}.")
        return Section(title="Tests", text=text)
    rows = [
        (
            pair["first"],
            pair["second"],
            f"{pair['first_better']} of {tests['blocks']}",
            loss(pair["median_difference"]),
            number(pair["p"]),
            number(pair["p_holm"]),
            "yes" if pair["differ"] else "no",
        )
        for pair in pairs["of"]
    ]
    table = Table(
        caption="Which ones differ? Wilcoxon's signed-rank test, p adjusted by Holm's method",
        columns=(
            "First",
            "Second",
            "First is better",
            "Median difference",
            "p",
            "p, adjusted",
            f"Differ at {tests['alpha']}",
        ),
        rows=rows,
        numbers=frozenset(range(2, 6)),
        note="A negative difference is in favour of the first.",
    )
    return Section(title="Tests", text=text, tables=[table])


def _over_tasks(tests: dict[str, Any]) -> str:
    over = tests["friedman_over_tasks"]
    if over["untested"] is not None:
        return f"Not tested: {over['untested']}"
    return (
        f"Friedman's test over {tests['tasks']} tasks: {_p(over['p'])}, which tells more of other "
        "tasks, though the seeds of all are the same"
    )


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _times(result: ComparisonResult) -> Section:
    rows = [
        (
            line["optimizer"],
            number(line["seconds_per_100_calls"]),
            number(line["seconds_a_run"]),
            percent(line["share_of_search"]),
            number(line["wall_seconds_a_run"]),
        )
        for line in result.times
    ]
    table = Table(
        caption="Seconds of the optimizer itself (ask and tell), and of a whole run",
        columns=("Optimizer", "Per 100 calls", "A run", "Share of the search", "Whole run"),
        rows=rows,
        numbers=frozenset(range(1, 5)),
        note="Wall time, on machines that may have had other work.",
    )
    return Section(title="Time", tables=[table])


def _runs(result: ComparisonResult) -> Section:
    on = result.judged_on
    rows = [
        (
            record.task,
            record.optimizer,
            str(record.seed),
            loss(record.loss(on)),
            percent(record.accuracy(on)),
            number(record.spent.get("calls")),
            f"{record.status}: {record.reason}",
        )
        for record in result.records
    ]
    columns = ("Task", "Optimizer", "Seed", "Loss", "Accuracy", "Calls", "How it ended")
    numbers = frozenset(range(2, 6))
    tables = [
        Table(caption=caption, columns=columns, rows=own, numbers=numbers, folded=folded)
        for caption, own, folded in (
            ("Runs that failed, which count nowhere", _of(result.failed, rows), False),
            ("Runs that were stopped early", _of(result.stopped_early, rows), False),
            ("All runs", rows, True),
        )
        if own
    ]
    text = [
        f"To the user: {note}"
        for note in dict.fromkeys(note for record in result.records for note in record.notes)
    ]
    return Section(title="Runs", text=text, tables=tables)


def _of(records: Sequence[Record], rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    keys = {(record.task, record.optimizer, str(record.seed)) for record in records}
    return [row for row in rows if row[:3] in keys]


def _conditions(result: ComparisonResult) -> Section:
    records = result.records
    tasks = list({record.task: record for record in records}.values())
    table = Table(
        caption="The tasks",
        columns=("Task", "Template", "Label words", "Rows"),
        rows=[
            (
                record.task,
                record.template,
                ", ".join(f"{label}: {word}" for label, word in record.label_words.items()),
                ", ".join(f"{p['rows']} {part}" for part, p in record.rows.items() if p),
            )
            for record in tasks
        ],
    )
    options = {
        record.optimizer: record.settings.get("optimizer_options") or "defaults"
        for record in records
    }
    seen: dict[str, list[str]] = {}
    for record in records:
        for package, version in record.versions.items():
            if version not in seen.setdefault(package, []):
                seen[package].append(version)
    return Section(
        title="Settings and versions",
        tables=[
            table,
            key_values("Options of the optimizers", options),
            key_values("Settings of all runs", records[0].conditions, folded=True),
            key_values("Versions", {name: ", ".join(of) for name, of in seen.items()}, folded=True),
        ],
    )


def _count(word: str, n: int) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
