"""All runs of a table, one after the other; what is done already is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.backend import Inspects, ScoreRequest
from lmaas_tune.calls.client import Client
from lmaas_tune.errors import InputError, LMaaSError, PermanentError, StorageError
from lmaas_tune.objectives import cross_entropy, error_rate
from lmaas_tune.prompts import SoftPrompt, TextPrompt
from lmaas_tune.reproduction.methods import Trial, family_of, gradient_start, method
from lmaas_tune.reproduction.plan import Plan
from lmaas_tune.reproduction.record import (
    FILE_NAME,
    Record,
    check_same,
    check_together,
    keep,
    kept,
    kept_below,
    metric_of,
    run_folder,
)
from lmaas_tune.reproduction.rows import DataSource, FewShot
from lmaas_tune.reproduction.tasks import PaperTask, Wording, paper_task
from lmaas_tune.task import Example
from lmaas_tune.versions import versions


@dataclass(frozen=True, eq=False)
class _Cell:
    """A run that is to be made, as far as it is known before; its record says what it is."""

    task: PaperTask
    wording: Wording
    rows: FewShot
    record: Record


@dataclass(frozen=True, kw_only=True, eq=False)
class Reproduction:
    """A table that is to be made.

    Attributes:
        client: Around the local model, a backend ``hf``.
        tasks: Columns, by name.
        methods: Rows, by name.
        seeds: Each gives one run of each cell.
        source: Of the rows.
        plan: How the rows are made.
        pretrained: By task, the folder of the prompt that two of the rows start from.
        out: Where the runs are kept.
        say: Told of each run when it ends.
    """

    client: Client
    tasks: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    source: DataSource
    plan: Plan
    pretrained: Mapping[str, Path] = field(default_factory=dict)
    out: Path
    say: Callable[[Record], None] = lambda record: None

    def __post_init__(self) -> None:
        for what, names in (
            ("tasks", self.tasks),
            ("methods", self.methods),
            ("seeds", self.seeds),
        ):
            if not names or len(set(names)) < len(names):
                raise InputError(f"{what}={list(names)}: give some, each once")
        for name in self.methods:
            method(name)
        for task in self.tasks:
            paper_task(task).wording(self.plan.layout, family_of(self.client))
        if next(self._names(), None) is None:
            raise InputError(
                f"nothing to do for {', '.join(self.methods)} on {', '.join(self.tasks)}: a row "
                "with a pre-trained prompt is made for tasks with two sentences"
            )
        for name in self._starting_methods:
            for task in filter(lambda task: paper_task(task).is_pair, self.tasks):
                if task not in self.pretrained:
                    raise InputError(
                        f"method {name!r} on {task!r} starts from a pre-trained prompt: make one "
                        "with `lmaas-tune pretrain`, and give its folder with --pretrained"
                    )

    @property
    def _starting_methods(self) -> list[str]:
        return [name for name in self.methods if method(name).pretrained]

    def run(self) -> list[Record]:
        """Make what is not made yet.

        Raises:
            InputError: A kept run was made otherwise, or rows cannot be read.
            StorageError: The folder cannot be read or written.
        """
        cells = self._cells()
        check_together([*kept_below(self.out), *(cell.record for cell in cells)])
        return [self._run(cell) for cell in cells]

    def _cells(self) -> list[_Cell]:
        """Every run, with all that can be wrong about it seen before any is made."""
        rows: dict[tuple[str, int], FewShot] = {}
        cells = []
        for task, name, seed in self._names():
            wording = task.wording(self.plan.layout, family_of(self.client))
            if (task.name, seed) not in rows:
                rows[task.name, seed] = self._rows(task, wording, seed)
            own = rows[task.name, seed]
            conditions = self._conditions(task, name, wording, own)
            folder = run_folder(self.out, task.name, name, seed)
            if (done := kept(folder)) is not None:
                check_same(folder / FILE_NAME, done, conditions)
            made = Record(
                task=task.name, method=name, seed=seed, conditions=conditions, versions=versions()
            )
            cells.append(_Cell(task, wording, own, made))
        return cells

    def _names(self) -> Iterator[tuple[PaperTask, str, int]]:
        """One task after the other, so that texts which a model has read are still at hand."""
        for task in map(paper_task, self.tasks):
            for name in self.methods:
                row = method(name)
                if row.pretrained and not task.is_pair:
                    continue
                for seed in self.seeds if row.varies else [self._only_seed(task.name, name)]:
                    yield task, name, seed

    def _only_seed(self, task: str, name: str) -> int:
        """Of a row that no seed changes: the one that it was made with, if it was."""
        folders = sorted((self.out / task / name).glob(f"seed-*/{FILE_NAME}"))
        return int(folders[0].parent.name.removeprefix("seed-")) if folders else self.seeds[0]

    def _run(self, cell: _Cell) -> Record:
        task, record = cell.task, cell.record
        folder = run_folder(self.out, task.name, record.method, record.seed)
        done = kept(folder)
        if done is not None and not done.failed:
            return done
        began = time.perf_counter()
        try:
            trial = Trial(
                client=self.client,
                task=task,
                wording=cell.wording,
                rows=cell.rows,
                seed=record.seed,
                plan=self.plan,
                pretrained=(
                    self._pretrained(task.name) if method(record.method).pretrained else None
                ),
                folder=folder,
            )
            record = self._made(record, trial)
        except StorageError:
            raise
        except LMaaSError as error:  # the other cells go on
            record = replace(record, reason=" ".join(str(error).split()))
        except Exception as error:  # so they do where a library fails, as when memory is full
            record = replace(record, reason=" ".join(f"{type(error).__name__}: {error}".split()))
        record = replace(record, seconds=time.perf_counter() - began)
        keep(self.out, record)
        self.say(record)
        return record

    def _made(self, record: Record, trial: Trial) -> Record:
        outcome = method(record.method).make(trial)
        if not np.isfinite(outcome.scores).all():
            raise PermanentError("not all scores of the test rows are finite")
        targets = trial.wording.task.verbalizer.targets(trial.rows.test)
        return replace(
            record,
            value=metric_of(trial.task.metric, outcome.scores, targets),
            accuracy=1 - error_rate(outcome.scores, targets),
            loss=cross_entropy(outcome.scores, targets),
            parameters=outcome.parameters,
            details=outcome.details,
        )

    def _rows(self, task: PaperTask, wording: Wording, seed: int) -> FewShot:
        """Those that the model can read under the prompt that a search starts from.

        The reference, too, leaves out rows that are longer than its model reads.
        """
        settings = self.plan.bbt(task, wording)
        start = gradient_start(self.client, settings, wording, seed) or TextPrompt(wording.words)
        backend = self.client.backend

        def check(rows: Sequence[Example]) -> None:
            batch = wording.task.template.batch(rows)
            if isinstance(backend, Inspects):
                backend.inspect(ScoreRequest(start, batch, wording.task.verbalizer.candidates))

        return self.source.few_shot(task, seed).readable(check)

    def _pretrained(self, task: str) -> SoftPrompt:
        prompt = self._saved(task).prompt
        if not isinstance(prompt, SoftPrompt):
            raise InputError(f"{self.pretrained[task]}: {prompt}, and a row starts from a soft one")
        return prompt

    def _saved(self, task: str) -> TunedPrompt:
        return TunedPrompt.load(self.pretrained[task])

    def _conditions(
        self, task: PaperTask, name: str, wording: Wording, rows: FewShot
    ) -> dict[str, Any]:
        """As a file gives them back."""
        conditions = {
            "model": self.client.identity,
            **self.plan.to_json(),
            **({} if method(name).searches else {"budget": None}),
            "template": wording.template,
            "label_words": list(wording.label_words),
            "words": wording.words,
            "shots": self.source.shots_of(task),
            "test_rows": len(rows.test),
            "left_out": dict(rows.left_out),
            "rows": {part: wording.task.digest(own) for part, own in rows.parts.items()},
            "settings": method(name).settings(self.plan, task, wording),
        }
        if method(name).pretrained:
            conditions["pretrained"] = self._pretrained(task.name).digest
            conditions["source_task"] = self._saved(task.name).provenance.get("source_task")
        plain: dict[str, Any] = json.loads(json.dumps(conditions))
        return plain
