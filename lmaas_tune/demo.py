"""The demo: classifies customer messages with a small model, before and after tuning.

The messages were written for this project and are part of the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Protocol, cast

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.backend import Embeds
from lmaas_tune.callbacks import Callback
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Budget
from lmaas_tune.data import read_examples
from lmaas_tune.demo_model import SMOLLM2, ready_model
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray, Soft
from lmaas_tune.prompts.phrases import BUILT_IN
from lmaas_tune.prompts.soft import start_from_words
from lmaas_tune.registry import load_backend
from lmaas_tune.result import TuneResult
from lmaas_tune.scores import Comparison, Score
from lmaas_tune.settings import Settings
from lmaas_tune.task import Example, Task, Template, Verbalizer
from lmaas_tune.tuner import Tuner

BACKEND = "hf"
TASK = Task(
    Template("Message: {text}\n {prompt} {label}"),
    Verbalizer(
        {"billing": "payment", "delivery": "delivery", "returns": "return", "technical": "software"}
    ),
)
SETTINGS = Settings(
    prompt=Soft(prompt_init=("This message is about", BUILT_IN)),
    budget=Budget(calls=150, seconds=100),
)


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A message whose answer changed.

    Attributes:
        text: The message.
        before: The answer with the starting words, without a head.
        after: The answer with the tuned prompt.
        label: The right answer.
    """

    text: str
    before: str
    after: str
    label: str


@dataclass(frozen=True, kw_only=True)
class After:
    """Results on the test rows after tuning.

    Attributes:
        comparison: The scores.
        changed: Messages whose answer changed, in the order of the file.
    """

    comparison: Comparison
    changed: Sequence[Changed]


class Demo:
    """One demo: `before`, then `tune`, then `after`.

    Args:
        client: The model.

    Attributes:
        client: The model.
        train: Labelled messages for training.
        validation: As many others.
        test: Messages that only score.

    Raises:
        InputError: The backend takes no soft prompts.
    """

    def __init__(self, client: Client) -> None:
        if not isinstance(client.backend, Embeds):
            raise InputError(
                f"{client.identity} gives no word embeddings, which the demo needs: "
                "use a local model"
            )
        self.client = client
        self.train, self.validation = demo_rows("train"), demo_rows("dev")
        self.test = demo_rows("test")
        self._targets = TASK.verbalizer.targets(self.test)
        start = start_from_words(
            client.backend, " " + SETTINGS.prompt.given_words[0], insertion="concat"
        )
        self._plain = TunedPrompt.without_head(start, TASK)
        self._before: FloatArray | None = None

    @property
    def labelled_rows(self) -> int:
        """Number of messages that each call scores."""
        return len(self.train) + len(self.validation)

    def before(self) -> Score:
        """Score of the starting words on the test rows, without a head."""
        return Score.of(self._plain_scores(), self._targets)

    def tune(
        self,
        *,
        budget: Budget | None = None,
        seed: int,
        out: Path,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> TuneResult:
        """Search for a better prompt on the training rows; test rows are not used."""
        tuner = Tuner(
            self.client,
            settings=SETTINGS if budget is None else replace(SETTINGS, budget=budget),
            template=TASK.template,
            labels=TASK.verbalizer.words,
            seed=seed,
            out=out,
            callbacks=callbacks,
        )
        return tuner.fit(self.train, self.validation, resume=resume)

    def after(self, result: TuneResult) -> After:
        """Scores of the tuned prompt on the test rows, and the changed answers."""
        plain = self._plain_scores()
        tuned = result.prompt.scores(self.client, self.test)
        comparison = Comparison(
            Score.of(plain, self._targets),
            Score.of(result.start.scores(self.client, self.test), self._targets),
            Score.of(tuned, self._targets),
        )
        labels = TASK.verbalizer.labels
        changed = [
            Changed(
                text=row.fields["text"], before=labels[old], after=labels[new], label=str(row.label)
            )
            for row, old, new in zip(
                self.test, plain.argmax(axis=1), tuned.argmax(axis=1), strict=True
            )
            if old != new
        ]
        return After(comparison=comparison, changed=changed)

    def _plain_scores(self) -> FloatArray:
        if self._before is None:
            self._before = self._plain.scores(self.client, self.test)
        return self._before


def demo_rows(name: str) -> list[Example]:
    """Rows of the demo: ``train``, ``dev`` (16 a class) or ``test`` (50 a class)."""
    file = resources.files("lmaas_tune") / "demo_data" / f"{name}.jsonl"
    lines = file.read_text(encoding="utf-8").strip().split("\n")
    return read_examples([json.loads(line) for line in lines], what=name)


class _ConvertsGGUF(Protocol):
    convert_gguf: Callable[[Path, Path], object]


def demo_model(*, say: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of the demo's model, for the backend ``hf``; the first call downloads it.

    Args:
        say: Called with a message before each slow step.

    Raises:
        MissingExtraError: The extra ``hf`` is not installed.
        BackendError: The download failed.
        StorageError: The cache cannot be written.
    """
    backend = cast("_ConvertsGGUF", load_backend(BACKEND))
    return ready_model(SMOLLM2, backend.convert_gguf, say=say)
