"""All runs of a table, one after the other; what is done already is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.client import Client
from lmaas_tune.errors import InputError, LMaaSError, StorageError
from lmaas_tune.objectives import cross_entropy, error_rate
from lmaas_tune.prompts import SoftPrompt
from lmaas_tune.reproduction.methods import Trial, family_of, method
from lmaas_tune.reproduction.plan import Plan
from lmaas_tune.reproduction.record import (
    FILE_NAME,
    Record,
    check_same,
    keep,
    kept,
    metric_of,
    run_folder,
)
from lmaas_tune.reproduction.rows import DataSource, FewShot
from lmaas_tune.reproduction.tasks import PaperTask, Wording, paper_task
from lmaas_tune.versions import versions


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
        return [self._run(*cell) for cell in self._cells()]

    def _cells(self) -> Iterator[tuple[PaperTask, str, int]]:
        """One task after the other, so that texts which a model has read are still at hand."""
        for task in map(paper_task, self.tasks):
            for name in self.methods:
                row = method(name)
                if row.pretrained and not task.is_pair:
                    continue
                for seed in self.seeds if row.varies else self.seeds[:1]:
                    yield task, name, seed

    def _run(self, task: PaperTask, name: str, seed: int) -> Record:
        folder = run_folder(self.out, task.name, name, seed)
        rows = self.source.few_shot(task, seed)
        wording = task.wording(self.plan.layout, family_of(self.client))
        conditions = self._conditions(task, name, wording, rows)
        record = kept(folder)
        if record is not None:
            check_same(folder / FILE_NAME, record, conditions)
            if not record.failed:
                return record
        record = Record(
            task=task.name, method=name, seed=seed, conditions=conditions, versions=versions()
        )
        began = time.perf_counter()
        try:
            trial = Trial(
                client=self.client,
                task=task,
                wording=wording,
                rows=rows,
                seed=seed,
                plan=self.plan,
                pretrained=self._pretrained(task.name) if method(name).pretrained else None,
                folder=folder,
            )
            record = self._made(record, trial)
        except StorageError:
            raise
        except LMaaSError as error:  # the other cells go on
            record = replace(record, reason=" ".join(str(error).split()))
        record = replace(record, seconds=time.perf_counter() - began)
        keep(self.out, record)
        self.say(record)
        return record

    def _made(self, record: Record, trial: Trial) -> Record:
        outcome = method(record.method).make(trial)
        targets = trial.wording.task.verbalizer.targets(trial.rows.test)
        return replace(
            record,
            value=metric_of(trial.task.metric, outcome.scores, targets),
            accuracy=1 - error_rate(outcome.scores, targets),
            loss=cross_entropy(outcome.scores, targets),
            parameters=outcome.parameters,
            details=outcome.details,
        )

    def _pretrained(self, task: str) -> SoftPrompt:
        prompt = TunedPrompt.load(self.pretrained[task]).prompt
        if not isinstance(prompt, SoftPrompt):
            raise InputError(f"{self.pretrained[task]}: {prompt}, and a row starts from a soft one")
        return prompt

    def _conditions(
        self, task: PaperTask, name: str, wording: Wording, rows: FewShot
    ) -> dict[str, Any]:
        """As a file gives them back."""
        conditions = {
            "model": self.client.identity,
            **self.plan.to_json(),
            "template": wording.template,
            "label_words": list(wording.label_words),
            "words": wording.words,
            "shots": self.source.shots_of(task),
            "test_rows": len(rows.test),
            "settings": method(name).settings(self.plan, task, wording),
        }
        if method(name).pretrained:
            conditions["pretrained"] = self._pretrained(task.name).digest
        plain: dict[str, Any] = json.loads(json.dumps(conditions))
        return plain
