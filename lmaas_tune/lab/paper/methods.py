"""The methods in the paper's table, and how each is run on one task and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from lmaas_tune.artifact import TunedPrompt, score_prompts
from lmaas_tune.calls.client import Client
from lmaas_tune.errors import InputError, named
from lmaas_tune.heads import BiasHead, LinearHead
from lmaas_tune.heads.words import head_words
from lmaas_tune.lab.baselines import BASELINES, fit_baseline
from lmaas_tune.lab.baselines.fitted import FittedBaseline
from lmaas_tune.lab.paper.rows import FewShot
from lmaas_tune.lab.paper.setup import Setup
from lmaas_tune.lab.paper.tasks import PaperTask, Wording
from lmaas_tune.lab.pool import fit_whole
from lmaas_tune.notes import OnNote
from lmaas_tune.prompts import FloatArray, Soft, SoftPrompt, TextPrompt
from lmaas_tune.prompts.soft import start_from_vocabulary
from lmaas_tune.result import TuneResult
from lmaas_tune.settings import Settings
from lmaas_tune.tuner import Tuner


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """The input of a method, for one task and seed.

    Attributes:
        seed: Of the rows and of everything random.
        pretrained: The prompt that two of the methods start from.
        folder: Of a search, which is resumed from it.
    """

    client: Client
    task: PaperTask
    wording: Wording
    rows: FewShot
    seed: int
    setup: Setup
    pretrained: SoftPrompt | None
    folder: Path


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a method.

    Attributes:
        scores: (test rows, labels) log-probabilities; the highest is the answer.
        others: The same for variants of the method, see `Method.variants`.
        reason: Why a search ended; `spent` is its spending.
        notes: For the reader of the table.
        details: Other plain values.
    """

    scores: FloatArray
    parameters: int
    others: Mapping[str, FloatArray] = field(default_factory=dict)
    reason: str = ""
    spent: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


