"""The runs of the paper's table: every method on every task with every seed, on the same rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.backend import Inspects, ScoreRequest
from lmaas_tune.calls.client import Client
from lmaas_tune.errors import InputError, PermanentError, StorageError
from lmaas_tune.lab.paper.cell import Conditions, LeftOut
from lmaas_tune.lab.paper.methods import TEST, Trial, family_of, gradient_start, method
from lmaas_tune.lab.paper.rows import DataSource, FewShot
from lmaas_tune.lab.paper.setup import Setup
from lmaas_tune.lab.paper.tasks import PaperTask, Wording, paper_task
from lmaas_tune.lab.pool import check_listed, run_serially
from lmaas_tune.lab.record import FinalScore, Key, Record, RowSet, failure
from lmaas_tune.lab.store import Store
from lmaas_tune.prompts import SoftPrompt, TextPrompt
from lmaas_tune.task import Example
from lmaas_tune.versions import versions


@dataclass(frozen=True, eq=False)
class TableRun:
    """A run that is to be made; its trial lacks the folder."""

    planned: Record
    trial: Trial

    @property
    def key(self) -> Key:
        """Identifies the run within the table."""
        return self.planned.key

    def record(self, identity: str) -> Record:
        """See `lmaas_tune.lab.pool.Run`."""
        return replace(self.planned, identity=identity)

    def make(self, store: Store) -> Record:
        """See `lmaas_tune.lab.pool.Run`."""
        began = time.perf_counter()
        try:
            record = self._made(replace(self.trial, folder=store.folder(self.key)))
        except StorageError:
            raise
        except Exception as error:  # also those of libraries, as when memory is full
            record = replace(self.planned, reason=failure(error))
        return replace(record, wall_seconds=time.perf_counter() - began)

    def _made(self, trial: Trial) -> Record:
        outcome = method(self.planned.method).make(trial)
        scores = {TEST: outcome.scores, **outcome.others}
        if not all(np.isfinite(each).all() for each in scores.values()):
            raise PermanentError("not all scores of the test rows are finite")
        targets = trial.wording.task.verbalizer.targets(trial.rows.test)
        final = {name: FinalScore.of_log_odds(each, targets) for name, each in scores.items()}
        return replace(
            self.planned,
            status="finished",
            reason=outcome.reason,
            value=getattr(final[TEST], trial.task.metric),
            final=final,
            parameters=outcome.parameters,
            spent=outcome.spent,
            notes=outcome.notes,
            details=outcome.details,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Reproduction:
    """The arguments of `lmaas_tune.lab.paper.reproduce`, checked, with the store for `out`.

    Raises:
        InputError: A name is unknown, repeated or cannot be combined with the others.
    """

    client: Client
    tasks: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    source: DataSource
    setup: Setup
    pretrained: Mapping[str, Path] = field(default_factory=dict)
    store: Store
    say: Callable[[Record], None] = lambda record: None

    def __post_init__(self) -> None:
        for what in ("tasks", "methods", "seeds"):
            check_listed(what, getattr(self, what))
        methods = {name: method(name) for name in self.methods}
        for task in map(paper_task, self.tasks):
            task.wording(self.setup.layout, family_of(self.client))
            for name in self.methods:
                if methods[name].pretrained and task.is_pair and task.name not in self.pretrained:
                    raise InputError(
                        f"method {name!r} on {task.name!r} starts from a pre-trained prompt: make "
                        "one with `lmaas-tune pretrain`, and give its folder with --pretrained"
                    )
        if not list(self._cells()):
            raise InputError(
                f"nothing to do for {', '.join(self.methods)} on {', '.join(self.tasks)}: a row "
                "with a pre-trained prompt is made for tasks with two sentences"
            )

    def run(self) -> list[Record]:
        """Make the runs that are not done.

        Raises:
            InputError: A stored run was made otherwise, or rows cannot be read.
            StorageError: The store cannot be read or written.
        """
        runs = self._runs()
        self.store.check_alike(run.planned for run in runs)
        run_serially(runs, self.store, self.say)
        return [record for run in runs if (record := self.store.get(run.key)) is not None]

    def _cells(self) -> Iterator[tuple[PaperTask, str]]:
        """Task and method of each cell; neighbours share a task, whose texts are cached."""
        for task in map(paper_task, self.tasks):
            for name in self.methods:
                if task.is_pair or not method(name).pretrained:
                    yield task, name

    def _runs(self) -> list[TableRun]:
        """All runs; errors in their rows and prompts are found before the first is made."""
        stored = [record for _, record in self.store.found()]
        rows: dict[tuple[str, int], FewShot] = {}
        runs = []
        for task, name in self._cells():
            seeds = self.seeds
            wording = task.wording(self.setup.layout, family_of(self.client))
            if not method(name).varies:  # one run, of any seed, serves all
                made = [r.seed for r in stored if (r.task, r.method) == (task.name, name)]
                seeds = [*made, *seeds][:1]
            for seed in seeds:
                if (task.name, seed) not in rows:
                    rows[task.name, seed] = self._rows(task, wording, seed)
                runs.append(self._run(task, name, seed, wording, rows[task.name, seed]))
        return runs

    def _run(
        self, task: PaperTask, name: str, seed: int, wording: Wording, rows: FewShot
    ) -> TableRun:
        saved = TunedPrompt.load(self.pretrained[task.name]) if method(name).pretrained else None
        start = None if saved is None else saved.prompt
        if start is not None and start.kind != "soft":
            where = self.pretrained[task.name]
            raise InputError(f"{where}: {start}, and a row starts from a soft one")
        budget = self.setup.budget if method(name).searches else None
        conditions = Conditions(
            layout=self.setup.layout,
            preset=self.setup.preset,
            budget=None if budget is None else str(budget),
            words=wording.words,
            shots=self.source.shots_of(task),
            left_out=LeftOut(**rows.left_out),
            pretrained=None if saved is None else saved.prompt.digest,
            source_task=None if saved is None else saved.provenance.get("source_task"),
        )
        record = Record(
            task=task.name,
            method=name,
            seed=seed,
            identity=self.client.identity,
            conditions=_plain(asdict(conditions)),
            template=wording.template,
            label_words=dict(wording.task.verbalizer.words),
            rows={
                part: RowSet(rows=len(own), digest=wording.task.digest(own))
                for part, own in rows.parts.items()
            },
            settings=_plain(method(name).settings(self.setup, task, wording)),
            versions=versions(),
        )
        trial = Trial(
            client=self.client,
            task=task,
            wording=wording,
            rows=rows,
            seed=seed,
            setup=self.setup,
            pretrained=cast("SoftPrompt | None", start),
            folder=self.store.place,
        )
        return TableRun(record, trial)

    def _rows(self, task: PaperTask, wording: Wording, seed: int) -> FewShot:
        """The rows that the model can read under the starting prompt of a search.

        The reference code, too, leaves out rows that are longer than its model reads.
        """
        settings = self.setup.bbt(task, wording)
        start = gradient_start(self.client, settings, wording, seed) or TextPrompt(wording.words)
        backend = self.client.backend

        def check(rows: Sequence[Example]) -> None:
            batch = wording.task.template.batch(rows)
            if isinstance(backend, Inspects):
                backend.inspect(ScoreRequest(start, batch, wording.task.verbalizer.candidates))

        return self.source.few_shot(task, seed).readable(check)


def _plain(content: Any) -> dict[str, Any]:
    """A mapping as a file gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain
