"""Differences between rows of the table, with intervals over seeds and test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmaas_tune.lab.paper.methods import method
from lmaas_tune.lab.paper.table import final_of, method_of, short_title, table_rows
from lmaas_tune.lab.paper.tasks import PAPER_TASKS
from lmaas_tune.lab.record import Record
from lmaas_tune.prompts import FloatArray

_SAMPLES = 2000
_INTERVAL = 2.5, 97.5  # per cent

_AVERAGE = "average"

_OURS = "default"
_PARTS = {
    "words head (first wording with it - with one bias a label)": (
        f"{_OURS}/start",
        f"{_OURS}/bias",
    ),
    "search (result - first wording, each with its head)": (_OURS, f"{_OURS}/start"),
    "of it wordings (the best, averaged - the first)": (f"{_OURS}/starts", f"{_OURS}/start"),
    "of it the soft prompt (result - wordings)": (_OURS, f"{_OURS}/starts"),
}


@dataclass(frozen=True)
class Contrast:
    """A difference, with its 95% interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, mean: float, samples: FloatArray) -> Contrast:
        """Of the difference and of samples of it."""
        low, high = np.percentile(samples, _INTERVAL)
        return cls(mean, float(low), float(high))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much higher one row of the table is than another.

    Attributes:
        name: The two rows, in words.
        accuracy: By task, and for ``average``.
        loss: The same; lower is better.
    """

    name: str
    accuracy: Mapping[str, Contrast]
    loss: Mapping[str, Contrast]


def differences(records: Sequence[Record]) -> list[Difference]:
    """What each part of the default adds, and how far it is above each other row.

    A row is compared on the tasks that both have. The intervals are those of the bootstrap, with
    seeds and test rows drawn at random; with three seeds they are rough.
    """
    titles = {row: title.strip() for row, title in table_rows().items()}
    pairs = dict(_PARTS)
    for row in titles:
        if method_of(row) != _OURS:
            title = titles[method_of(row)]
            own = titles[row] if "/" not in row else f"{title} {titles[row]}"
            pairs[f"default - {own}"] = (_OURS, row)
    found = []
    for name, (one, other) in pairs.items():
        by_task = {task: _by_row(records, task, one, other) for task in PAPER_TASKS}
        known = {task: both for task, both in by_task.items() if both is not None}
        if known:
            loss, accuracy = (
                _contrasts({task: both[what] for task, both in known.items()}) for what in (0, 1)
            )
            found.append(Difference(name=name, accuracy=accuracy, loss=loss))
    return found


def _by_row(
    records: Sequence[Record], task: str, one: str, other: str
) -> tuple[FloatArray, FloatArray] | None:
    """(seeds, rows) differences of the losses and of right answers; None without both rows."""
    ours, theirs = (_scores(records, task, row) for row in (one, other))
    if theirs and not method(method_of(other)).varies:  # its one run stands for every seed
        theirs = dict.fromkeys(ours, next(iter(theirs.values())))
    pairs = [(ours[s], theirs[s]) for s in sorted(set(ours) & set(theirs))]
    if not pairs:
        return None
    losses, right = (np.stack([a[what] - b[what] for a, b in pairs]) for what in (0, 1))
    return losses, right


def _scores(
    records: Sequence[Record], task: str, row: str
) -> dict[int, tuple[FloatArray, FloatArray]]:
    """The loss and the right answer of each test row, by seed."""
    own = [r for r in records if (r.task, r.method) == (task, method_of(row))]
    scores = {record.seed: final_of(record, row) for record in own}
    return {seed: score.by_row for seed, score in scores.items() if score and score.by_row}


def _contrasts(by_task: Mapping[str, FloatArray]) -> dict[str, Contrast]:
    rng = np.random.default_rng(0)
    samples = {task: _resampled(found, rng) for task, found in by_task.items()}
    means = {task: float(found.mean()) for task, found in by_task.items()}
    contrasts = {task: Contrast.of(means[task], samples[task]) for task in by_task}
    overall = np.mean(list(samples.values()), axis=0)
    return {**contrasts, _AVERAGE: Contrast.of(float(np.mean(list(means.values()))), overall)}


def _resampled(found: FloatArray, rng: np.random.Generator) -> FloatArray:
    """(samples,) means over seeds and rows that are drawn with repetition."""
    seeds, rows = found.shape
    # a draw is how often each seed and each row is taken
    times_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), _SAMPLES)
    times_row = rng.multinomial(rows, np.full(rows, 1 / rows), _SAMPLES)
    means: FloatArray = np.einsum("bs,sr,br->b", times_seed, found, times_row, optimize=True)
    return means / (seeds * rows)


def differences_text(found: Sequence[Difference]) -> str:
    """A block for each difference: accuracy in points and loss, with intervals."""
    lines = []
    for one in found:
        lines.append(one.name)
        for what, contrasts, scale, form in (
            ("accuracy", one.accuracy, 100, "+.1f"),
            ("loss", one.loss, 1, "+.3f"),
        ):
            cells = [
                f"{task if task == _AVERAGE else short_title(task)} {scale * c.mean:{form}} "
                f"[{scale * c.low:{form}}, {scale * c.high:{form}}]"
                for task, c in contrasts.items()
            ]
            lines.append(f"  {what}: {'; '.join(cells)}")
    return "\n".join(lines)
