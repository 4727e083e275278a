"""The rows of the table: how each is made on the rows of one task and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.baselines import BASELINES, fit_baseline
from lmaas_tune.calibration import fitted_calibration
from lmaas_tune.calls.client import Client
from lmaas_tune.errors import InputError, named
from lmaas_tune.prompts import DeepPrompt, FloatArray, SoftPrompt, TextPrompt
from lmaas_tune.reproduction.plan import Plan
from lmaas_tune.reproduction.rows import FewShot
from lmaas_tune.reproduction.tasks import PaperTask, Wording
from lmaas_tune.settings import Settings
from lmaas_tune.spaces import start_from_vocabulary
from lmaas_tune.tuner import Tuner, fit_whole


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """What a row is made of, for one task and seed.

    Attributes:
        client: Around the local model.
        task: One of the seven.
        wording: How it is put to this model.
        rows: The few shots, and the test rows.
        seed: Of the rows and of all that is drawn.
        plan: How the black-box rows are made.
        pretrained: The prompt that two of the rows start from.
        folder: Keeps a search, so that it can go on.
    """

    client: Client
    task: PaperTask
    wording: Wording
    rows: FewShot
    seed: int
    plan: Plan
    pretrained: SoftPrompt | None
    folder: Path


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a row came to.

    Attributes:
        scores: (test rows, labels) log-probabilities; the highest is the answer.
        parameters: How many numbers were tuned.
        details: Plain values worth keeping: what was spent, how it ended.
    """

    scores: FloatArray
    parameters: int
    details: Mapping[str, Any] = field(default_factory=dict)


Make: TypeAlias = Callable[[Trial], Outcome]
Describe: TypeAlias = Callable[[Plan, PaperTask, Wording], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table.

    Attributes:
        title: As the paper calls it.
        make: Makes it.
        settings: What it is made with, as plain values: runs of other settings are of another row.
        varies: Whether the seed changes anything; a row that it does not is made once.
        pretrained: Whether it starts from a pre-trained prompt.
        searches: Whether it is a search over a black box.
    """

    title: str
    make: Make
    settings: Describe = lambda plan, task, wording: {}
    varies: bool = True
    pretrained: bool = False
    searches: bool = False


def _baseline(name: str, title: str, *, tunes_prompt: bool = False, **more: bool) -> Method:
    """A row that is none of a search."""

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
        details = {
            "steps": fitted.steps,
            "validation_loss": loss if known else None,
            "notes": list(fitted.notes),
        }
        return Outcome(fitted.scores(trial.rows.test), fitted.parameters, details)

    own = asdict(BASELINES[name].settings())
    return Method(title=title, make=make, settings=lambda plan, task, wording: own, **more)


def _search(
    title: str,
    settings: Callable[[Plan, PaperTask, Wording], Settings],
    *,
    pretrained: bool = False,
) -> Method:
    """A row that is a search over a black box."""
    return Method(
        title=title,
        make=lambda trial: _searched(trial, settings(trial.plan, trial.task, trial.wording)),
        settings=lambda plan, task, wording: settings(plan, task, wording).to_json(),
        pretrained=pretrained,
        searches=True,
    )


def _start(trial: Trial) -> SoftPrompt | None:
    if trial.pretrained is not None:
        return trial.pretrained
    settings = trial.plan.bbt(trial.task, trial.wording)
    return gradient_start(trial.client, settings, trial.wording, trial.seed)


def gradient_start(
    client: Client, settings: Settings, wording: Wording, seed: int
) -> SoftPrompt | None:
    """Where a prompt that is tuned by gradient starts, as the search does; None: at the words."""
    if wording.words:
        return None
    backend: Any = client.backend
    return start_from_vocabulary(
        backend, settings.prompt_length or 1, insertion=settings.insertion, seed=seed
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
    """The manual prompt with one number a label, fitted to the training rows: a single call."""
    task = trial.wording.manual_task
    plain = TunedPrompt(
        TextPrompt(trial.wording.words), task, np.zeros(len(task.verbalizer.labels))
    )
    targets = task.verbalizer.targets(trial.rows.train)
    bias = fitted_calibration(plain.scores(trial.client, trial.rows.train), targets)
    return Outcome(plain.scores(trial.client, trial.rows.test) + bias, len(bias))


def _searched(trial: Trial, settings: Settings) -> Outcome:
    task = trial.wording.task
    tuner = Tuner(
        trial.client,
        settings=settings,
        template=task.template,
        labels=task.verbalizer.words,
        start=trial.pretrained,
        seed=trial.seed,
        out=trial.folder,
    )
    result = fit_whole(tuner, trial.rows.train, trial.rows.validation, folder=trial.folder)
    prompt = result.prompt
    calibrates = settings.calibration != "none"
    parameters = settings.intrinsic_dim * _searched_layers(prompt, settings)
    parameters += len(prompt.bias) * calibrates
    details = {
        "spent": result.spent.to_json(),
        "stop_reason": result.stop_reason,
        "validation_loss": None if result.best.validation is None else result.best.validation.loss,
        "settings": prompt.provenance["settings"],
    }
    return Outcome(prompt.scores(trial.client, trial.rows.test), parameters, details)


def _searched_layers(tuned: TunedPrompt, settings: Settings) -> int:
    if not isinstance(tuned.prompt, DeepPrompt) or settings.deep is None:
        return 1
    return tuned.prompt.layers if settings.deep == "all" else len(settings.deep)


METHODS: Mapping[str, Method] = {
    "prompt-tuning": _baseline("prompt-tuning", "Prompt Tuning", tunes_prompt=True),
    "prompt-tuning-pretrained": _baseline(
        "prompt-tuning", "  + Pre-trained prompt", tunes_prompt=True, pretrained=True
    ),
    "p-tuning-v2": _baseline("p-tuning-v2", "P-Tuning v2"),
    "model-tuning": _baseline("model-tuning", "Model Tuning"),
    "manual": _baseline("manual", "Manual Prompt", varies=False),
    "manual-calibrated": Method(title="  + Calibration (ours)", make=_calibrated),
    "icl": _baseline("icl", "In-Context Learning"),
    "feature-mlp": _baseline("feature-mlp", "Feature-MLP"),
    "feature-bilstm": _baseline("feature-bilstm", "Feature-BiLSTM"),
    "bbt": _search("Black-Box Tuning", Plan.bbt),
    "bbt-pretrained": _search("  + Pre-trained prompt", Plan.bbt, pretrained=True),
    "bbtv2": _search("BBTv2", Plan.bbtv2),
}
"""Every row, in the order of the paper's table; what it has not stands below its kin."""


def method(name: str) -> Method:
    """A row by name.

    Raises:
        InputError: No row has this name.
    """
    return named("method", name, METHODS)