Make: TypeAlias = Callable[[Trial], Outcome]
Describe: TypeAlias = Callable[[Setup, PaperTask, Wording], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table.

    Attributes:
        title: Its title in the paper.
        make: Runs it.
        settings: Its settings as plain values, which all its runs on a task share.
        varies: Whether the result depends on the seed; if not, it is run once.
        pretrained: Whether it starts from a pre-trained prompt.
        searches: Whether it is a black-box search.
        variants: Titles of further rows that a run of it gives, by name.
    """

    title: str
    make: Make
    settings: Describe = lambda setup, task, wording: {}
    varies: bool = True
    pretrained: bool = False
    searches: bool = False
    variants: Mapping[str, str] = field(default_factory=dict)


TEST = "test"
"""The name of a method's own scores on the test rows, beside its variants."""

HEAD, BIAS, START, STARTS = "head", "bias", "start", "starts"
_HEADS = {HEAD: "  + words head (ours)"}


def _baseline(
    name: str,
    *,
    title: str | None = None,
    tunes_prompt: bool = False,
    variants: Mapping[str, str] = MappingProxyType({}),
    **more: bool,
) -> Method:
    """A method of `lmaas_tune.lab.baselines`."""
    baseline = BASELINES[name]
    own = asdict(baseline.settings())

    def make(trial: Trial) -> Outcome:
        wording = trial.wording
        backend: Any = trial.client.backend
        fitted = fit_baseline(
            name,
            backend,
            wording.task if tunes_prompt else wording.manual_task,
            trial.rows.train,
            trial.rows.validation,
            seed=trial.seed,
            words=wording.words,
            start=_start(trial) if tunes_prompt else None,
        )
        loss = fitted.validation_loss
        known = loss is not None and math.isfinite(loss)
        details = {"steps": fitted.steps, "validation_loss": loss if known else None}
        return Outcome(
            fitted.scores(trial.rows.test),
            fitted.parameters,
            others={HEAD: _with_head(trial, fitted)} if HEAD in variants else {},
            notes=fitted.notes,
            details=details,
        )

    return Method(
        title=title or baseline.title,
        make=make,
        settings=lambda setup, task, wording: own,
        variants=variants,
        **more,
    )


def _with_head(trial: Trial, fitted: FittedBaseline) -> FloatArray:
    """The scores of the test rows under the head of our default, fitted to all labelled rows."""
    settings, rows = trial.setup.ours(trial.task, trial.wording), trial.rows
    task, labelled = trial.wording.task, [*rows.train, *rows.validation]
    backend: Any = trial.client.backend
    known = backend.one_token_words()
    words = head_words(task, labelled, known, settings.head_words, seed=trial.seed)
    score_words: Any = fitted.score_words
    head = LinearHead(len(words)).fit(
        score_words(labelled, words), task.verbalizer.targets(labelled), len(task.verbalizer.labels)
    )
    return head.head(score_words(rows.test, words))


def _search(
    title: str,
    settings: Callable[[Setup, PaperTask, Wording], Settings],
    *,
    pretrained: bool = False,
    variants: Mapping[str, str] = MappingProxyType({}),
) -> Method:
    """A black-box search."""

    def make(trial: Trial) -> Outcome:
        notes: list[str] = []
        own = settings(trial.setup, trial.task, trial.wording)
        result = _searched(trial, own, notes.append)
        return replace(_outcome(trial, result, list(variants)), notes=notes)

    return Method(
        title=title,
        make=make,
        settings=lambda setup, task, wording: settings(setup, task, wording).to_json(),
        pretrained=pretrained,
        searches=True,
        variants=variants,
    )


def _start(trial: Trial) -> SoftPrompt | None:
    if trial.pretrained is not None:
        return trial.pretrained
    settings = trial.setup.bbt(trial.task, trial.wording)
    return gradient_start(trial.client, settings, trial.wording, trial.seed)


def gradient_start(
    client: Client, settings: Settings, wording: Wording, seed: int
) -> SoftPrompt | None:
    """The start of a prompt that is tuned by gradient, as in a search; None for the words."""
    if wording.words:
        return None
    backend: Any = client.backend
    soft = settings.soft or Soft()
    return start_from_vocabulary(
        backend, soft.prompt_length or 1, insertion=soft.insertion, seed=seed
    )


def family_of(client: Client) -> str:
    """``causal``, ``masked`` or ``seq2seq``.

    Raises:
        InputError: The model is behind an API.
    """
    family: str | None = getattr(client.backend, "family", None)
    if family is None:
        raise InputError(
            f"{client.identity}: the white-box rows need the model itself; take the backend 'hf'"
        )
    return family


def _calibrated(trial: Trial) -> Outcome:
    """The manual prompt with one bias a label, fitted to the training rows in a single call."""
    task = trial.wording.manual_task
    plain = TunedPrompt.without_head(TextPrompt(trial.wording.words), task)
    targets = task.verbalizer.targets(trial.rows.train)
    train = plain.scores(trial.client, trial.rows.train)
    head = BiasHead().fit(train, targets, len(task.verbalizer.labels)).head
    return Outcome(head(plain.scores(trial.client, trial.rows.test)), len(head.bias))


def _searched(trial: Trial, settings: Settings, on_note: OnNote) -> TuneResult:
    task = trial.wording.task
    tuner = Tuner(
        trial.client,
        settings=settings,
        template=task.template,
        labels=task.verbalizer.words,
        start=trial.pretrained,
        seed=trial.seed,
        out=trial.folder,
        on_note=on_note,
    )
    return fit_whole(tuner, trial.rows.train, trial.rows.validation, folder=trial.folder)


def _outcome(trial: Trial, result: TuneResult, variants: Sequence[str]) -> Outcome:
    prompt, best = result.prompt, result.best
    details = {
        "validation_loss": None if best.validation is None else best.validation.loss,
        "settings": prompt.provenance["settings"],
    }
    parts = [prompt]
    if variants:  # what the head gives without the search, and one number a label without both
        parts += [result.start, result.best_starts]
    first, *others = score_prompts(parts, trial.client, trial.rows.test)
    return Outcome(
        prompt.log_odds(first),
        result.steps[0].points.shape[1] + prompt.head.parameters,
        others=_shares(trial, result, *others) if variants else {},
        reason=result.stop_reason,
        spent=result.spent.to_json(),
        details=details,
    )


def _shares(
    trial: Trial, result: TuneResult, start: Sequence[FloatArray], starts: Sequence[FloatArray]
) -> Mapping[str, FloatArray]:
    """Log-odds of the test rows without the search, and with one number a label."""
    task, labelled = result.start.task, [*trial.rows.train, *trial.rows.validation]
    plain = TunedPrompt.without_head(result.start.prompt, task)
    labels = len(task.verbalizer.labels)
    bias = BiasHead().fit(
        plain.scores(trial.client, labelled), task.verbalizer.targets(labelled), labels
    )
    return {
        BIAS: bias.head(start[0][:, :labels]),
        START: result.start.log_odds(start),
        STARTS: result.best_starts.log_odds(starts),
    }


METHODS: Mapping[str, Method] = {
    "prompt-tuning": _baseline("prompt-tuning", tunes_prompt=True, variants=_HEADS),
    "prompt-tuning-pretrained": _baseline(
        "prompt-tuning", title="  + Pre-trained prompt", tunes_prompt=True, pretrained=True
    ),
    "p-tuning-v2": _baseline("p-tuning-v2", variants=_HEADS),
    "lora": _baseline("lora", variants=_HEADS),
    "model-tuning": _baseline("model-tuning"),
    "manual": _baseline("manual", varies=False),
    "manual-calibrated": Method(title="Manual + bias (ours)", make=_calibrated),
    "icl": _baseline("icl"),
    "tfidf": _baseline("tfidf"),
    "mean-states": _baseline("mean-states"),
    "feature-mlp": _baseline("feature-mlp"),
    "feature-bilstm": _baseline("feature-bilstm"),
    "bbt": _search("Black-Box Tuning", Setup.bbt),
    "bbt-pretrained": _search("  + Pre-trained prompt", Setup.bbt, pretrained=True),
    "bbtv2": _search("BBTv2", Setup.bbtv2),
    "default": _search(
        "This library's default",
        Setup.ours,
        variants={
            BIAS: "  its first wording + one bias a label",
            START: "  its first wording + words head",
            STARTS: "  its best wordings, averaged",
        },
    ),
}
"""All methods, in the order of the paper's table; one that it lacks follows its relative."""


def method(name: str) -> Method:
    """A method by name.

    Raises:
        InputError: No method has this name.
    """
    return named("method", name, METHODS)
