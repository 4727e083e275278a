"""The paper's other rows, on a local model whose weights are at hand.

::

    from lmaas_tune.lab.baselines import fit_baseline

    backend = HFBackend("HuggingFaceTB/SmolLM2-135M-Instruct")
    fitted = fit_baseline(
        "prompt-tuning", backend, task, train, validation, seed=13, words="The sentiment is"
    )
    fitted.scores(test).argmax(axis=1)

Black-box tuning needs none of this, and imports none of it. Needs the extra ``reproduce``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmaas_tune.errors import InputError, MissingExtraError, named
from lmaas_tune.lab.baselines.fitted import FittedBaseline, Job
from lmaas_tune.lab.baselines.settings import (
    BaselineSettings,
    FeatureSettings,
    InContextSettings,
    ManualSettings,
    ModelTuningSettings,
    PrefixTuningSettings,
    PromptTuningSettings,
    check_kind,
)
from lmaas_tune.prompts import SoftPrompt
from lmaas_tune.task import Example, Task

if TYPE_CHECKING:
    from lmaas_tune_adapters.hf import HFBackend


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A row of the table.

    Attributes:
        title: As the paper calls it.
        settings: The settings it takes.
        where: Module and function that fit it; imported when it is fitted.
        takes_start: Whether it can go on from a soft prompt.
    """

    title: str
    settings: type[Any]
    where: str
    takes_start: bool = False

    @property
    def fit(self) -> Callable[[Job, Any], FittedBaseline]:
        """Fits it."""
        module, _, function = self.where.partition(":")
        fit: Callable[[Job, Any], FittedBaseline] = getattr(import_module(module), function)
        return fit


_HERE = "lmaas_tune.lab.baselines"

BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "manual": Baseline(
            title="Manual Prompt", settings=ManualSettings, where=f"{_HERE}.manual:fit"
        ),
        "icl": Baseline(
            title="In-Context Learning",
            settings=InContextSettings,
            where=f"{_HERE}.in_context:fit",
        ),
        "feature-mlp": Baseline(
            title="Feature-MLP", settings=FeatureSettings, where=f"{_HERE}.features:fit_mlp"
        ),
        "feature-bilstm": Baseline(
            title="Feature-BiLSTM", settings=FeatureSettings, where=f"{_HERE}.features:fit_bilstm"
        ),
        "prompt-tuning": Baseline(
            title="Prompt Tuning",
            settings=PromptTuningSettings,
            where=f"{_HERE}.prompt_tuning:fit",
            takes_start=True,
        ),
        "p-tuning-v2": Baseline(
            title="P-Tuning v2", settings=PrefixTuningSettings, where=f"{_HERE}.prefix_tuning:fit"
        ),
        "model-tuning": Baseline(
            title="Model Tuning", settings=ModelTuningSettings, where=f"{_HERE}.model_tuning:fit"
        ),
    }
)
"""The rows by name."""


def fit_baseline(
    name: str,
    backend: HFBackend,
    task: Task,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    seed: int,
    words: str,
    settings: BaselineSettings | None = None,
    start: SoftPrompt | None = None,
) -> FittedBaseline:
    """Fit one of the rows.

    The backend's model stays as it is, and so do the global random generators.

    Args:
        name: In `BASELINES`.
        backend: A local model.
        task: Template and label words.
        train: Labelled rows to learn from.
        validation: Labelled rows that choose the epoch; without any, the last one is kept.
        seed: Decides all that is drawn.
        words: Stand at ``{prompt}``; a soft prompt starts as their embeddings.
        settings: Of this row; None for its own.
        start: A soft prompt that prompt tuning goes on from, instead of the words.

    Raises:
        InputError: An unknown name, another row's settings, rows or a model that it cannot take,
            or a loss that did not stay finite.
        MissingExtraError: The extra ``reproduce`` is not installed.
    """
    baseline = named("baseline", name, BASELINES)
    settings = baseline.settings() if settings is None else settings
    check_kind(name, settings, baseline.settings)
    if start is not None and not baseline.takes_start:
        raise InputError(f"{name} starts from no soft prompt: leave start out")
    if not train:
        raise InputError(f"{name} has no training rows")
    _need_extra()
    job = Job(
        backend=_local(backend),
        task=task,
        train=train,
        validation=validation,
        seed=seed,
        words=words,
        start=start,
    )
    return baseline.fit(job, settings)


def _need_extra() -> None:
    for package in ("torch", "transformers", "peft"):
        if find_spec(package) is None:
            raise MissingExtraError("a baseline", package=package, extra="reproduce")


def _local(backend: object) -> HFBackend:
    from lmaas_tune_adapters.hf import HFBackend

    if not isinstance(backend, HFBackend):
        raise InputError(
            f"a baseline needs a model at hand, and {type(backend).__name__} has none: use the "
            "backend 'hf'"
        )
    return backend


__all__ = [
    "BASELINES",
    "Baseline",
    "BaselineSettings",
    "FeatureSettings",
    "FittedBaseline",
    "InContextSettings",
    "ManualSettings",
    "ModelTuningSettings",
    "PrefixTuningSettings",
    "PromptTuningSettings",
    "fit_baseline",
]
